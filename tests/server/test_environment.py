"""Variables that no command knows: refused where an option was probably meant, else told."""

from __future__ import annotations

from pathlib import Path

import pytest
from mera_server.cli import _variables, app, main
from mera_server.environment import check_environment
from typer.main import get_command

from merasteer.errors import UnknownField

OPTIONS = ("MERA_PORT", "MERA_KEYS_FILE", "MERA_MODEL", "MERA_STORE")


@pytest.mark.parametrize(
    ("name", "option"),
    [("MERA_KEYS_FIEL", "MERA_KEYS_FILE"), ("MERA_PROT", "MERA_PORT"), ("MERA_STORES", "MERA_STORE")],
)
def test_a_misspelt_option_is_refused_with_the_one_that_was_meant(name: str, option: str) -> None:
    with pytest.raises(UnknownField, match=rf"^{name}: no such option, did you mean {option}\?"):
        check_environment({name: "x"}, OPTIONS)


def test_what_is_like_no_option_is_told_and_what_is_empty_or_not_ours_is_not() -> None:
    told = check_environment(
        {"MERA_SOMETHING": "1", "MERA_PORT": "1", "MERA_PROT": "", "PORT": "1", "MERA": "1"}, OPTIONS
    )
    assert told == ["MERA_SOMETHING: no option of mera has this name; it is ignored"]


def test_variables_of_others_are_left_alone() -> None:
    names = ("MERA_MODELS", "MERA_SOAK_RATE", "MERA_URL", "MERA_API_KEY", "MERA_MODELS_DIR", "MERA_STORE_DIR")
    service = ("MERA_SERVICE_HOST", "MERA_SERVICE_PORT_HTTP", "MERA_PORT_8000_TCP", "MERA_PORT_8000_TCP_ADDR")
    assert check_environment(dict.fromkeys((*names, *service), "x"), OPTIONS) == []


def test_every_command_refuses_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MERA_KEYS_FIEL", "keys.json")
    for command in (["serve"], ["run", "--model", "m", "--task", "t"], ["tasks", "list"]):
        assert main(command) == 2
        assert capsys.readouterr().err.startswith("mera: MERA_KEYS_FIEL: no such option, did you mean MERA_KEYS_FILE?")
    assert main(["--help"]) == 0


def test_one_that_is_ignored_is_said_and_the_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MERA_SOMETHING_ELSE", "1")
    assert main(["tasks", "list"]) == 0
    told = capsys.readouterr()
    assert told.err == "mera: MERA_SOMETHING_ELSE: no option of mera has this name; it is ignored\n"
    assert "sms_spam" in told.out


def test_the_variables_of_all_commands_are_known() -> None:
    known = set(_variables(get_command(app)))
    assert {"MERA_PORT", "MERA_SEED", "MERA_BENCH_MODELS", "MERA_OUT", "MERA_STORE", "MERA_REQUIRE"} <= known
    assert all(name.startswith("MERA_") and name == name.upper() for name in known)
