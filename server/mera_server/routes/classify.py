"""`POST /classify`: many inputs of one task in one batch; the label of each, how sure, and what steering did.

`POST /classify/{task}` does the same in the form of Hugging Face's text classification: labels and their shares alone.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from mera_server.bridge import Finished, complete, native
from mera_server.catalog import Catalog
from mera_server.errors import describe
from mera_server.replies import ClassifiedReply, ClassifyReply, LabelReply, UsageReply
from mera_server.resolve import Limits, Plan, plan
from mera_server.routes.generate import ERRORS, takes
from mera_server.runtime import Runtime
from mera_server.schemas import ClassifyBody, GenerateBody, LabelsBody, Parameters, Steering
from merasteer.errors import InvalidInput, MeraError
from merasteer.tasks import fields_of

__all__ = ["BODIES", "plans", "router"]

Body = TypeVar("Body", bound=BaseModel)

BODIES = (ClassifyBody, LabelsBody)


def router(runtime: Runtime) -> APIRouter:
    """The route over one runtime."""
    routes = APIRouter()

    @routes.post("/classify", response_model=ClassifyReply, responses=ERRORS, openapi_extra=takes(ClassifyBody))
    async def classify(request: Request) -> Response:
        """Classifies up to 256 inputs of a task at once; one that is wrong refuses them all, by its number."""
        body = _parse(ClassifyBody, await request.body())
        planned = plans(body, runtime.serving().catalog, runtime.limits)
        found = await complete(runtime, planned, request, _refused)
        return Response(_reply(body.task, found).model_dump_json(), media_type="application/json")

    @routes.post(
        "/classify/{task}", response_model=list[list[LabelReply]], responses=ERRORS, openapi_extra=takes(LabelsBody)
    )
    async def labels(task: str, request: Request) -> Response:
        """The labels of a task with their shares, the answer first, as Hugging Face's `text_classification` reads them."""
        body = _parse(LabelsBody, await request.body())
        inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        asked = ClassifyBody(task=task, inputs=inputs, steering=body.steering)
        found = await complete(runtime, plans(asked, runtime.serving().catalog, runtime.limits), request, _refused)
        most = body.parameters.top_k if body.parameters is not None else None
        return _json([_shares(one)[:most] for one in found])

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


def _parse(model: type[Body], raw: bytes) -> Body:
    """The body. Raises what `errors.parse` does, naming an item by its number."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        place = error.errors(include_url=False)[0]["loc"]
        known = describe(error, model)
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


def _shares(one: Finished) -> list[LabelReply]:
    """The labels of one answer, the one that was chosen first and then the likeliest; none where nothing was chosen.

    Chosen is the likeliest, unless a label probe said another or, of a free answer, none.
    """
    answer = one.mera.answer
    if answer is None:
        return []
    said = answer.label if answer.by == "label_probe" else None
    found = [LabelReply(label=label, score=share) for label, share in answer.probabilities.items()]
    return sorted(found, key=lambda label: (label.label != said, -label.score))


def _json(labels: list[list[LabelReply]]) -> Response:
    return Response(TypeAdapter(list[list[LabelReply]]).dump_json(labels), media_type="application/json")


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
