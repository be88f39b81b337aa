"""`POST /classify`: many inputs of one task in one batch; the label of each, how sure, and what steering did."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import JsonValue, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from mera_server.bridge import Finished, complete, native
from mera_server.catalog import Catalog
from mera_server.errors import describe
from mera_server.replies import ClassifiedReply, ClassifyReply, UsageReply
from mera_server.resolve import Limits, Plan, plan
from mera_server.routes.generate import ERRORS, takes
from mera_server.runtime import Runtime
from mera_server.schemas import ClassifyBody, GenerateBody, Parameters, Steering
from merasteer.errors import InvalidInput, MeraError
from merasteer.tasks import fields_of

__all__ = ["BODIES", "plans", "router"]

BODIES = (ClassifyBody,)


def router(runtime: Runtime) -> APIRouter:
    """The route over one runtime."""
    routes = APIRouter()

    @routes.post("/classify", response_model=ClassifyReply, responses=ERRORS, openapi_extra=takes(ClassifyBody))
    async def classify(request: Request) -> Response:
        """Classifies up to 256 inputs of a task at once; one that is wrong refuses them all, by its number."""
        body = _parse(await request.body())
        planned = plans(body, runtime.serving().catalog, runtime.limits)
        found = await complete(runtime, planned, request, _refused)
        return Response(_reply(body.task, found).model_dump_json(), media_type="application/json")

    return routes


def plans(body: ClassifyBody, catalog: Catalog, limits: Limits) -> list[Plan]:
    """The plan of each input: that of a `POST /generate` with the task's own budget. Raises the first error, naming the input."""
    given = {} if body.steering is None else dict(body.steering)
    steering = Steering(task=body.task, **given)
    try:
        probe = catalog.latest.get(body.task)
        fields = fields_of((catalog.task(body.task) if probe is None else probe.task).template)
    except MeraError as error:
        raise type(error)(str(error).removeprefix("steering.")) from None
    made = []
    for number, item in enumerate(body.inputs):
        if isinstance(item, str) and len(fields) != 1:
            raise InvalidInput(
                f"inputs[{number}]: a string stands for the only field of a template, and this task's has more; "
                f"give an object with {', '.join(fields)}"
            )
        values: dict[str, JsonValue] = {fields[0]: item} if isinstance(item, str) else item
        one = GenerateBody(inputs=values, steering=steering, parameters=Parameters(max_new_tokens=None))
        try:
            made.append(plan(one, catalog, limits))
        except MeraError as error:
            raise _named(number, error) from None
    return made


def _refused(number: int, error: MeraError) -> MeraError:
    """The engine's error in the body's names. Which positions lie beyond the prompt depends on the input."""
    known = _named(number, native(number, error))
    return type(known)(f"inputs[{number}]: {known}") if str(known).startswith("steering.positions:") else known


def _named(number: int, error: MeraError) -> MeraError:
    """The error of one input: what is said of `inputs` is said of its item."""
    told = str(error)
    return type(error)(f"inputs[{number}]{told.removeprefix('inputs')}" if told.startswith("inputs:") else told)


def _parse(raw: bytes) -> ClassifyBody:
    """The body. Raises what `errors.parse` does, naming an item by its number."""
    try:
        return ClassifyBody.model_validate_json(raw)
    except ValidationError as error:
        place = error.errors(include_url=False)[0]["loc"]
        known = describe(error, ClassifyBody)
        number = place[1] if len(place) > 1 and place[0] == "inputs" else None
        raise (_named(number, known) if isinstance(number, int) else known) from None


def _reply(task: str, found: list[Finished]) -> ClassifyReply:
    return ClassifyReply(
        task=task,
        probe=found[0].mera.probe,
        results=[_result(one) for one in found],
        usage=UsageReply(
            prompt_tokens=sum(one.generation.prompt_tokens for one in found),
            generated_tokens=sum(len(one.generation.tokens) for one in found),
        ),
    )


def _result(one: Finished) -> ClassifiedReply:
    mera = one.mera
    answer: dict[str, Any] = (
        {"label": None, "probabilities": {}, "by": None} if mera.answer is None else dict(mera.answer)
    )
    return ClassifiedReply(
        **answer,
        decision=mera.decision,
        reason=mera.reason,
        predicted_error=mera.predicted_error,
        certified=mera.guarantee is not None and mera.guarantee.certified,
    )
