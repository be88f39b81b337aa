"""A model repository of a Hugging Face Hub as a store: what it holds at one commit, its files, and what to say when it fails.

<slug>/<task>/<digest12>/    manifest.json   calibration.json   probe.safetensors
<slug>/<task>/latest

The library takes the token from HF_TOKEN. Paths that do not have this form are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from merasteer.errors import InvalidInput
from merasteer.store.fields import one_line
from merasteer.store.identity import SLUG
from merasteer.store.manifest import SHORT, TASK_NAME
from merasteer.store.reading import LIMITS

__all__ = ["Repository", "TaskFolder", "asked"]

FILE = re.compile(
    rf"(?P<where>{SLUG.pattern}/{TASK_NAME.pattern})/"
    rf"(?:latest|(?P<digest>[0-9a-f]{{{SHORT}}})/(?P<name>{'|'.join(map(re.escape, LIMITS))}))"
)
LATEST_LIMIT = 200  # bytes
T = TypeVar("T")


@dataclass
class TaskFolder:
    """What lies under <slug>/<task>: digest12 -> file -> bytes, and whether there is a `latest`."""

    latest: bool = False
    artifacts: dict[str, dict[str, int]] = field(default_factory=dict)


class Repository:
    """One commit of a repository. `tasks`: <slug>/<task> -> what lies there. Files come through the folder `staging`.

    Raises InvalidInput in one line where the hub does not answer, here and in `fetch`.
    """

    def __init__(self, name: str, revision: str | None, staging: Path) -> None:
        from huggingface_hub import HfApi

        self.name, self.revision, self.staging = name, revision, staging
        info = asked(name, revision, "read", lambda: HfApi().model_info(name, revision=revision, files_metadata=True))
        self.commit = info.sha
        self.tasks: dict[str, TaskFolder] = {}
        for sibling in info.siblings or []:
            if match := FILE.fullmatch(sibling.rfilename):
                task = self.tasks.setdefault(match["where"], TaskFolder())
                if match["digest"]:
                    task.artifacts.setdefault(match["digest"], {})[match["name"]] = sibling.size or 0
                else:
                    task.latest = (sibling.size or 0) <= LATEST_LIMIT

    def fetch(self, path: str) -> bytes:
        """The file as it was at this commit."""
        from huggingface_hub import hf_hub_download

        def download() -> bytes:
            return Path(hf_hub_download(self.name, path, revision=self.commit, cache_dir=self.staging)).read_bytes()

        return asked(self.name, self.revision, "read", download)

    def latest(self, where: str) -> str | None:
        """The digest12 that <slug>/<task>/latest names, if it names one."""
        text = self.fetch(f"{where}/latest").strip().decode("ascii", "replace")
        return text[:SHORT] if re.fullmatch(rf"[0-9a-f]{{{SHORT},64}}", text) else None


def asked(repo: str, revision: str | None, verb: str, ask: Callable[[], T]) -> T:
    """What the hub answers, without progress bars. Raises InvalidInput in one line where it does not."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return ask()
    except Exception as error:
        why, remedy = _explain(repo, revision, error)
        raise InvalidInput(one_line(f"hub: {repo} cannot be {verb} ({why}); {remedy}")) from error


def _explain(repo: str, revision: str | None, error: Exception) -> tuple[str, str]:
    """What went wrong, and what to do. The order matters: the library's errors inherit from one another."""
    from huggingface_hub import constants, errors, get_token

    token = "set HF_TOKEN to a token that may do this" if get_token() else "set HF_TOKEN"
    if isinstance(error, errors.HFValidationError):
        return "that is no hub id", "give one such as owner/name"
    if isinstance(error, errors.GatedRepoError):
        return "it is gated", f"accept its terms at {constants.ENDPOINT}/{repo} and {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision or constants.DEFAULT_REVISION!r}", "check the revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository", f"check the name; if it is private, {token}"
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    answered = next((one for one in causes if isinstance(one, errors.HfHubHTTPError)), None)
    if answered is not None:
        status = answered.response.status_code
        return f"the hub answered with status {status}", token if status in (401, 403) else "try again later"
    if any(isinstance(one, errors.OfflineModeIsEnabled) for one in causes):
        return "HF_HUB_OFFLINE is set", "unset it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror, "free some space, or check the permissions"
    first = (str(causes[-1]) or type(causes[-1]).__name__).strip().splitlines()[0]
    return f"{constants.ENDPOINT}: {first}", "check the network and HF_ENDPOINT"
