"""From a task's files to the folds that are evaluated, and where their heads are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefheads.data.encoding import shorten_prompt
from prefheads.data.example import Example, load_examples, spread
from prefheads.data.people import Seen
from prefheads.errors import DataError
from prefheads.evaluation.folds import Fold, make_folds
from prefheads.evaluation.splits import find_sibling, split_name

TRAIN = "train"


@dataclass(frozen=True)
class Choice:
    """Which samples are evaluated, and what their heads are found on.

    Attributes:
        limit: Samples to evaluate of a task; all if None.
        discovery, calibration: Users that each takes, one sample of each.
        discovery_split: Split that heads are found on; train if there is one.
        force: Allow heads found on the samples to evaluate.
        loading: Options of :func:`prefheads.load_examples`.
    """

    limit: int | None = None
    discovery: int = 30
    calibration: int = 40
    discovery_split: str | None = None
    force: bool = False
    seed: int = 0
    loading: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskSamples:
    """A task's samples: its folds, each with what heads may be found on.

    Attributes:
        split, heads_from: For titles, as in ``evaluation.run.Measured``.
        without_profile: Samples whose profile did not fit the prompt at all.
    """

    folds: list[Fold]
    split: str
    heads_from: str
    without_profile: int = 0


def choose_samples(
    path: Path,
    task: str,
    choice: Choice,
    *,
    needs_heads: bool,
    seen: Seen | None = None,
    require_output: bool = True,
) -> TaskSamples:
    """Choose samples to evaluate, and those that heads are found on; only their profiles are made.

    Args:
        path: The split to evaluate.
        needs_heads: Whether any method needs what discovery finds.
        seen: What the fit has seen whose heads are used; None to find heads here.
        require_output: Whether samples need a gold.

    Raises:
        DataError: The file is of another task or cannot be used; too few users, or heads that would
            be found on what is evaluated.
    """
    loading = {"require_output": require_output, **choice.loading}
    folds: list[Fold] = []

    def choose(examples: list[Example], train: list[Example] | None = None) -> list[Example]:
        _require_task(examples, task, path)
        if seen is not None or not needs_heads:
            folds.append(Fold(_left(examples, seen, choice), [], 0.0))
        else:
            folds.extend(_folds(examples, train, choice))
        for sample in (e for f in folds for e in f.pool if train is None and not e.output):
            raise DataError(f"sample {sample.id!r} has no response to find heads with: give golds")
        return [e for f in folds for e in (f.test if train is not None else [*f.test, *f.pool])]

    split = split_name(path)
    if seen is not None or not needs_heads:
        tests = load_examples(path, select=choose, **loading)
        return TaskSamples(_filled(folds, tests, []), split, "" if seen is None else "a fit")
    other = _split_for_heads(path, choice)
    if other is None:
        tests = pool = load_examples(path, select=choose, **loading)
        where = "users set aside" if len(folds) == 1 else "users of the other fold"
        return TaskSamples(_filled(folds, tests, pool), split, where)
    tests = []

    def beside(train: list[Example]) -> list[Example]:
        _require_task(train, task, other)
        tests.extend(load_examples(path, select=partial(choose, train=train), **loading))
        return [e for f in folds for e in f.pool]

    pool = load_examples(other, select=beside, **choice.loading)
    where = f"{split_name(other)}{' (forced)' if choice.force else ''}"
    return TaskSamples(_filled(folds, tests, pool), split, where)


def shortened(
    prepared: TaskSamples, tokenizer: PreTrainedTokenizerBase, length: int, needs_heads: bool
) -> TaskSamples:
    """The same samples, with as much of their profiles as fits.

    Args:
        length: Tokens that a prompt has at most, before the chat template.

    Raises:
        DataError: Nothing of a profile fits, and heads are to be used.
    """

    def shorten(examples: Sequence[Example]) -> list[Example]:
        return [shorten_prompt(tokenizer, e, length) for e in examples]

    folds = [replace(f, test=shorten(f.test), pool=shorten(f.pool)) for f in prepared.folds]
    empty = [e.id for f in folds for e in (*f.test, *f.pool) if not e.profile]
    if empty and needs_heads:
        raise DataError(
            f"example {empty[0]!r}: nothing of the profile fits {length} tokens; "
            "allow longer prompts (--prompt-length)"
        )
    return replace(prepared, folds=folds, without_profile=len(empty))


def _require_task(examples: Sequence[Example], task: str, path: Path) -> None:
    if examples[0].task != task:
        raise DataError(f"{path}: holds {examples[0].task or 'no benchmark task'}, not {task}")


def _left(examples: list[Example], seen: Seen | None, choice: Choice) -> list[Example]:
    """What is evaluated with heads that were found before."""
    left = examples if seen is None or choice.force else seen.unseen(examples)
    if not left:
        raise DataError(
            "all users of the split took part in fitting: evaluate another split, or --force it"
        )
    return spread(left, choice.limit, choice.seed)


def _folds(examples: list[Example], train: list[Example] | None, choice: Choice) -> Sequence[Fold]:
    return make_folds(
        examples,
        train,
        discovery=choice.discovery,
        calibration=choice.calibration,
        limit=choice.limit,
        force=choice.force,
        seed=choice.seed,
    )


def _filled(folds: Sequence[Fold], tests: Sequence[Example], pool: Sequence[Example]) -> list[Fold]:
    """The same folds, of examples with their profiles."""
    of_test, of_pool = ({e.id: e for e in part} for part in (tests, pool))
    return [
        replace(f, test=[of_test[e.id] for e in f.test], pool=[of_pool[e.id] for e in f.pool])
        for f in folds
    ]


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
