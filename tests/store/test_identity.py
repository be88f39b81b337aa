import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from merasteer.errors import BadArtifact, InvalidInput, UnsupportedModel
from merasteer.store import ModelIdentity, identify, model_slug
from merasteer.store.identity import require_same

SIZES = {"architecture": "LlamaForCausalLM", "layers": 3, "width": 8, "vocab": 50}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    for name in ("b.safetensors", "a.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"):
        (path / name).write_text(name)
    return path


def _identify(folder: Path) -> ModelIdentity:
    return identify(folder, model_id=str(folder), **SIZES)  # type: ignore[arg-type]


def test_weights_and_tokenizer_are_hashed_and_no_path_remains(folder: Path) -> None:
    found = _identify(folder)
    assert found.weights == {f"{x}.safetensors": hashlib.sha256(f"{x}.safetensors".encode()).hexdigest() for x in "ab"}
    assert (found.id, found.slug, len(found.tokenizer)) == ("tiny", "tiny", 64)
    assert str(folder.parent) not in str(found.manifest())


def test_content_decides_and_changes_are_seen(folder: Path) -> None:
    first = _identify(folder)
    (folder / "config.json").write_text("other")
    assert _identify(folder) == first
    (folder / "a.safetensors").write_text("other weights")
    assert _identify(folder).weights != first.weights
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert _identify(folder).tokenizer != first.tokenizer


def test_a_file_of_weights_is_its_own_and_needs_the_digest_of_its_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_text("weights and a tokenizer")
    found = identify(path, model_id="tiny", tokenizer="a" * 64, **SIZES)  # type: ignore[arg-type]
    assert found.weights == {"tiny.gguf": hashlib.sha256(b"weights and a tokenizer").hexdigest()}
    assert (found.id, found.slug, found.tokenizer) == ("tiny", "tiny", "a" * 64)
    with pytest.raises(UnsupportedModel, match="no tokenizer"):
        identify(path, model_id="tiny", **SIZES)  # type: ignore[arg-type]


def test_a_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _identify(folder)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert _identify(folder) == first


@pytest.mark.parametrize(
    ("kept", "reason"), [("tokenizer.json", "no .*safetensors"), ("a.safetensors", "no tokenizer")]
)
def test_a_folder_without_weights_or_tokenizer_is_refused(folder: Path, kept: str, reason: str) -> None:
    for path in folder.iterdir():
        if path.name != kept:
            path.unlink()
    (folder / "pytorch_model.bin").write_text("pickle")
    with pytest.raises(UnsupportedModel, match=reason):
        _identify(folder)


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
    section = identity.manifest()
    require_same(section, replace(identity, id="a copy"))  # type: ignore[arg-type]
    changes = {
        "layers": 4,
        "width": 9,
        "vocab": 51,
        "architecture": "X",
        "tokenizer": "0" * 64,
        "weights": {"a": "0" * 64},
    }
    for name, value in changes.items():
        with pytest.raises(BadArtifact, match=rf"model\.{name}"):
            require_same(section, replace(identity, **{name: value}))  # type: ignore[arg-type]
