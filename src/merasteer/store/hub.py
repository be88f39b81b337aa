"""Artifacts to a Hugging Face Hub and back. What a hub sends is not believed: nothing is placed in the store before all that
was asked for has passed the checks of `load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from merasteer.errors import BadArtifact, UnknownProbe
from merasteer.store.durable import temporary
from merasteer.store.identity import model_slug
from merasteer.store.manifest import SHORT
from merasteer.store.reading import LIMITS, contents, unpack
from merasteer.store.repository import Repository, asked
from merasteer.store.writing import install, unwritable

__all__ = ["pull", "push"]


def push(folder: Path, repo: str, *, public: bool = False, default: bool = True, revision: str | None = None) -> str:
    """Address of the one commit that holds the artifact of `folder` and, if `default`, the `latest` that names it.

    A repository that is not there is made, private unless `public`. Raises BadArtifact for what `load` refuses, InvalidInput
    in one line for what the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = contents(folder)
    artifact = unpack(folder.parent.name, folder.name, files.__getitem__)
    where = Path(model_slug(artifact.manifest["model"]["id"])) / artifact.task.name
    content = {f"{(where / folder.name).as_posix()}/{name}": data for name, data in files.items()}
    if default:
        content[f"{where.as_posix()}/latest"] = folder.name.encode() + b"\n"
    operations = [CommitOperationAdd(path, data) for path, data in content.items()]

    def commit() -> str:
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        message = f"{where.as_posix()}: {folder.name}"
        return str(api.create_commit(repo, operations, commit_message=message, revision=revision).commit_url)

    return asked(repo, revision, "written to", commit)


def pull(
    store: Path, repo: str, *, digest: str | None = None, revision: str | None = None, default: bool = True
) -> list[Path]:
    """The folders of the artifacts, verified, in the store: the one whose digest starts so, else all that a `latest` names.

    The local `latest` follows the repository's, unless not `default`. Nothing becomes visible before everything is verified.
    Raises UnknownProbe, BadArtifact, or InvalidInput where hub or store fail.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        with temporary(store) as staging:
            repository = Repository(repo, revision, staging)
            named = {where: repository.latest(where) for where, task in repository.tasks.items() if task.latest}
            wanted = _wanted(repository, named, digest)
            verified = [(where, name, _verified(repository, where, name, digest or "")) for where, name in wanted]
            return [
                install(store, Path(where, name), files, default=default and named.get(where) == name)
                for where, name, files in verified
            ]
    except OSError as error:
        raise unwritable(store, error) from error


def _wanted(repository: Repository, named: Mapping[str, str | None], digest: str | None) -> list[tuple[str, str]]:
    """(<slug>/<task>, digest12) of what is to be pulled. named: what each `latest` names."""
    repo, tasks = repository.name, repository.tasks
    if digest is None:
        found = [(where, name) for where, name in named.items() if name]
        if not found:
            raise UnknownProbe(f"probe: {repo} has no latest that names an artifact; give a digest")
        for where, name in found:
            if name not in tasks[where].artifacts:
                raise BadArtifact(f"{where}/{name}: latest names it and {repo} lacks it; push it, or give a digest")
        return found
    prefix = digest[:SHORT].lower()
    found = [(where, name) for where, task in tasks.items() for name in task.artifacts if name.startswith(prefix)]
    if len(found) > 1:
        raise UnknownProbe(f"probe: this prefix fits {len(found)} artifacts of {repo}; give more digits of the digest")
    if not found or not prefix:
        raise UnknownProbe(f"probe: {repo} holds no artifact with this prefix; check the digest")
    return found


def _verified(repository: Repository, where: str, name: str, digest: str) -> dict[str, bytes]:
    """The files of one artifact, which `unpack` took and which lie where they belong."""
    slug, task = where.split("/")
    sizes = repository.tasks[where].artifacts[name]
    for file, limit in LIMITS.items():
        if file not in sizes:
            raise BadArtifact(f"{task}/{name}: {file}: is missing; push the artifact again")
        if sizes[file] > limit:
            raise BadArtifact(
                f"{task}/{name}: {file}: {sizes[file]} bytes exceed the limit of {limit}; it is no artifact"
            )
    files = {file: repository.fetch(f"{where}/{name}/{file}") for file in LIMITS}
    artifact = unpack(task, name, files.__getitem__)
    if (model_slug(artifact.manifest["model"]["id"]), artifact.task.name) != (slug, task):
        raise BadArtifact(f"{where}/{name}: made for another model or task than its folder says; push it again")
    if not artifact.digest.startswith(digest.lower()):
        raise UnknownProbe(f"probe: {repository.name} holds no artifact with this prefix; check the digest")
    return files
