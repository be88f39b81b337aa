import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merasteer.errors import BadArtifact, InvalidInput, UnsupportedModel
from merasteer.meaning import ModelMeaning
from merasteer.store import ModelIdentity, identify, model_slug
from merasteer.store.identity import file_hashes, require_same

SIZES: dict[str, Any] = {"architecture": "LlamaForCausalLM", "layers": 3, "width": 8, "vocab": 50}
MEANING = ModelMeaning("a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64, {"rope_theta": 10000})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    for name in ("b.safetensors", "a.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"):
        (path / name).write_text(name)
    return path


def _identify(folder: Path) -> ModelIdentity:
    return identify(source=folder, meaning=MEANING, model_id=str(folder), **SIZES)


def _first(identity: ModelIdentity, weights: dict[str, str], tokenizer: str) -> Any:
    """The section of an artifact of schema 1, as it is read."""
    unknown = dict.fromkeys(("weights", "config", "chat_template", "end_tokens", "configuration"))
    return {**identity.manifest(), **unknown, "files": weights, "tokenizer": tokenizer}


def test_a_model_is_what_it_means_and_no_path_remains(folder: Path) -> None:
    found = _identify(folder)
    assert (found.id, found.slug, found.meaning) == ("tiny", "tiny", MEANING)
    assert found.manifest() == {
        "id": "tiny", **SIZES, "weights": "a" * 64, "config": "b" * 64, "tokenizer": "c" * 64, "chat_template": "d" * 64,
        "end_tokens": "e" * 64, "configuration": {"rope_theta": 10000},
    }  # fmt: skip
    assert str(folder.parent) not in str(found.manifest())
    assert found == replace(found, source=folder.parent)  # where it lies is no part of it


def test_the_files_are_hashed_for_artifacts_of_before(folder: Path) -> None:
    weights, tokenizer = file_hashes(folder)
    assert weights == {f"{x}.safetensors": hashlib.sha256(f"{x}.safetensors".encode()).hexdigest() for x in "ab"}
    assert len(tokenizer) == 64
    (folder / "config.json").write_text("other")
    assert file_hashes(folder) == (weights, tokenizer)
    (folder / "a.safetensors").write_text("other weights")
    assert file_hashes(folder)[0] != weights
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert file_hashes(folder)[1] != tokenizer


def test_what_is_no_folder_has_no_files_of_before(folder: Path) -> None:
    assert file_hashes(None) == file_hashes(folder / "a.safetensors") == ({}, "")


def test_a_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = file_hashes(folder)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert file_hashes(folder) == first


def test_a_file_that_cannot_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (folder / "c.safetensors").mkdir()  # no file: passed over
    assert len(file_hashes(folder)[0]) == 2
    monkeypatch.setattr(hashlib, "file_digest", denied)
    (folder / "a.safetensors").write_text("other weights")
    with pytest.raises(UnsupportedModel, match=r"cannot be read \(Permission denied\); check its permissions"):
        file_hashes(folder)


@pytest.mark.parametrize(
    ("model_id", "slug"),
    [
        ("owner/name", "owner--name"),
        ("gpt2", "gpt2"),
        ("owner/na me:β", "owner--na-me--"),
        ("/models/deep/Llama-3.2", "Llama-3.2"),
        ("/models/deep/trailing/", "trailing"),
        ("./here/x", "x"),
        ("a/b/c", "c"),
        ("owner/..", "owner--.."),
        ("/models/.hidden", "hidden"),
    ],
)
def test_slugs_are_safe_folder_names(model_id: str, slug: str) -> None:
    assert model_slug(model_id) == slug
    assert Path(slug).name == slug


def test_a_local_folder_with_one_slash_is_local(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert model_slug(f"{folder.parent.name}/tiny") == "tiny"


def test_a_model_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="model"):
        model_slug("/")


def test_only_the_same_model_passes(identity: ModelIdentity) -> None:
    section: Any = identity.manifest()
    require_same(section, replace(identity, id="a copy"))
    for name, value in {"layers": 4, "width": 9, "vocab": 51, "architecture": "X"}.items():
        with pytest.raises(BadArtifact, match=rf"model\.{name}: made for"):
            require_same(section, replace(identity, **{name: value}))
    for name in ("tokenizer", "weights"):
        other = replace(identity, meaning=replace(identity.meaning, **{name: "0" * 64}))
        with pytest.raises(BadArtifact, match=rf"model\.{name}: made for (other|another) {name} than"):
            require_same(section, other)


@pytest.mark.parametrize("part", ["config", "chat_template", "end_tokens"])
def test_what_ends_a_certificate_alone_rejects_nothing(identity: ModelIdentity, part: str) -> None:
    """The readouts still fit; the server tells what differs (`Conditions`)."""
    section: Any = identity.manifest()
    require_same(section, replace(identity, meaning=replace(identity.meaning, **{part: "0" * 64})))


def test_an_artifact_of_before_is_known_by_the_files(folder: Path) -> None:
    identity = _identify(folder)
    weights, tokenizer = file_hashes(folder)
    require_same(_first(identity, weights, tokenizer), identity)
    with pytest.raises(BadArtifact, match=r"model\.weights: made for other weights"):
        require_same(_first(identity, weights | {"a.safetensors": "0" * 64}, tokenizer), identity)
    with pytest.raises(BadArtifact, match=r"model\.tokenizer: made for another tokenizer"):
        require_same(_first(identity, weights, "0" * 64), identity)
    with pytest.raises(BadArtifact, match=r"model\.weights"):
        require_same(_first(identity, weights, tokenizer), replace(identity, source=None))
