"""Fetching a model's files from a hub, and what to do about each way in which that fails."""

from __future__ import annotations

from pathlib import Path

from merasteer.errors import InvalidInput

__all__ = ["fetch", "first_line"]

# Weights, configuration, and all that the tokenizer is identified by (merasteer.store.identity); never other formats of the weights.
FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


def fetch(model_id: str) -> Path:
    """The folder of a repository's files, downloaded unless the cache holds them. The library reads the token from HF_TOKEN.

    Raises InvalidInput in one line that says what to do.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, allow_patterns=FILES))
    except Exception as error:
        why, remedy = _explain(model_id, error)
        raise InvalidInput(f"model: {model_id!r} cannot be loaded ({why}); {remedy}") from error


def _explain(model_id: str, error: Exception) -> tuple[str, str]:
    """What went wrong, and what to do. The order matters: the library's errors inherit from one another."""
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{model_id}"
    if isinstance(error, errors.GatedRepoError):
        token = "HF_TOKEN to a token of that account"
        if get_token() is None:
            return "it is gated and no token was sent", f"accept its licence at {page} and set {token}"
        return "it is gated and the token that was sent has no access", f"accept its licence at {page} or set {token}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such folder and no such repository", f"check the name; if {page} is private, set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {constants.DEFAULT_REVISION!r}", "download the one you want and give its folder"
    if isinstance(error, errors.HFValidationError):
        return "that is no hub id", "give a model folder or a hub id such as owner/name"
    answered = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
    if isinstance(answered, errors.HfHubHTTPError):
        status = answered.response.status_code
        if status in (401, 403):
            return f"the hub refused access, status {status}", f"set HF_TOKEN to a valid token that may read {page}"
        return f"the hub answered with status {status}", "try again later, or give a model folder"
    if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return "it is not in the cache and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE, or give a model folder"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{constants.ENDPOINT} cannot be reached and the cache holds no whole copy",
            "check the network, or give a model folder",
        )
    return first_line(error), "give a model folder or a reachable hub id"


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its message, or its name."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
