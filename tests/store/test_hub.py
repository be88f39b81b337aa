"""Push and pull against a hub that speaks the real protocol on a socket, through the real client library."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from mera_server.cli import main

from merasteer.errors import BadArtifact, InvalidInput, UnknownProbe
from merasteer.store import ModelIdentity, latest, ledger, pull, push, scan
from merasteer.store.repository import LATEST_LIMIT

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client library's own upload
TOKEN, SLUG = "hf_writes", "owner--name"


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories in memory: `repos[name]` is path -> bytes. Reading is open but for "secret"; writing needs the token.

    *.safetensors goes the way of large files: batch, upload, and only its hash in the commit.
    """

    repos: dict[str, dict[str, bytes]]
    large: dict[str, bytes]
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.asked.append(path)
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if name not in self.repos or (name == "acme/secret" and not self.authorised):
            return self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
        if "/broken" in name:
            return self.answer(500 if self.command == "POST" else 418)
        files = self.repos[name]
        if path.startswith("api/models/"):
            if "/revision/" in path and not path.endswith(("/main", self.commit(files))):
                return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
            return self.answer(200, {"id": name, "sha": self.commit(files), "siblings": siblings, "tags": []})
        data = files[path.split("/resolve/")[1].split("/", 1)[1]]
        headers = {"X-Repo-Commit": self.commit(files), "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        return self.answer(200, data, headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path).strip("/")
        self.asked.append(path)
        if not self.authorised:
            return self.answer(401)
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repos:
                return self.answer(409, {"url": f"{self.base}/{name}"})
            self.repos[name] = {}
            self.asked.append(str(asked.get("private", asked.get("visibility"))))
            return self.answer(200, {"url": f"{self.base}/{name}"})
        if path.endswith("/info/lfs/objects/batch"):
            return self.answer(200, {"objects": [self.batch(one) for one in json.loads(body)["objects"]]})
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if "/preupload/" in path:
            modes = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith("safetensors") else "regular"}
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": [{**one, "shouldIgnore": False} for one in modes]})
        assert "/commit/" in path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repos[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repos[name][value["path"]] = self.large[value["oid"]]
        oid = self.commit(self.repos[name])
        return self.answer(200, {"commitUrl": f"{self.base}/{name}/commit/{oid}", "commitOid": oid})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.large[hashlib.sha256(data).hexdigest()] = data
        self.answer(200)

    def batch(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.base}/large/{one['oid']}"}}}

    @property
    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    @property
    def base(self) -> str:
        return f"http://{self.headers['Host']}"

    @staticmethod
    def commit(files: dict[str, bytes]) -> str:
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub of its own for each test, and the client library of this process turned to it, with the token."""
    serving = type("Serving", (Hub,), {"repos": {}, "large": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serving) as server:
        server.daemon_threads = True
        server.block_on_close = False  # the client keeps its connections
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
        monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield serving
        server.shutdown()
        thread.join()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_pushed_is_pulled_byte_for_byte(make: Any, hub: type[Hub], tmp_path: Path) -> None:
    folder = make().publish(tmp_path / "mine")
    artifact = everything(tmp_path / "mine")
    ledger.allot(
        tmp_path / "mine", SLUG, ledger.Test("ab" * 6, "gain", "cd" * 32, ("ef" * 8,), "run", "spam"), delta=0.05
    )
    url = push(folder, "acme/probes")
    assert "/acme/probes/commit/" in url
    assert hub.repos["acme/probes"] == artifact  # a ledger is about this store, and stays in it
    assert "private" in hub.asked or "True" in hub.asked
    assert len([path for path in hub.asked if "/commit/" in path]) == 1  # artifact and latest at once
    assert hub.large  # the tensors went the way of large files
    [pulled] = pull(tmp_path / "theirs", "acme/probes")
    assert pulled == tmp_path / "theirs" / SLUG / "spam" / folder.name
    assert everything(tmp_path / "theirs") == artifact
    assert not (tmp_path / "no-cache").exists()


def test_latest_follows_unless_it_is_to_stay(make: Any, hub: type[Hub], tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    old, new, other = (make(seed).publish(mine) for seed in (1, 2, 3))
    push(old, "acme/probes")
    push(other, "acme/probes", default=False)
    assert [path.name for path in pull(theirs, "acme/probes")] == [old.name]
    push(new, "acme/probes")
    pull(theirs, "acme/probes", default=False)
    assert latest(theirs, SLUG, "spam") == old.name
    pull(theirs, "acme/probes")
    assert latest(theirs, SLUG, "spam") == new.name
    pull(theirs, "acme/probes", digest=other.name[:6])
    assert latest(theirs, SLUG, "spam") == new.name
    assert {path.name for path in (theirs / SLUG / "spam").iterdir()} == {"latest", old.name, new.name, other.name}


def test_an_older_commit_can_be_named(make: Any, hub: type[Hub], tmp_path: Path) -> None:
    push(make(1).publish(tmp_path / "mine"), "acme/probes")
    commit = Hub.commit(hub.repos["acme/probes"])
    assert pull(tmp_path / "theirs", "acme/probes", revision=commit)
    with pytest.raises(InvalidInput, match="it has no revision 'gone'"):
        pull(tmp_path / "theirs", "acme/probes", revision="gone")


Spoil = Callable[[dict[str, bytes], str], object]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "cut": (lambda f, n: f.update({f"{n}/probe.safetensors": f[f"{n}/probe.safetensors"][:-4]}), "its sha256 is not"),
    "edited": (lambda f, n: f.update({f"{n}/manifest.json": f[f"{n}/manifest.json"].replace(b"0.3", b"0.4")}), "was edited"),
    "swapped": (lambda f, n: f.update({f"{n}/calibration.json": b"{}"}), "its sha256 is not"),
    "incomplete": (lambda f, n: f.pop(f"{n}/calibration.json"), "calibration.json: is missing"),
    "dangling": (lambda f, n: [f.pop(path) for path in [*f] if n in path], "latest names it and acme/probes lacks it"),
    "another task": (lambda f, n: [f.update({path.replace("/spam/", "/ham/"): f.pop(path)}) for path in [*f]], "than its folder"),
    "another model": (lambda f, n: [f.update({path.replace("name/", "else/"): f.pop(path)}) for path in [*f]], "than its folder"),
    "a long latest": (lambda f, n: f.update({f"{SLUG}/spam/latest": b"a" * (LATEST_LIMIT + 1)}), "no latest"),
    "latest climbs": (lambda f, n: f.update({f"{SLUG}/spam/latest": b"../../../etc"}), "no latest"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_not_sound_never_becomes_visible(make: Any, hub: type[Hub], tmp_path: Path, how: str) -> None:
    """Not even the sound artifact of another task beside it: all is verified first."""
    before = make(1).publish(tmp_path / "theirs")
    state = everything(tmp_path / "theirs")
    sound = make(3)
    sound.manifest["task"]["name"] = "aside"
    bad = make(2).publish(tmp_path / "mine")
    push(bad, "acme/probes")
    spoil, reason = SPOILT[how]
    spoil(hub.repos["acme/probes"], f"{SLUG}/spam/{bad.name}")
    if reason != "no latest":
        push(sound.publish(tmp_path / "mine"), "acme/probes")
    with pytest.raises((BadArtifact, UnknownProbe), match=re.escape(reason)) as caught:
        pull(tmp_path / "theirs", "acme/probes")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert everything(tmp_path / "theirs") == state
    assert latest(tmp_path / "theirs", SLUG, "spam") == before.name
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == [SLUG]


def test_paths_that_climb_out_are_passed_over(make: Any, hub: type[Hub], tmp_path: Path) -> None:
    push(make().publish(tmp_path / "mine"), "acme/probes")
    files = hub.repos["acme/probes"]
    stray = [
        "../../x/spam/latest",
        "/etc/passwd",
        "a/../../b/latest",
        "a/b/0123456789ab/run.pkl",
        "README.md",
        "a/./latest",
    ]
    files.update(dict.fromkeys(stray, b"0123456789ab\n"))
    pull(tmp_path / "theirs", "acme/probes")
    assert everything(tmp_path / "theirs") == everything(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "theirs"]
    fetched = [path.split("/resolve/")[1].split("/", 1)[1] for path in hub.asked if "/resolve/" in path]
    assert set(fetched) == set(everything(tmp_path / "mine"))


def test_a_file_that_is_too_large_is_never_fetched(
    make: Any, hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(make().publish(tmp_path / "mine"), "acme/probes")
    monkeypatch.setitem(__import__("merasteer.store.reading").store.reading.LIMITS, "probe.safetensors", 10)
    with pytest.raises(BadArtifact, match="exceed the limit of 10"):
        pull(tmp_path / "theirs", "acme/probes")
    assert not [path for path in hub.asked if path.endswith("probe.safetensors")]


@pytest.mark.parametrize(
    ("repo", "token", "why", "remedy"),
    [
        ("acme/absent", TOKEN, "no such repository", "check the name"),
        ("acme/secret", None, "no such repository", "if it is private, set HF_TOKEN"),
        ("acme/broken", TOKEN, "the hub answered with status 418", "try again later"),
        ("acme/..bad", TOKEN, "that is no hub id", "owner/name"),
    ],
)
def test_what_a_hub_refuses_is_one_line(
    hub: type[Hub],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    repo: str,
    token: str | None,
    why: str,
    remedy: str,
) -> None:
    hub.repos.update({"acme/secret": {}, "acme/broken": {}})
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    assert main(["probes", "pull", repo, "--store", str(tmp_path / "theirs")]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert found.err.startswith(f"mera: hub: {repo} cannot be read ({why}")
    assert remedy in found.err.split("); ")[1]
    assert scan([tmp_path / "theirs"]) == []


def test_without_a_token_nothing_is_written(
    make: Any, hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InvalidInput, match=r"^hub: acme/probes cannot be written to \(.*\); .*set HF_TOKEN"):
        push(make().publish(tmp_path / "mine"), "acme/probes")
    assert hub.repos == {}


def test_nobody_there_and_offline(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["acme/empty"] = {}
    with pytest.raises(UnknownProbe, match="acme/empty has no latest"):
        pull(tmp_path, "acme/empty")
    with pytest.raises(UnknownProbe, match="no artifact with this prefix"):
        pull(tmp_path, "acme/empty", digest="ab")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(InvalidInput, match="check the network and HF_ENDPOINT"):
        pull(tmp_path, "acme/probes")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="HF_HUB_OFFLINE is set"):
        pull(tmp_path, "acme/probes")


def test_what_load_refuses_is_not_pushed(make: Any, hub: type[Hub], tmp_path: Path) -> None:
    folder = make().publish(tmp_path)
    os.truncate(folder / "probe.safetensors", 100)
    with pytest.raises(BadArtifact, match="its sha256"):
        push(folder, "acme/probes")
    assert hub.asked == []


def test_on_the_command_line(
    make: Any, hub: type[Hub], tmp_path: Path, identity: ModelIdentity, capsys: pytest.CaptureFixture[str]
) -> None:
    name = make().publish(tmp_path / "mine").name
    assert main(["probes", "push", "acme/probes", name[:8], "--store", str(tmp_path / "mine")]) == 0
    assert main(["probes", "pull", "acme/probes", "--store", str(tmp_path / "theirs")]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    assert found.out.splitlines()[1].endswith(f"/{SLUG}/spam/{name}")
    assert [entry.status for entry in scan([tmp_path / "theirs"], identity)] == ["loaded"]
