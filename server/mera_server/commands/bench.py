"""`mera bench`: the study, models × tasks × methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mera_server.commands.options import Config, autoencoders, indices, option, several

__all__ = ["bench", "spread"]

SEVERAL = ("--models", "--tasks", "--methods", "--answer-positions")


def bench(
    models: Annotated[
        list[str],
        option(
            "--models",
            "model folders, .gguf files or hub ids, or demo, one or more",
            variable="MERA_BENCH_MODELS",  # MERA_MODELS is where the tests find real ones
        ),
    ],
    tasks: Annotated[list[str], option("--tasks", "names or paths of tasks, one or more")],
    out: Annotated[
        Path, option("--out", "folder for records, table and plots; a study that was stopped goes on there")
    ],
    methods: Annotated[
        list[str] | None, option("--methods", "names of mera methods, one or more (default: all)")
    ] = None,
    answer_positions: Annotated[
        list[str] | None, option("--answer-positions", "last, exact or both (default: the task's own)")
    ] = None,
    compat: Annotated[
        str | None, option("--compat", "reference: the arithmetic of the research code beside ours, for comparison")
    ] = None,
    seed: Annotated[int | None, option("--seed", "seed of every random draw (default: 0)")] = None,
    delta: Annotated[float | None, option("--delta", "risk of certifying what is no gain (default: 0.05)")] = None,
    epsilon: Annotated[float | None, option("--epsilon", "gain in accuracy that must be exceeded (default: 0)")] = None,
    second_chances: Annotated[
        int | None, option("--second-chances", "candidates to test, each at delta / m (default: 1)")
    ] = None,
    hook_points: Annotated[str | None, option("--hook-points", "hook points to try, with commas")] = None,
    positions: Annotated[
        str | None, option("--positions", "generation (default), all, last, or prompt indices with commas")
    ] = None,
    ordering: Annotated[
        int | None, option("--ordering", "training items that rank the candidates (default: 250)")
    ] = None,
    sae: Annotated[
        str | None,
        option("--sae", "layer=folder of sparse autoencoders to probe as well, with commas; for the report alone"),
    ] = None,
    dtype: Annotated[str, option("--dtype", "auto, float32, bfloat16 or float16")] = "auto",
    device: Annotated[str, option("--device", "auto, cpu or cuda[:n]")] = "auto",
    device_map: Annotated[str | None, option("--device-map", "how accelerate places the model, such as auto")] = None,
    track: Annotated[str | None, option("--track", "wandb or trackio: log every cell there too")] = None,
    keep: Annotated[bool, option("--keep", "leave activations behind cells that are done")] = False,
    config: Config = None,  # noqa: ARG001 - read by its callback
) -> int:
    """Measure methods on models and tasks; prints the table. All is checked first; stopped anywhere, it goes on where it was."""
    from merasteer import demo
    from merasteer.bench import Grid, bench, check_grid, chosen_methods, write_results
    from merasteer.bench.tracking import check_tracker, tracker
    from merasteer.pipeline import Bars, Loading, Options, attended, quiet

    given: dict[str, Any] = {
        "seed": seed,
        "delta": delta,
        "epsilon": epsilon,
        "chances": second_chances,
        "hook_points": several(hook_points),
        "positions": indices(positions),
        "ordering": ordering,
        "sae": autoencoders(sae),
    }
    options = Options(**{name: value for name, value in given.items() if value is not None})
    check_tracker(track)
    grid = Grid.of(
        [demo.named(model) for model in models],
        tasks,
        chosen_methods(methods or ["all"], compat),
        out,
        options,
        search=[demo.tasks_dir()],
        positions=answer_positions or (),
        loading=Loading(dtype, device, device_map),
        keep=keep,
    )
    check_grid(grid)
    tracked = tracker(track, "mera-bench", {"models": models, "tasks": tasks, **options.as_dict()})
    bars = Bars(lines=True)
    with quiet(), attended(bars):
        cells = bench(grid, bars, tracked.log)
    paths = write_results(grid, cells)
    tracked.close(paths)
    typer.echo(paths[0].read_text(encoding="utf-8"))
    broken = [f"{cell['model']} {cell['task']} {cell['method']}: {cell['error']}" for cell in cells if cell["error"]]
    if broken:
        typer.echo(f"mera: {len(broken)} of {len(cells)} cells failed; run it again to retry them:", err=True)
        for line in broken:
            typer.echo(f"  {line}", err=True)
    return 1 if broken else 0


def spread(arguments: Sequence[str]) -> list[str]:
    """The command line with an option of several values given once for each of them.

    >>> spread(["bench", "--models", "a", "b", "--out", "o"])
    ['bench', '--models', 'a', '--models', 'b', '--out', 'o']
    """
    return list(_spread(arguments)) if list(arguments[:1]) == ["bench"] else list(arguments)


def _spread(arguments: Sequence[str]) -> Iterator[str]:
    flag, values = None, 0
    for argument in arguments:
        if argument.startswith("-"):
            flag, values = (argument if argument in SEVERAL else None), 0
        elif flag is not None:
            if values:
                yield flag
            values += 1
        yield argument
