"""`python -m bench`: which command runs, and what a wrong call is told."""

import sys
from types import SimpleNamespace

import pytest

from bench import __main__ as bench
from bench.__main__ import main


def test_a_command_gets_the_rest_of_the_arguments_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def command(arguments: list[str]) -> int:
        calls.append(arguments)
        return 7

    monkeypatch.setitem(bench.COMMANDS, "made_up", "a command for this test")
    monkeypatch.setitem(sys.modules, "bench.made_up", SimpleNamespace(main=command))
    assert main(["made_up", "--flag", "bars"]) == 7
    assert calls == [["--flag", "bars"]]


@pytest.mark.parametrize("arguments", [[], ["bar"], ["--verbose", "bars"]])
def test_a_wrong_call_is_told_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    for name, what in bench.COMMANDS.items():
        assert name in err
        assert what in err


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "usage: python -m bench" in capsys.readouterr().out


@pytest.mark.parametrize("name", bench.COMMANDS)
def test_every_command_refuses_what_it_does_not_know(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main([name, "--no-such-option"])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert capsys.readouterr().err
