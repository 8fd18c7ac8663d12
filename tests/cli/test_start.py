"""Start-up: help is there at once, and commands are loaded when they are asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.core import TyperGroup

from prefheads.cli.main import COMMANDS, GROUPS, load_command

SLOW = ("torch", "transformers", "scipy.stats", "sklearn", "matplotlib", "pandas")
ASK = """
import sys
from prefheads.cli.main import run
code = run(sys.argv[1:])
print("loaded:", *(name for name in %r if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "data --help",
        "data download --help",
        "judge llm --help",
        "keys --help",
        "keys create --help",
        "no-such-command",
        "data download LaMP-99 --out {out}",
        "keys list --db {out}.sqlite",
    ],
)
def test_what_needs_no_model_loads_no_torch(arguments: str, tmp_path) -> None:
    words = arguments.format(out=tmp_path / "out").split()
    asked = subprocess.run(
        [sys.executable, "-c", ASK % (SLOW,), *words], capture_output=True, text=True, timeout=60
    )
    *_, loaded = asked.stderr.splitlines()
    assert loaded == "loaded:"
    assert asked.returncode == (2 if "99" in arguments or arguments.startswith("no") else 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_commands_is_each_command_s_own(name: str) -> None:
    own = load_command(name)
    assert own.name == name
    assert own.help.partition("\n\n")[0].replace("\n", " ") == COMMANDS[name]
    assert isinstance(own, TyperGroup) == (name in GROUPS)


def test_help_lists_every_command(cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    assert all(f" {name} " in shown.out for name in COMMANDS)
    assert cli().out == shown.out


def test_a_typing_error_is_answered_with_what_was_meant(cli) -> None:
    asked = cli("discovr")
    assert (asked.code, asked.out) == (2, "")
    assert asked.err == "error: No such command 'discovr'. Did you mean 'discover'?\n"


def test_a_group_alone_shows_its_help(cli) -> None:
    asked = cli("keys")
    assert asked.code == 2 and "revoke" in asked.out + asked.err
    assert "error:" not in asked.err
