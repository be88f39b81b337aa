"""`mera probes`: what the stores hold, whether it is sound, what differs, and random artifacts for load tests."""

from __future__ import annotations

from typing import Annotated

import typer

from mera_server.commands import probes_operations
from mera_server.commands.canaries import replay
from mera_server.commands.options import Config, Store, option, show, stores, table
from mera_server.settings import Settings
from merasteer.errors import BadArtifact, InvalidInput

__all__ = ["app"]

app = typer.Typer(help="Artifacts: list, show, verify, diff, plant, push, pull, gc.", rich_markup_mode=None)
COLUMNS = ("digest", "task", "model", "status", "certified", "method", "alpha", "hook_point")


@app.command("list")
def list_(store: Store = None, config: Config = None) -> None:  # noqa: ARG001 - read by its callback
    """Every artifact with its task, model and status."""
    from merasteer.store import scan, summary

    facts = [summary(entry) | {"digest": (entry.digest or entry.path.name)[:12]} for entry in scan(stores(store))]
    table(COLUMNS, ([fact[name] for name in COLUMNS] for fact in facts))


@app.command("show")
def show_(
    digest: Annotated[str, typer.Argument(help="first digits")],
    store: Store = None,
    config: Config = None,  # noqa: ARG001
) -> None:
    """One artifact as JSON."""
    from merasteer.store import resolve_prefix, scan, summary

    entry = resolve_prefix(scan(stores(store)), digest)
    artifact = entry.artifact
    held = {} if artifact is None else {"manifest": dict(artifact.manifest), "calibration": dict(artifact.calibration)}
    show({**summary(entry), **held})


@app.command()
def verify(
    digest: Annotated[str | None, typer.Argument(help="first digits; none: all of them")] = None,
    model: Annotated[
        str | None, option("--model", "model folder or hub id: replay the canaries of what is certified for it")
    ] = None,
    dtype: Annotated[str, option("--dtype", "auto, float32, bfloat16 or float16")] = "auto",
    device: Annotated[str, option("--device", "auto, cpu or cuda[:n]")] = "auto",
    store: Store = None,
    config: Config = None,  # noqa: ARG001
) -> None:
    """Check hashes, shapes and certificates, with --model the canaries too; exit code 2 if one artifact is bad or off."""
    from merasteer.store import scan

    entries = [entry for entry in scan(stores(store)) if (entry.digest or entry.path.name).startswith(digest or "")]
    if digest is not None and not entries:
        raise InvalidInput(f"digest: {digest!r} fits no artifact; see mera probes list")
    replayed = {} if model is None else replay(stores(store), model, dtype, device, digest or "")
    for entry in entries:
        told = "; ".join(filter(None, (entry.reason or "sound", replayed.get(entry.digest or "", ("", False))[0])))
        typer.echo(f"{(entry.digest or entry.path.name)[:12]}  {entry.task}  {told}")
    bad = sum(entry.status == "rejected" for entry in entries)
    if bad:
        raise BadArtifact(f"store: {bad} of {len(entries)} artifacts are rejected; publish them again or remove them")
    off = sum(one for _, one in replayed.values())
    if off:
        raise BadArtifact(
            f"store: {off} of {len(replayed)} artifacts are off here; test them again with mera recertify"
        )


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="first digits of one artifact")],
    second: Annotated[str, typer.Argument(help="and of another")],
    store: Store = None,
    config: Config = None,  # noqa: ARG001
) -> None:
    """What differs between two artifacts, as JSON: fields, splits, candidates, certificates, the angle of the weights."""
    from merasteer.store import differences, resolve_prefix, scan

    entries = scan(stores(store))
    one, two = (resolve_prefix(entries, digest).artifact for digest in (first, second))
    assert one is not None  # both are loaded: resolve_prefix raises for what was rejected
    assert two is not None
    show(differences(one, two))


for command in probes_operations.COMMANDS:
    app.command()(command)


@app.command()
def plant(
    model: Annotated[str, option("--model", "model folder, .gguf file or hub id, or demo")],
    task: Annotated[str, option("--task", "name or path of a task")],
    seed: Annotated[int, option("--seed", "seed of the random readouts")] = 0,
    hook_point: Annotated[str, option("--hook-point", "residual, mlp_input or reference")] = "residual",
    store: Store = None,
    config: Config = None,  # noqa: ARG001
) -> None:
    """Publish a random, uncertified artifact with readouts of unit length at every layer."""
    from mera_server.loading import identity_of
    from merasteer import demo
    from merasteer.engine import load_model
    from merasteer.store import plant as plant_artifact
    from merasteer.tasks import load_task, resolve
    from merasteer.types import HOOK_POINTS

    if hook_point not in HOOK_POINTS:
        raise InvalidInput(f"hook-point: {hook_point!r} is unknown; give one of {', '.join(HOOK_POINTS)}")
    described = load_task(task, search=[demo.tasks_dir()])
    loaded = load_model(demo.named(model))
    served = resolve(described, loaded.tokenizer)
    typer.echo(str(plant_artifact(store or Settings().store, identity_of(loaded), served, hook_point, seed)))
