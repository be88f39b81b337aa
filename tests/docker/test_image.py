"""The image: built from the Dockerfile as it stands, by buildah, without an engine; started, asked, stopped.

The base image is made here from Debian's packages, under the name that the Dockerfile gives. Needs root, buildah, debootstrap and
a Debian mirror. pip asks in the build where it asks on this machine. TORCH_INDEX, as in docker-compose.yml: where torch comes from.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow

BASE = "docker.io/library/python:3.11-slim-bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
USER = 10001


class Buildah:
    """buildah over a storage of its own, without a daemon."""

    def __init__(self, folder: Path) -> None:
        places = ("--root", str(folder / "root"), "--runroot", str(folder / "run"))
        self.command = ["buildah", *places, "--storage-driver", "vfs"]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout.strip()


def pip_settings() -> dict[str, str]:
    """What `pip config list` says, whichever file or variable it is from."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = (line.partition("=") for line in listed.stdout.splitlines() if "=" in line)
    return {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, _, value in found}


def local_paths(settings: dict[str, str]) -> set[Path]:
    """Folders and files of this machine that the settings name. Of an index, what lies beside it, too."""
    words = " ".join(settings.values()).split()
    indexes = {Path(word.removeprefix("file://")).parent for word in words if word.startswith("file://")}
    return {path for path in indexes | {Path(word) for word in words if word.startswith("/")} if path.exists()}


def make_base(buildah: Buildah, settings: dict[str, str]) -> None:
    """A minimal Debian with Python, under the name of the Dockerfile's base image."""
    container = buildah("from", "scratch")
    root = Path(buildah("mount", container))
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
    done = subprocess.run(command, capture_output=True, text=True)  # from debootstrap's own default mirror
    assert done.returncode == 0, done.stdout[-4000:]
    lines = "".join(f"{name} = {' '.join(value.split())}\n" for name, value in settings.items())
    (root / "etc/pip.conf").write_text(f"[global]\n{lines}", encoding="utf-8")
    for file in (path for path in local_paths(settings) if path.is_file()):
        (root / file.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file.relative_to("/"))
    buildah("umount", container)
    buildah("commit", "--rm", container, BASE)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid():
        pytest.skip(f"needs root, buildah and debootstrap (missing: {', '.join(missing) or 'root'})")
    folder = tmp_path_factory.mktemp("buildah")
    yield Buildah(folder)
    shutil.rmtree(folder)  # gigabytes, which pytest would keep


@pytest.fixture(scope="module")
def image(root: Path, buildah: Buildah) -> str:
    """The name of the image."""
    settings = pip_settings()
    make_base(buildah, settings)
    options = ["--isolation", "chroot", "--pull-never", "--network", "host", "--format", "docker", "-t", "mera-server"]
    for folder in (path for path in local_paths(settings) if path.is_dir()):
        options += ["--volume", f"{folder}:{folder}:ro"]
    if "TORCH_INDEX" in os.environ:
        options += ["--build-arg", f"TORCH_INDEX={os.environ['TORCH_INDEX']}"]
    buildah("bud", *options, "-f", str(root / "docker/Dockerfile"), str(root))
    return "mera-server"


def test_what_the_image_says_of_itself(image: str, buildah: Buildah) -> None:
    template = "{{.Docker.Config.User}} {{.Docker.Config.Entrypoint}} {{.Docker.Config.Cmd}} {{.Docker.Config.Volumes}}"
    said = buildah("inspect", "--type", "image", "--format", template, image)
    assert said == f"{USER}:{USER} [mera] [serve --host 0.0.0.0] map[/store:{{}}]"
    assert "/health/live" in buildah("inspect", "--type", "image", "--format", "{{.Docker.Config.Healthcheck}}", image)


@contextmanager
def running(buildah: Buildah, container: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The image's own entry point and user, on another port."""
    serve = ["mera", "serve", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*buildah.command, "run", "--isolation", "chroot", container, "--", *serve])
    try:
        yield process
    finally:
        for pid in servers(port):
            os.kill(pid, signal.SIGKILL)
        process.wait(30)


def servers(port: int) -> list[int]:
    """The server's processes: Python, run by the image's user, on this port. What buildah puts around it has its command line, too."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (entry / "cmdline").read_bytes(), (entry / "status").read_text()
            program = (entry / "exe").readlink().name
        except OSError:
            continue  # it has ended
        ours = program.startswith("python") and re.search(rf"^Uid:\s+{USER}\s", status, re.MULTILINE)
        if ours and command.endswith(f"--port\0{port}\0".encode()):
            found.append(int(entry.name))
    return found


def test_it_starts_steers_writes_nowhere_else_and_stops(image: str, buildah: Buildah) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    container = buildah("from", "--pull-never", image)
    root = Path(buildah("mount", container))
    marker = root / "etc/hostname"
    marker.touch()
    with running(buildah, container, port) as process:
        deadline = time.monotonic() + 120
        while not ready(address):
            assert process.poll() is None
            assert time.monotonic() < deadline, "not ready after two minutes"
            time.sleep(0.2)
        body = {"inputs": {"desk": "B", "text": "Claim your reward before Thursday. Win a holiday for two."}}
        answer = httpx.post(f"{address}/generate", json={**body, "steering": {"task": "demo_spam"}}).json()
        assert answer["mera"]["decision"] == "steered"
        assert answer["mera"]["guarantee"]["certified"] is True
        (pid,) = servers(port)
        os.kill(pid, signal.SIGTERM)
        process.wait(60)
        assert not servers(port)
    assert not written(root, marker.stat().st_mtime)


def written(root: Path, since: float) -> list[Path]:
    """Files younger than that, but where the server may write and where the isolation itself puts things."""
    skipped = {"store", "tmp", "dev", "proc", "sys", "run"}
    found = [
        path for top in root.iterdir() if top.name not in skipped for path in (top, *top.rglob("*")) if path.is_file()
    ]
    return [path for path in found if path.stat().st_mtime > since and path.name not in ("hosts", "resolv.conf")]


def ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/ready").status_code == 200
    except httpx.TransportError:
        return False
