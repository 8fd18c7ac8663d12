"""Methods to compare on small tasks, and a command that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefheads.data.example import Example
from prefheads.evaluation.decoder import Decoder, make_decoder
from prefheads.evaluation.methods import Method
from prefheads.evaluation.records import Record
from prefheads.heads.scores import HeadWeights
from prefheads.steerer.core import PreferenceSteerer

METHODS = (
    "plain",
    "cad",
    "dola",
    "decore",
    "dps",
    "dps-cluster",
    "dps-cluster:routing=hard",
    "calibrated",
    "random-heads",
    "random-mask",
)


def heads_at(*heads: tuple[int, int]) -> Callable[[float], HeadWeights]:
    return lambda fraction: HeadWeights.from_heads((3, 4), heads)  # of no scope


def decoders(
    names: tuple[str, ...], loaded: Any, examples: list[Example], steerer: PreferenceSteerer
) -> list[Decoder]:
    """Methods made ready for examples, by a model and its tokenizer."""
    retrieval = heads_at((1, 2), (2, 0))
    return [make_decoder(Method.parse(n), loaded[0], examples, steerer, retrieval) for n in names]


def record(key: str = "1", method: str = "plain", **changes: Any) -> Record:
    """A record of a task of tweets."""
    lengths = (0.0, 3, 2, 0.1, 0.0, 1)
    made = Record("LaMP-7", key, key, method, "h", "é\u2028x", "y", "plain", *lengths, "s")
    return replace(made, **changes)


def ask(folder: Path, data: Path, out: Path, *more: object) -> tuple[object, ...]:
    """A command line of `eval` that finds heads on four users and calibrates on four."""
    few = ("--discovery", 4, "--calibration", 4, "--clusters", 2, "--min-samples", 1)
    few = (*few, "--max-new-tokens", 5)
    return ("eval", "--model", folder, "--data", data, "--out", out, *few, *more)
