"""Precedence: command line over environment over file over default; one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from mera_server.loading import load
from mera_server.requirements import check_store
from mera_server.settings import COMMANDS, Settings, read_config

from merasteer.errors import InvalidInput, UnknownField


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mera.toml"
    path.write_text('port = 1\nhost = "file"\n[serve]\nport = 2\nmax_requests = 3\n[run]\nseed = 7\n', encoding="utf-8")
    return path


def test_defaults() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port, settings.model, settings.steering) == ("127.0.0.1", 8000, None, "on")
    assert settings.store == Path("probes_store")
    assert settings.engine_sizes == {}


@pytest.mark.parametrize(
    ("given", "environ", "port"),
    [
        ({}, {}, 2),
        ({}, {"MERA_PORT": "3"}, 3),
        ({"port": "4"}, {"MERA_PORT": "3"}, 4),
        ({"port": None}, {"MERA_PORT": "3"}, 3),
        ({"port": None}, {"MERA_PORT": ""}, 2),
    ],
)
def test_precedence(file: Path, given: dict[str, str | None], environ: dict[str, str], port: int) -> None:
    settings = Settings.load(given, environ, file)
    assert (settings.port, settings.host, settings.max_requests) == (port, "file", 3)


def test_the_file_may_be_named_by_the_environment(file: Path) -> None:
    assert Settings.load(environ={"MERA_CONFIG": str(file)}).port == 2


def test_every_option_has_an_environment_variable() -> None:
    environ = {f"MERA_{name.upper()}": "8" for name in Settings.model_fields}
    environ |= {
        "MERA_DTYPE": "float32",
        "MERA_STEERING": "off",
        "MERA_LOG_LEVEL": "debug",
        "MERA_SHARE_PREFIXES": "false",
        "MERA_PACK_WEIGHTS": "false",
        "MERA_OPEN": "true",
        "MERA_REQUIRE_CERTIFIED": "true",
        "MERA_CREATE_STORE": "true",
        "MERA_LOG_CHECKS": "true",
        "MERA_LOG_FORMAT": "json",
        "MERA_LOG_CONTENT": "true",
        "MERA_CORS_ORIGIN": "https://a.example,http://[::1]:8080",
    }
    assert Settings.load(environ=environ).model_dump(exclude_unset=True).keys() == Settings.model_fields.keys()


@pytest.mark.parametrize(
    ("given", "environ", "parts"),
    [
        ({"port": "many"}, {}, ["--port", "'many'", "integer"]),
        ({"max_new_tokens_limit": "0"}, {}, ["--max-new-tokens-limit", "'0'", "greater"]),
        ({}, {"MERA_PORT": "70000"}, ["MERA_PORT", "'70000'", "65535"]),
        ({"cors_origin": "https://a.example/path"}, {}, ["--cors-origin", "https://a.example/path", "without a path"]),
        ({"cors_origin": "a.example"}, {}, ["--cors-origin", "no origin such as https://"]),
        ({"request_timeout": "nan"}, {}, ["--request-timeout", "'nan'", "finite"]),
        ({"tls_cert": "x.pem"}, {}, ["tls_cert and tls_key", "give both or none"]),
        ({}, {"MERA_RATE_BURST": "3"}, ["rate_burst", "rate_limit", "give both or none"]),
        ({"require": "spam@xyz"}, {}, ["--require", "'spam@xyz'", "TASK@DIGEST"]),
        ({"require": "../up"}, {}, ["--require", "'../up'", "neither a task's name"]),
        ({}, {"MERA_STEERING": "maybe"}, ["MERA_STEERING", "'maybe'", "'on' or 'off'"]),
    ],
)
def test_mistakes_take_one_line(given: dict[str, str], environ: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        Settings.load(given, environ)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts)


def test_a_wrong_value_in_the_file_names_the_file(file: Path) -> None:
    file.write_text("port = []\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"mera\.toml: port: \[\] is not accepted"):
        Settings.load(config=file)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("prt = 1", UnknownField, r"unknown option 'prt' \(did you mean port\?\)"),
        ("[serv]\nport = 1", UnknownField, r"unknown table \[serv\] \(did you mean serve\?\)"),
        ("port = " + "9" * 5000, InvalidInput, "is not TOML"),
        (f"port = 0x{'f' * 5000}", InvalidInput, "port: a number of thousands of digits is not accepted"),
        (f"{'x' * 9999} = 1", UnknownField, r"unknown option 'x{30,40}\.\.\.x{30,40}'; known"),
        ("x = " + "[" * 5000, InvalidInput, "is not TOML"),
        ("port 1", InvalidInput, "is not TOML"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        Settings.load(config=path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        Settings.load(config=tmp_path / "absent.toml")


def test_another_commands_table_does_not_concern_this_one(file: Path) -> None:
    assert read_config(file, "run", {"port", "host", "seed"}) == {"port": 1, "host": "file", "seed": 7}
    assert "run" in COMMANDS


def test_where_and_how_the_model_is_loaded_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, dict[str, object]]] = []

    def load_model(model: object, **how: object) -> None:
        asked.append((model, how))
        raise InvalidInput("that is enough")

    monkeypatch.setattr("mera_server.loading.load_model", load_model)
    given = {"model": "owner/name", "dtype": "bfloat16", "device_map": "sequential", "tensor_parallel": "4"}
    for settings in (Settings.load(given), Settings.load(environ={"MERA_MODEL": "m", "MERA_DEVICE": "cuda:1"})):
        with pytest.raises(InvalidInput, match="that is enough"):
            load(settings)
    assert asked == [
        ("owner/name", {"dtype": "bfloat16", "device": "auto", "device_map": "sequential", "tensor_parallel": 4}),
        ("m", {"dtype": "auto", "device": "cuda:1", "device_map": None, "tensor_parallel": 1}),
    ]


def test_device_beside_device_map_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InvalidInput, match="device_map: 'auto' was given beside device 'cpu'; give one of the two"):
        load(Settings(model="owner/never_asked_for", device="cpu", device_map="auto"))


def test_switches_and_sizes_that_are_set_reach_the_engine() -> None:
    settings = Settings.load({"page_size": "16", "share_prefixes": "false", "pack_weights": "false"}, {})
    assert settings.engine_sizes == {"page_size": 16, "share_prefixes": False, "pack_weights": False}


def test_origins_stand_between_commas_or_in_a_list(file: Path) -> None:
    file.write_text('cors_origin = ["https://a.example", "*"]\n', encoding="utf-8")
    assert Settings.load(config=file).cors_origin == ("https://a.example", "*")
    assert Settings.load({"cors_origin": "https://a.example, http://b:1"}).cors_origin == (
        "https://a.example",
        "http://b:1",
    )


@pytest.mark.parametrize(("given", "burst"), [({}, 1), ({"rate_limit": 0.02}, 1), ({"rate_limit": 5}, 50)])
def test_the_burst_is_that_of_ten_seconds(given: dict[str, float], burst: float) -> None:
    assert Settings.load(given).burst == burst
    assert Settings.load({"rate_limit": 5, "rate_burst": 2}).burst == 2


def test_a_byte_order_mark_is_no_content(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfport = 5\n")
    assert Settings.load(config=file).port == 5
    file.write_bytes("port = 5\n".encode("utf-16"))
    with pytest.raises(InvalidInput, match="is not TOML in UTF-8"):
        Settings.load(config=file)


def test_required_artifacts_stand_between_commas() -> None:
    assert Settings.load({"require": "spam, ham@00ff"}).require == ("spam", "ham@00ff")


def test_a_store_that_is_not_there_is_an_error_unless_it_is_to_be_made_or_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_store(Settings())
    absent, file = tmp_path / "a" / "b", tmp_path / "file"
    with pytest.raises(InvalidInput, match=r"store: no such folder '.*b'; mount it .* or give --create-store"):
        check_store(Settings(store=absent))
    assert not absent.exists()
    check_store(Settings(store=absent, create_store=True))
    check_store(Settings(store=absent))
    file.touch()
    for create in (False, True):
        with pytest.raises(InvalidInput, match=r"store: '.*file' cannot be read \((Not a directory|File exists)\)"):
            check_store(Settings(store=file, create_store=create))
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(InvalidInput, match="store: no such folder"):
        check_store(Settings(store=tmp_path / "link"))
