"""The fields of manifest.json, schema version 1, as types. Other schemas get another number.

digest        sha256 of the canonical manifest without `digest`; the first 12 digits name the folder
certified     the held-out test passed; needs an α and a calibration.json that says so
model         identity of the model: other weights or another tokenizer are another model
task          the resolved task; serving needs no task file
steering      hook point, direction, α (null: none was certified), layers with a readout, positions, report layer
probe         family and held-out scores per layer (none for planted readouts)
runtime       dtype and attention of calibration
splits        content digests, disjoint;  seeds, versions: what it takes to make it again
files         sha256 of the other two files
"""

from __future__ import annotations

from typing import TypedDict

from merasteer.types import AnswerPosition, Direction, HookPoint, Positions

__all__ = [
    "FILES",
    "SCHEMA",
    "LayerScore",
    "Manifest",
    "ModelSection",
    "ProbeSection",
    "RuntimeSection",
    "SplitsSection",
    "SteeringSection",
    "TaskSection",
    "keys",
]

SCHEMA = 1
FILES = ("calibration.json", "probe.safetensors")


class ModelSection(TypedDict):
    id: str
    architecture: str
    layers: int
    width: int
    vocab: int
    weights: dict[str, str]
    tokenizer: str


class TaskSection(TypedDict):
    name: str
    template: str
    labels: list[str]
    variants: list[list[int]]
    position: AnswerPosition
    max_new_tokens: int


class SteeringSection(TypedDict):
    hook_point: HookPoint
    direction: Direction
    alpha: float | None
    active_layers: list[int]
    positions: Positions
    report_layer: int


class LayerScore(TypedDict):
    layer: int
    rmse: float
    dummy_rmse: float
    standard_error: float
    idle: bool


class ProbeSection(TypedDict):
    family: str
    scores: list[LayerScore]


class RuntimeSection(TypedDict):
    dtype: str
    attention: str


class SplitsSection(TypedDict):
    train: list[str]
    calibration: list[str]
    test: list[str]


class Manifest(TypedDict):
    schema: int
    digest: str
    certified: bool
    model: ModelSection
    task: TaskSection
    steering: SteeringSection
    probe: ProbeSection
    runtime: RuntimeSection
    splits: SplitsSection
    seeds: dict[str, int]
    versions: dict[str, str]
    files: dict[str, str]


def keys(section: type) -> tuple[str, ...]:
    """The field names of a section."""
    return tuple(section.__annotations__)
