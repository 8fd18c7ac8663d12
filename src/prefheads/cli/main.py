"""The entry point: all commands, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from transformers.utils import logging as transformers_logging
from typer.exceptions import TyperException
from typer.main import get_command

import prefheads
from prefheads.cli import data, judge
from prefheads.cli.analyze import analyze
from prefheads.cli.check import check
from prefheads.cli.demo import demo
from prefheads.cli.discover import discover
from prefheads.cli.eval import evaluate
from prefheads.cli.export import export
from prefheads.cli.fit import fit
from prefheads.cli.flops import flops
from prefheads.cli.generate import generate
from prefheads.cli.inspect import inspect
from prefheads.cli.serve import keys, serve
from prefheads.cli.tables import tables
from prefheads.cli.validate import validate
from prefheads.errors import PrefheadsError
from prefheads.models.limits import out_of_memory

BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="prefheads",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    check, discover, fit, generate, validate, inspect, export, analyze, tables, demo, flops, serve,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(data.app)
app.add_typer(judge.app)
app.add_typer(keys)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"prefheads {prefheads.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Find the attention heads that carry what a model knows of a user, and steer with them."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code.

    Bad input gives 2 and one line, an interrupt 130; an error of the program itself is raised.
    """
    _silence_libraries()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what concerns users, commands collect and tell
            code = get_command(app).main(arguments, prog_name="prefheads", standalone_mode=False)
        sys.stdout.flush()
    except (PrefheadsError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        return _fail(message)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = "; free some space, then run the same command again"
        hint = full if error.errno == errno.ENOSPC else ""
        return _fail(f"{where}{error.strerror or error}{hint}")
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return _fail("the device has not enough memory; try --dtype bfloat16 or --device cpu")
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("interrupted; the same command goes on from where it stopped", file=sys.stderr)
    return code if isinstance(code, int) else 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit."""
    sys.exit(run(arguments))


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def _silence_libraries() -> None:
    """No load reports, bars or hints of libraries among the lines that are ours."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("sentence_transformers", "huggingface_hub", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
