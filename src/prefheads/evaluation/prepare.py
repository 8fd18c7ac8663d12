"""From a task's files to the folds that are evaluated, and where their heads are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefheads.encoding import shorten_prompt
from prefheads.errors import DataError
from prefheads.evaluation.data import find_sibling, split_name
from prefheads.evaluation.folds import Fold, make_folds
from prefheads.examples import Example, load_examples, spread
from prefheads.steerer import PreferenceSteerer

TRAIN = "train"


@dataclass(frozen=True)
class Choice:
    """Which samples are evaluated, and what their heads are found on.

    Attributes:
        limit: Samples to evaluate of a task; all if None.
        discovery, calibration: Users that each takes, one sample of each.
        discovery_split: Split that heads are found on; train if there is one.
        force: Allow heads found on the samples to evaluate.
        prompt_length: Tokens that a prompt has at most, before the chat template.
        loading: Options of :func:`prefheads.load_examples`.
    """

    limit: int | None = None
    discovery: int = 30
    calibration: int = 40
    discovery_split: str | None = None
    force: bool = False
    prompt_length: int = 2048
    seed: int = 0
    loading: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A task ready to be measured: its folds, each with a fitted steerer or None to fit one.

    Attributes:
        split, heads_from: For titles, as in ``evaluation.run.Measured``.
        without_profile: Samples whose profile did not fit the prompt at all.
    """

    folds: list[tuple[Fold, PreferenceSteerer | None]]
    split: str
    heads_from: str
    without_profile: int


def load_task(path: Path, task: str, **loading: Any) -> list[Example]:
    """Samples of a task.

    Raises:
        DataError: The file is of another task, or cannot be used.
    """
    examples = load_examples(path, **loading)
    if examples[0].task != task:
        raise DataError(f"{path}: holds {examples[0].task or 'no benchmark task'}, not {task}")
    return examples


def prepare_task(
    path: Path,
    examples: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    steerer: PreferenceSteerer | None,
    needs_heads: bool,
    choice: Choice,
) -> Prepared:
    """Choose samples to evaluate, and those that heads are found on.

    Args:
        path: Where the examples are from.
        steerer: Fitted already, or None.
        needs_heads: Whether any method needs what discovery finds.

    Raises:
        DataError: Too few users, or heads that would be found on what is evaluated.
    """
    short = _shortened(examples, tokenizer, choice, needs_heads)
    empty = sum(not e.profile for e in short)
    split = split_name(path)
    if steerer is not None or not needs_heads:
        left = short if steerer is None or choice.force else steerer.unseen(short)
        if not left:
            raise DataError(
                "all users of the split took part in fitting: evaluate another split, or --force it"
            )
        fold = Fold(spread(left, choice.limit, choice.seed), [], 0.0)
        return Prepared([(fold, steerer)], split, "" if steerer is None else "a fit", empty)
    other = _split_for_heads(path, choice)
    train = None
    if other is not None:
        users = choice.discovery + choice.calibration
        # Files of gigabytes: the first samples, ten times as many as needed, are choice enough.
        some = load_task(other, str(examples[0].task), limit=10 * users, **choice.loading)
        train = _shortened(some, tokenizer, choice, needs_heads)
    folds = make_folds(
        short,
        train,
        discovery=choice.discovery,
        calibration=choice.calibration,
        limit=choice.limit,
        force=choice.force,
        seed=choice.seed,
    )
    where = "users set aside" if len(folds) == 1 else "users of the other fold"
    if other is not None:
        where = f"{split_name(other)}{' (forced)' if choice.force else ''}"
    return Prepared([(fold, None) for fold in folds], split, where, empty)


def _shortened(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, choice: Choice, needs_heads: bool
) -> list[Example]:
    short = [shorten_prompt(tokenizer, e, choice.prompt_length) for e in examples]
    empty = [e.id for e in short if not e.profile]
    if empty and needs_heads:
        raise DataError(
            f"example {empty[0]!r}: nothing of the profile fits {choice.prompt_length} tokens; "
            "allow longer prompts (--prompt-length)"
        )
    return short


def _split_for_heads(path: Path, choice: Choice) -> Path | None:
    """The split that heads are found on; None if users of the evaluated one are set aside."""
    own, wanted = split_name(path), choice.discovery_split
    if wanted is None:
        return None if own == TRAIN else find_sibling(path, TRAIN)
    if wanted == own:
        if not choice.force:
            raise DataError(
                f"split {own!r}: heads are not found on what is evaluated; name another split, or "
                "leave --discovery-split out to set users aside"
            )
        return path
    other = find_sibling(path, wanted)
    if other is None:
        raise DataError(f"{path.parent}: no split {wanted!r} with golds to find heads on")
    return other
