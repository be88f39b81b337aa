"""The fields of manifest.json, schema version 2, as types. Other schemas get another number.

digest        sha256 of the canonical manifest without `digest`; the first 12 digits name the folder
certified     the held-out test passed; needs an α and a calibration.json that says so
model         the model by meaning (`merasteer.meaning`): other weights or another tokenizer are another model. Of schema 1: files
              (hashes of the weight files), and null for what it did not keep
task          the resolved task; serving needs no task file. variants: per label its spellings as token ids (one token each where the
              answer is free); examples: the rows shown in front of every prompt; end: the token that tells a spelling from a longer one
steering      hook point, direction, α (null: none was certified), layers with a readout, positions, report layer;
              method: what was certified (absent: "mera", and "label_probe" of a label probe that was not). "logit_bias" has no α, and
              no readout where no layer reads the error
              strength: κ of a step of given length (`merasteer.types.LAWS`), which has none of its own
probe         family and held-out scores per layer (none for planted readouts); auroc for probes of right and wrong
runtime       where it was calibrated: dtype, device, attention, ranks of a tensor-parallel group. With `model` the conditions of the
              certificate (`merasteer.conditions`)
splits        content digests, disjoint;  seeds, versions: what it takes to make it again
files         sha256 of the other two files
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict, get_args

from merasteer.types import AnswerPosition, Choose, Direction, HookPoint, Positions

__all__ = [
    "FILES",
    "OWN_METHODS",
    "SCHEMA",
    "LayerScore",
    "Manifest",
    "ModelSection",
    "OwnMethod",
    "ProbeSection",
    "RuntimeSection",
    "SplitsSection",
    "SteeringSection",
    "TaskSection",
    "keys",
    "optional_keys",
]

SCHEMA = 2
FILES = ("calibration.json", "probe.safetensors")
OwnMethod = Literal[
    "mera", "logit_bias", "mera+bias", "label_probe"
]  # a step, a bias, both, or the label that a probe says
OWN_METHODS: tuple[OwnMethod, ...] = get_args(OwnMethod)


class _Model(TypedDict):
    id: str
    architecture: str
    layers: int
    width: int
    vocab: int
    weights: str | None
    tokenizer: str
    config: str | None
    chat_template: str | None
    end_tokens: str | None
    configuration: dict[str, Any] | None


class ModelSection(_Model, total=False):
    files: dict[str, str]


class TaskSection(TypedDict):
    name: str
    template: str
    labels: list[str]
    variants: list[list[list[int]]]
    choose: Choose
    position: AnswerPosition
    max_new_tokens: int
    chat: bool
    system: str | None
    examples: list[list[str]]
    end: int | None


class _Steering(TypedDict):
    hook_point: HookPoint
    direction: Direction
    alpha: float | None
    active_layers: list[int]
    positions: Positions
    report_layer: int


class SteeringSection(_Steering, total=False):
    method: OwnMethod
    strength: float


class _Score(TypedDict):
    layer: int
    rmse: float
    dummy_rmse: float
    standard_error: float
    idle: bool


class LayerScore(_Score, total=False):
    auroc: float


class ProbeSection(TypedDict):
    family: str
    scores: list[LayerScore]


class RuntimeSection(TypedDict):
    dtype: str
    device: str | None
    attention: str
    ranks: int


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
    """The names of a section's fields that must be there."""
    return tuple(name for name in section.__annotations__ if name not in optional_keys(section))


def optional_keys(section: type) -> tuple[str, ...]:
    """The names of a section's fields that may be absent."""
    return tuple(sorted(getattr(section, "__optional_keys__", ())))
