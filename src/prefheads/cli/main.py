"""The entry point: all commands, and the one place where errors become lines and exit codes.

A command's module is imported when that command is asked for, as most of them need torch, which
takes seconds to import.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command, get_group

import prefheads
from prefheads.errors import PrefheadsError

BAD_INPUT = 2
INTERRUPTED = 130

# The first lines of each command's own help, which a test compares with these.
_HELP = """
check: Test steering and discovery on a model, device, precision and attention; about a minute.
discover: Score every attention head by ablation (PCS), and keep the strongest.
fit: Cluster users, discover the heads of each cluster, and calibrate how to steer.
generate: Write for one user, given by a profile, with the heads and strength of a run.
validate: Measure a fitted steering on users that fitting has not seen, beside its controls.
inspect: Show what was found: heads, clusters, calibration, validation; and draw it.
export: Write amplified heads as weights: for PEFT, vLLM, or whatever loads a checkpoint.
analyze: Draw and tabulate what a run says of sparsity, users, controls, strengths and routing.
tables: Join evaluations into the paper's Tables 1 and 2: models, tasks and methods.
demo: Find heads, calibrate, validate and compare texts on the bundled model and people.
flops: Count FLOPs from a model's config: the paper's Table 3, and what is really computed.
serve: Serve an OpenAI-compatible API that writes for users whose profiles it keeps.
eval: Compare decoding methods on LaMP or LongLaMP tasks, with intervals and paired tests.
data: Fetch LaMP and LongLaMP; count data.
judge: Have people or a language model compare two methods.
keys: API keys of `prefheads serve`; each has its own users.
"""
COMMANDS: dict[str, str] = dict(line.split(": ", 1) for line in _HELP.strip().splitlines())
# A command is the function of its name in the module of its name; groups and `eval` are not.
GROUPS = ("data", "judge", "keys")


class _Commands(TyperGroup):
    """Lists the commands by what is said of them here, and loads the one that is to run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: TyperCommand(name, help=line) for name, line in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load_command(str(command.name)), rest


def load_command(name: str) -> Any:
    """The command, or the group of commands, of that name, from its module."""
    attribute = "app" if name in GROUPS else {"eval": "evaluate"}.get(name, name)
    found = getattr(import_module(f"prefheads.cli.{name}"), attribute)
    _silence_libraries()
    if name in GROUPS:
        return get_group(found)
    alone = typer.Typer(add_completion=False)
    alone.command(name)(found)
    return get_command(alone)


app = typer.Typer(
    name="prefheads",
    cls=_Commands,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what concerns users, commands collect and tell
            code = get_command(app).main(arguments, prog_name="prefheads", standalone_mode=False)
        sys.stdout.flush()
    except (PrefheadsError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        return _fail(message) if message else BAD_INPUT  # without one, help has been shown
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = "; free some space, then run the same command again"
        hint = full if error.errno == errno.ENOSPC else ""
        return _fail(f"{where}{error.strerror or error}{hint}")
    except RuntimeError as error:
        from prefheads.models.limits import out_of_memory

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
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    for name in ("sentence_transformers", "huggingface_hub", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
