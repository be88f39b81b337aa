"""`mera recertify`: certified artifacts tested again under the installed versions and the dtype given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mera_server.commands.options import Config, option, show
from mera_server.settings import Settings
from merasteer.errors import InvalidInput

__all__ = ["recertify"]


def recertify(
    model: Annotated[str, option("--model", "model folder, .gguf file or hub id, or demo")],
    task: Annotated[
        str | None, option("--task", "name or path of a task (default: every task whose default artifact is certified)")
    ] = None,
    probe: Annotated[
        str | None, option("--probe", "first digits of an artifact that is not the default of its task")
    ] = None,
    data: Annotated[Path | None, option("--data", "rows, in place of the task's own")] = None,
    store: Annotated[Path | None, option("--store", f"folder of artifacts (default: {Settings().store})")] = None,
    dtype: Annotated[str, option("--dtype", "auto, float32, bfloat16 or float16")] = "auto",
    device: Annotated[str, option("--device", "auto, cpu or cuda[:n]")] = "auto",
    device_map: Annotated[str | None, option("--device-map", "how accelerate places the model, such as auto")] = None,
    config: Config = None,  # noqa: ARG001 - read by its callback
) -> None:
    """Test certified artifacts again on the installed versions; publish them with the new certificate, or abstaining."""
    from mera_server.loading import identity_of
    from merasteer import demo, pipeline

    where = store or Settings().store
    if not where.is_dir():
        raise InvalidInput(f"store: no such folder {str(where)!r}; name the store that mera run published to")
    loaded = pipeline.Loading(dtype, device, device_map).load(demo.named(model))
    found = pipeline.renewals(
        loaded, identity_of(loaded), where, task=task, probe=probe, data=data, search=[demo.tasks_dir()]
    )
    show({"recertified": [pipeline.recertify(one) for one in found]})
