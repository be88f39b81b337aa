"""A request and the catalog -> what is to be done, as one frozen `Plan`. Pure: nothing is run, nothing is read.

The method is the one asked for; null is the artifact's own, the one that was certified. Who acts, and why not, is decided in
`acting.py`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mera_server.acting import act, why
from mera_server.catalog import Catalog, Probe
from mera_server.replies import Reason
from mera_server.schemas import DEFAULT_MAX_NEW_TOKENS, GenerateBody, Parameters, Steering
from merasteer.errors import EmptyInputs, InvalidInput, UnknownField, Unsupported
from merasteer.tasks import Prompter, fields_of
from merasteer.types import UNCORRECTED, Correction, Decision, Method, Sampling, ServedTask

__all__ = ["Limits", "Plan", "plan"]


@dataclass(frozen=True)
class Limits:
    """What the server was started with, as far as a request's plan depends on it. A limit of None is the engine's own."""

    steering: bool = True
    default_task: str | None = None
    max_new_tokens: int | None = None
    max_prompt_tokens: int | None = None


@dataclass(frozen=True)
class Plan:
    """What one request comes to.

    decision: fixed beforehand (off, abstained), or None where the moved cells, and the bias if there is one, will decide.
    max_new_tokens: None ends with the label. prompter: what makes the task's prompts.
    tokens: the logprob of every token is wanted. brief: `details` is none.
    correction: what is done; it only reads where the decision is fixed.
    overridden: the parts of the artifact's choice that the request replaces.
    why: what keeps the certificate from covering this request, empty when it does.
    """

    prompt: str
    max_new_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...] = ()
    tokens: bool = False
    trace: bool = False
    brief: bool = False
    full_text: bool = False
    ignore_eos: bool = False
    method: Method = "none"
    task: ServedTask | None = None
    prompter: Prompter | None = field(default=None, compare=False, repr=False)
    probe: Probe | None = None
    correction: Correction = UNCORRECTED
    decision: Decision | None = "off"
    reason: Reason | None = None
    overridden: tuple[str, ...] = ()
    why: tuple[str, ...] = ()

    @property
    def alpha(self) -> float | None:
        """The threshold that is applied."""
        return self.correction.alpha


def plan(body: GenerateBody, catalog: Catalog, limits: Limits) -> Plan:
    """The plan of one request. Raises the error of the first thing that cannot be done, naming its field."""
    steering = body.steering or Steering()
    _check_supported(body, steering)
    task, probe = _task_and_probe(steering, catalog, limits.default_task)
    prompter = None if task is None else catalog.prompter(task)
    unsteered = _unsteered(body, prompter, limits)
    if task is None or prompter is None:
        return unsteered
    if unsteered.ignore_eos:
        raise Unsupported(
            "parameters.ignore_eos: a task's answers end as they did when its artifact was tested; leave it out"
        )
    method = steering.method or (probe.method if probe is not None else "mera")
    rendered = not isinstance(body.inputs, str) or prompter.matches(body.inputs)
    named = steering.task is not None or steering.probe is not None
    base = replace(unsteered, method=method, task=task, probe=probe)
    planned = act(base, steering, catalog, limits, theirs=named or rendered)
    return replace(planned, why=why(planned, probe, rendered=rendered, limits=limits) if probe is not None else ())


def _check_supported(body: GenerateBody, steering: Steering) -> None:
    if not body.inputs:
        raise EmptyInputs("inputs: empty; give a prompt, or an object with the fields of the task's template")
    if steering.layers is not None and len(set(steering.layers)) < len(steering.layers):
        raise InvalidInput("steering.layers: holds a layer twice; give each layer once")
    if isinstance(steering.positions, list) and len(set(steering.positions)) < len(steering.positions):
        raise InvalidInput("steering.positions: holds a position twice; give each position once")
    if steering.strength is not None and steering.method not in ("additive", "contrastive"):
        raise InvalidInput(
            "steering.strength: only additive and contrastive take it; leave it out or choose one of them"
        )
    if steering.alpha is not None and steering.method in ("additive", "contrastive"):
        raise InvalidInput("steering.alpha: additive and contrastive do not take it; give strength instead")


def _task_and_probe(
    steering: Steering, catalog: Catalog, default: str | None
) -> tuple[ServedTask | None, Probe | None]:
    """The task that is asked for by name, by probe or by default, and the artifact that serves it."""
    if steering.probe is not None:
        probe = catalog.probe(steering.probe)
        if steering.task is not None and catalog.task(steering.task).name != probe.task.name:
            raise InvalidInput("steering.probe: belongs to another task; GET /probes lists the digests of each")
        return probe.task, probe
    name = steering.task or default
    if name is not None:
        found = catalog.latest.get(name)
        return (catalog.task(name), None) if found is None else (found.task, found)
    wanted = [key for key, value in steering.model_dump().items() if value is not None and value != "none"]
    if wanted:
        raise InvalidInput(f"steering.task: missing, and {', '.join(wanted)} needs one; known tasks: {catalog.names}")
    return None, None


def _unsteered(body: GenerateBody, prompter: Prompter | None, limits: Limits) -> Plan:
    """The part of the plan that has nothing to do with steering."""
    parameters = body.parameters or Parameters()
    budget = parameters.max_new_tokens
    if budget is None:
        budget = DEFAULT_MAX_NEW_TOKENS if prompter is None else _own_budget(prompter.task)
    if budget is not None and limits.max_new_tokens is not None and budget > limits.max_new_tokens:
        raise InvalidInput(
            f"parameters.max_new_tokens: above the limit of this server; give at most {limits.max_new_tokens}"
        )
    seed = parameters.seed if parameters.seed is not None else secrets.randbits(53)
    return Plan(
        prompt=_prompt(body.inputs, prompter),
        prompter=prompter,
        max_new_tokens=budget,
        sampling=Sampling(_temperature(parameters), parameters.top_k, parameters.top_p, seed),
        stop=tuple(parameters.stop or ()),
        tokens=bool(parameters.details),
        trace=body.details == "trace",
        brief=body.details == "none",
        full_text=bool(parameters.return_full_text),
        ignore_eos=bool(parameters.ignore_eos),
    )


def _temperature(parameters: Parameters) -> float | None:
    """None is greedy. To sample without a temperature is to sample at 1, as Hugging Face's libraries mean it."""
    if parameters.do_sample and parameters.temperature is None:
        return 1.0
    if parameters.do_sample and not parameters.temperature:
        raise InvalidInput("parameters.temperature: 0 is greedy, and do_sample asks for a draw; leave one of them out")
    return parameters.temperature or None


def _own_budget(task: ServedTask) -> int | None:
    """What a task ends with: its label, or so many tokens."""
    return None if task.choose == "labels" else task.max_new_tokens


def _prompt(inputs: str | Mapping[str, Any], prompter: Prompter | None) -> str:
    if isinstance(inputs, str):
        return inputs
    if prompter is None:
        raise InvalidInput(
            "inputs: an object is rendered by a task's template; name the task in steering.task, or send a string"
        )
    known = fields_of(prompter.task.template)
    if not set(inputs) <= set(known):
        raise UnknownField(f"inputs: has a field that the task's template lacks; give {', '.join(known)}")
    try:
        return prompter.text(inputs)
    except InvalidInput as error:
        raise type(error)(f"inputs: {error}") from None
