"""`mera run`, and its stages one by one: collect, fit, calibrate, evaluate. Each goes on where an earlier run was."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mera_server.commands.options import Config, autoencoders, indices, option, several, show, table
from mera_server.settings import Settings

if TYPE_CHECKING:
    from merasteer.pipeline import Stage

__all__ = ["COMMANDS"]

DOCS = {
    "run": "Collect, fit, calibrate, evaluate and publish; prints a summary of the report.",
    "collect": "Read activations and errors of every split.",
    "fit": "Go on to fit the probes; prints their held-out scores, layer by layer.",
    "calibrate": "Go on to rank the candidates and to test the best.",
    "evaluate": "Go on to measure on the test split; prints a summary of the report, publishes nothing.",
}

REPORTED = ("report", "json")  # options of the stages that end in a report
PROBES = ("hook_point", "readout", "layer", "rmse", "dummy_rmse", "auroc", "standard_error", "idle")
UNTIL: dict[str, Stage] = {
    "run": "publish", "collect": "collect", "fit": "fit", "calibrate": "calibrate", "evaluate": "evaluate",
}  # fmt: skip


def run(
    *,
    stage: str,
    model: Annotated[str, option("--model", "model folder, .gguf file or hub id, or demo")],
    task: Annotated[str, option("--task", "name or path of a task")],
    data: Annotated[Path | None, option("--data", "rows, in place of the task's own")] = None,
    out: Annotated[
        Path | None, option("--out", f"store to publish to (default: {Settings().store})", "--store")
    ] = None,
    report: Annotated[Path | None, option("--report", "file for the report, as JSON")] = None,
    json: Annotated[bool, option("--json", "print the report as JSON instead of its summary")] = False,
    seed: Annotated[int | None, option("--seed", "seed of every random draw (default: 0)")] = None,
    delta: Annotated[float | None, option("--delta", "risk of certifying what is no gain (default: 0.05)")] = None,
    epsilon: Annotated[float | None, option("--epsilon", "gain in accuracy that must be exceeded (default: 0)")] = None,
    second_chances: Annotated[
        int | None, option("--second-chances", "candidates to test, each at delta / m (default: 1)")
    ] = None,
    hook_points: Annotated[str | None, option("--hook-points", "hook points to try, with commas")] = None,
    directions: Annotated[str | None, option("--directions", "directions to try, with commas")] = None,
    positions: Annotated[
        str | None, option("--positions", "generation (default), all, last, or prompt indices with commas")
    ] = None,
    family: Annotated[str | None, option("--family", "ridge (default), lasso, least_squares or logistic")] = None,
    candidates: Annotated[
        str | None, option("--candidates", "what may be chosen, with commas (default: mera, logit_bias, mera+bias)")
    ] = None,
    layers: Annotated[
        str | None,
        option(
            "--layers",
            "layers that act: all that read the error (default), best, median, worst, or indices with commas",
        ),
    ] = None,
    ordering: Annotated[
        int | None, option("--ordering", "training items that rank the candidates (default: 250)")
    ] = None,
    grid: Annotated[str | None, option("--grid", "logit (default) or paper")] = None,
    top_k: Annotated[
        int | None, option("--top-k", "items at either end of the contrastive direction (default: 100)")
    ] = None,
    test: Annotated[str | None, option("--test", "mcnemar or betting (default: by epsilon)")] = None,
    allow_collapse: Annotated[
        bool,
        typer.Option("--allow-collapse", help="certify what passes though answers collapse; the word stays with it"),
    ] = False,
    sae: Annotated[
        str | None,
        option("--sae", "layer=folder of sparse autoencoders to probe as well, with commas; for the report alone"),
    ] = None,
    dtype: Annotated[str, option("--dtype", "auto, float32, bfloat16 or float16")] = "auto",
    device: Annotated[str, option("--device", "auto, cpu or cuda[:n]")] = "auto",
    device_map: Annotated[str | None, option("--device-map", "how accelerate places the model, such as auto")] = None,
    config: Config = None,  # noqa: ARG001 - read by its callback
) -> None:
    from merasteer import demo, pipeline

    given: dict[str, Any] = {
        "seed": seed,
        "delta": delta,
        "epsilon": epsilon,
        "chances": second_chances,
        "hook_points": several(hook_points),
        "directions": several(directions),
        "positions": indices(positions),
        "family": family,
        "candidates": several(candidates),
        "layers": indices(layers),
        "ordering": ordering,
        "grid": grid,
        "top_k": top_k,
        "test": test,
        "sae": autoencoders(sae),
        "allow_collapse": allow_collapse,
    }
    options = pipeline.Options(**{name: value for name, value in given.items() if value is not None})
    store, bars = out or Settings().store, pipeline.Bars(lines=True)
    with pipeline.quiet():
        job = pipeline.prepare(
            demo.named(model),
            task,
            store,
            options,
            data=data,
            search=[demo.tasks_dir()],
            loading=pipeline.Loading(dtype, device, device_map),
        )
        with pipeline.attended(bars):
            if stage == "fit":
                rows = pipeline.stages(job, "fit", bars)["fit"].facts["probes"]
                table(PROBES, ([row[name] for name in PROBES] for row in rows))
                return
            found = pipeline.run_job(job, UNTIL[stage], bars)
    if found is None:
        typer.echo(f"{stage}: done")
        return
    if stage == "run":
        found = {**found, "serve": shlex.join(["mera", "serve", "--model", model, "--store", str(store)])}
    if report is not None:
        pipeline.write_report(report, found)
    if json:
        show(found)
    else:
        typer.echo(pipeline.summary(found))


def _command(name: str) -> Callable[..., None]:
    """`run` with its stage fixed, as typer takes it: the same options for every stage."""

    def command(**given: Any) -> None:
        run(stage=name, **given)

    kept = [
        parameter
        for parameter in inspect.signature(run, eval_str=True).parameters.values()
        if parameter.name != "stage" and (name in ("run", "evaluate") or parameter.name not in REPORTED)
    ]
    command.__name__, command.__doc__ = name, DOCS[name]
    command.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return command


COMMANDS = tuple(_command(name) for name in DOCS)
