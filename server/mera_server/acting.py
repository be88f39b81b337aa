"""Whether a request's answer is corrected, how, and what keeps the certificate from covering it (docs/method.md, who acts). Pure.

From top to bottom the first line that applies decides; what a request *overrides* is alpha, positions, layers, a strength, or the
method, where it differs from what was tested:

    logit_bias with alpha, positions or layers            refused: invalid_input, it moves nothing
    none                                                  off; the readouts are read
    the server runs with steering off                     abstained, disabled
    no artifact; or every layer idle (not for a bias)     abstained, no_probe
    something is overridden                               as asked, never covered. Refused: unsupported without vectors, bias or label probe
                                                          for the method, alpha_required where it moves and there is no α
    certified, and under other conditions than here       abstained, conditions
    no certificate, since answers would collapse          abstained, collapse
    no certificate                                        abstained, uncertified
    the task is the server's default, and not its prompt  abstained, other_prompt
    otherwise                                             the artifact's own correction; covered unless `why` says what differs

Where a label probe would say the label nothing can be drawn: sampling is refused.
So a server never does on its own account what was not certified here; what a request asks for in so many words it does, and tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mera_server.catalog import Catalog, Probe
from mera_server.schemas import Steering
from merasteer.errors import AlphaRequired, InvalidInput, Unsupported
from merasteer.types import UNCORRECTED, Correction, Positions, ServedTask

if TYPE_CHECKING:
    from mera_server.replies import Reason
    from mera_server.resolve import Limits, Plan

__all__ = ["act", "why", "withdrawn"]


def act(base: Plan, steering: Steering, catalog: Catalog, limits: Limits, *, theirs: bool) -> Plan:
    """The plan with its correction, and with what is decided before anything runs.

    theirs: whether the prompt is the task's, or the task was named by the request.
    """
    probe, method = base.probe, base.method
    layers = _layers(steering, probe, catalog)
    given = tuple(name for name in ("alpha", "positions", "layers") if getattr(steering, name) is not None)
    if method == "logit_bias" and given:
        raise InvalidInput(
            f"steering.{given[0]}: logit_bias moves nothing and does not take it; leave it out or choose mera or mera+bias"
        )
    reading = UNCORRECTED if probe is None else probe.correction.watching()
    if method == "none":
        return replace(base, correction=reading)
    if not limits.steering:
        return _abstains(base, reading, "disabled")
    if probe is None or (reading.readout is None and method != "logit_bias"):
        return _abstains(base, UNCORRECTED, "no_probe")
    overridden = _overridden(steering, probe, layers)
    if overridden or method != probe.method:
        asked = _asked(steering, probe, base, layers)
        return replace(base, correction=_greedy(asked, base), decision=None, overridden=overridden)
    if probe.certified and probe.mismatch is not None:
        return _abstains(base, reading, "conditions")
    if not probe.certified:
        return _abstains(base, reading, "collapse" if probe.caution == "collapse" else "uncertified")
    if not theirs:
        return _abstains(base, reading, "other_prompt")
    return replace(base, correction=_greedy(probe.correction, base), decision=None)


def _greedy(correction: Correction, base: Plan) -> Correction:
    """The correction, unless it says the label and the request would draw one."""
    if correction.method == "label_probe" and not base.sampling.greedy:
        raise InvalidInput(
            "parameters.temperature: a label probe says the label, so none is drawn; leave it out, or choose another steering.method"
        )
    return correction


def withdrawn(planned: Plan, told: str) -> Plan:
    """The plan once its artifact is known not to behave here as it was tested: it abstains, unless it does what it was asked to do."""
    probe = planned.probe
    if probe is None or planned.decision is not None or planned.correction != probe.correction:
        return replace(planned, why=(*planned.why, told))
    return replace(_abstains(planned, probe.correction.watching(), "conditions"), why=(*planned.why, told))


def why(planned: Plan, probe: Probe, *, rendered: bool, limits: Limits) -> tuple[str, ...]:
    """Everything that keeps the certificate from covering this request, as far as it is known beforehand."""
    task = probe.task
    budget, late = task.max_new_tokens, task.choose == "free" and task.position == "exact"  # the label may come late
    reasons = {
        "the artifact is not certified": not probe.certified,
        str(probe.mismatch): probe.certified and probe.mismatch is not None,
        "steering is off on this server": not limits.steering,
        f"method {planned.method} is not what was certified": planned.method != probe.method,
        f"{', '.join(planned.overridden)} overridden": bool(planned.overridden),
        "decoding is sampled, not greedy": not planned.sampling.greedy,
        "the prompt does not match the task's template": not rendered,
        f"max_new_tokens is not the task's {budget}": late and planned.max_new_tokens != budget,
        "stop strings may end the answer before its label": late and bool(planned.stop),
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def _abstains(base: Plan, correction: Correction, reason: Reason) -> Plan:
    return replace(base, correction=correction, decision="abstained", reason=reason)


def _overridden(steering: Steering, probe: Probe, layers: tuple[int, ...] | None) -> tuple[str, ...]:
    """The parts of the artifact's correction that the request replaces by something else."""
    own, asked = probe.correction, steering.positions
    positions = tuple(asked) if isinstance(asked, list) else asked
    differs: dict[str, Callable[[], bool]] = {
        "alpha": lambda: steering.alpha is not None and steering.alpha != own.alpha,
        "positions": lambda: positions is not None and not _same_positions(positions, own.positions, probe.task),
        "layers": lambda: layers is not None and layers != probe.active,
        "strength": lambda: steering.strength is not None,
    }
    return tuple(name for name, found in differs.items() if found())


def _same_positions(one: Positions, other: Positions, task: ServedTask) -> bool:
    """Whether both act on the same positions of every prompt: an answer of one token is chosen at the last one."""
    tokens = task.max_new_tokens if task.choice is None else task.choice.longest
    return one == other or (tokens == 1 and {one, other} == {"generation", "last"})


def _asked(steering: Steering, probe: Probe, base: Plan, layers: tuple[int, ...] | None) -> Correction:
    """What the request asks for, in the parts that it leaves open as the artifact says."""
    method, given = base.method, steering.positions
    positions: Positions = tuple(given) if isinstance(given, list) else given or probe.correction.positions
    if method == "additive" or method == "contrastive":
        strength = 1.0 if steering.strength is None else steering.strength
        return Correction(method, probe.baseline(method), None, strength, positions, layers)
    if (method == "label_probe") != (probe.says and method != "logit_bias"):
        held = "a label probe, and no step" if probe.says else "no label probe"
        raise Unsupported(f"steering.method: this artifact holds {held}; leave {method} out, or choose another probe")
    bias = probe.bias(method) if "bias" in method else None
    reading = probe.correction.watching()
    if method == "logit_bias":
        return replace(reading, method=method, bias=bias)
    alpha = probe.alpha if steering.alpha is None else steering.alpha
    if alpha is None:
        raise AlphaRequired("steering.alpha: missing, and the artifact has none; give one in (0, 1)")
    return Correction(method, reading.readout, alpha, probe.strength, positions, layers, bias)


def _layers(steering: Steering, probe: Probe | None, catalog: Catalog) -> tuple[int, ...] | None:
    """The layers that may move, None for all active ones."""
    if steering.layers is None:
        return None
    if max(steering.layers) >= catalog.layers:
        raise InvalidInput(
            f"steering.layers: names a layer that the model lacks; give numbers from 0 to {catalog.layers - 1}"
        )
    if probe is None:
        return None
    if not set(steering.layers) & set(probe.active):
        raise InvalidInput(
            f"steering.layers: none of them has a probe; active layers: {', '.join(map(str, probe.active)) or 'none'}"
        )
    return tuple(sorted(set(steering.layers) & set(probe.active)))
