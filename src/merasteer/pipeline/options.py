"""What a run may be told, each default written once. All of it enters the key of the work folder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from merasteer.errors import InvalidInput
from merasteer.method.certify import VALID_TESTS, TestName
from merasteer.probes import FAMILIES, Family
from merasteer.store.schema import OWN_METHODS, OwnMethod
from merasteer.types import DIRECTIONS, HOOK_POINTS, LAWS, POSITIONS, Direction, HookPoint, Positions

__all__ = ["GRIDS", "LAYERS", "STAGES", "Grid", "Layers", "NamedLayers", "Options", "Stage", "check_layers"]

Stage = Literal["collect", "fit", "calibrate", "evaluate", "publish"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Grid = Literal["logit", "paper"]
GRIDS: tuple[Grid, ...] = get_args(Grid)
NamedLayers = Literal["all", "best", "median", "worst"]
Layers = NamedLayers | tuple[int, ...]  # a tuple: 0-based indices
FIT = ("seed", "hook_points", "directions", "family", "ordering", "grid", "top_k", "layers", "sae")
LAYERS: tuple[NamedLayers, ...] = get_args(NamedLayers)


@dataclass(frozen=True)
class Options:
    """How probes are fit and candidates are chosen and tested.

    delta, epsilon, chances, test: see `merasteer.method.certify`. ordering: training items held out from the probe fit to
    rank candidates on (at most half of the training split). grid: where the thresholds α come from (`pipeline.fit`).
    top_k: items at either end of the contrastive direction. seed: of every random draw (splits have their own).
    allow_collapse: a candidate under which answers collapse (`method.harm`) may be certified; the word stays with it.
    candidates: what may be chosen: steps, the logit bias alone, the bias on top of the best steps, or what a label probe reads
    (`pipeline.calibrate`).
    layers: of the layers that read the error, which act: all, the one of best, median or worst held-out score, or those listed.
    sae: (layer, folder) of sparse autoencoders whose encodings are probed too, for the report alone (`probes.sae`).
    """

    seed: int = 0
    delta: float = 0.05
    epsilon: float = 0.0
    chances: int = 1
    hook_points: tuple[HookPoint, ...] = ("residual", "mlp_input")
    directions: tuple[Direction, ...] = ("euclidean", "covariance", "contrastive", "gradient", "gradient_by_label")
    positions: Positions = "generation"
    family: Family = "ridge"
    ordering: int = 250
    grid: Grid = "logit"
    top_k: int = 100
    test: TestName | None = None
    candidates: tuple[OwnMethod, ...] = OWN_METHODS
    layers: Layers = "all"
    sae: tuple[tuple[int, str], ...] = ()
    allow_collapse: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.delta < 1.0:
            raise InvalidInput(f"delta: {self.delta!r} is outside the open interval (0, 1); give a risk such as 0.05")
        if not 0.0 <= self.epsilon < 1.0:
            raise InvalidInput(f"epsilon: {self.epsilon!r} is outside [0, 1); give the gain in accuracy to exceed")
        if self.test == "mcnemar" and self.epsilon > 0.0:
            raise InvalidInput(f"test: mcnemar cannot test a gain above epsilon {self.epsilon!r}; use betting")
        for name in ("chances", "ordering", "top_k"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}: {getattr(self, name)} is not positive; give 1 or more")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput(f"seed: {self.seed} is outside 0..2^63 - 1; give a smaller one")
        self._each("hook_points", HOOK_POINTS)
        self._each("directions", [name for name in DIRECTIONS if name != "label_probe"])  # a candidate, not a direction
        self._each("candidates", OWN_METHODS)
        for name, allowed in (
            ("family", FAMILIES),
            ("grid", GRIDS),
            ("test", (None, *VALID_TESTS)),
        ):
            if getattr(self, name) not in allowed:
                known = ", ".join(str(value) for value in allowed if value)
                raise InvalidInput(f"{name}: {getattr(self, name)!r} is not one of {known}")
        if not (_is_list(self.positions) if isinstance(self.positions, tuple) else self.positions in POSITIONS):
            raise InvalidInput(
                f"positions: {self.positions!r} is not one of {', '.join(POSITIONS)}, nor a list of prompt indices, each once"
            )
        if not (_is_list(self.layers) if isinstance(self.layers, tuple) else self.layers in LAYERS):
            raise InvalidInput(
                f"layers: {self.layers!r} is neither one of {', '.join(LAYERS)} nor a list of 0-based indices, each once"
            )

    def _each(self, name: str, allowed: Collection[str]) -> None:
        values = getattr(self, name)
        wrong = [value for value in values if value not in allowed]
        if not values or wrong or len(set(values)) != len(values):
            shown = repr(wrong[0]) if wrong else repr(values)
            raise InvalidInput(f"{name}: {shown}; give one or more of {', '.join(allowed)}, each once")

    @property
    def probed(self) -> bool:
        """Whether a label probe is a readout: it may be chosen, or steps along gradients are fit, which come with the same gate."""
        return "label_probe" in self.candidates or any(LAWS[name] != "closed_form" for name in self.directions)

    def of_fit(self) -> dict[str, Any]:
        """The values that decide what is fit."""
        return {name: value for name, value in self.as_dict().items() if name in FIT} | {"probed": self.probed}

    @property
    def biased(self) -> bool:
        """Whether a candidate with the logit bias may be chosen."""
        return bool({"logit_bias", "mera+bias"} & set(self.candidates))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def check_layers(options: Options, n_layers: int) -> None:
    """Raises InvalidInput where a listed layer is none of the model's."""
    listed = {"layers": options.layers, "sae": tuple(layer for layer, _ in options.sae)}
    for name, layers in listed.items():
        if isinstance(layers, tuple) and not 0 <= max(layers, default=0) < n_layers:
            raise InvalidInput(
                f"{name}: {max(layers)} is outside 0..{n_layers - 1}; the model has {n_layers} layers, counted from 0"
            )


def _is_list(indices: tuple[int, ...]) -> bool:
    whole = all(type(index) is int and index >= 0 for index in indices)
    return bool(indices) and whole and len(set(indices)) == len(indices)
