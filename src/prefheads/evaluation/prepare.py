"""From a task's files to the folds that are evaluated, and where their heads are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefheads.data.encoding import shorten_prompt
from prefheads.data.example import Example, load_examples, split_users, spread
from prefheads.data.formats import find_sources, format_of
from prefheads.data.people import Seen
from prefheads.data.task import task_name
from prefheads.errors import DataError
from prefheads.models.bundled import NAME

TRAIN = "train"
PREFERRED = ("dev", "validation", "val", "test")


@dataclass(frozen=True)
class Fold:
    """Samples to evaluate, with what discovery and calibration may use for them.

    Attributes:
        test: Samples to evaluate.
        pool: Samples for discovery and calibration; nobody's sample is in both.
        share: Share of the pool's users for discovery.
    """

    test: list[Example]
    pool: list[Example]
    share: float


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
        needs_heads: Whether any method needs what discovery finds.
        seen: What the fit has seen whose heads are used; None to find heads here.
        require_output: Whether samples need a gold.

    Raises:
        DataError: The file is of another task or cannot be used; too few users, or heads that would
            be found on what is evaluated.
    """
    loading = {"require_output": require_output, **choice.loading}
    found_before = seen is not None or not needs_heads
    other = None if found_before else _split_for_heads(path, choice)
    folds: list[Fold] = []

    def choose(examples: list[Example], train: list[Example] | None = None) -> list[Example]:
        _require_task(examples, task, path)
        if found_before:
            left = examples if seen is None or choice.force else seen.unseen(examples)
            if not left:
                raise DataError(
                    "all users of the split took part in fitting: evaluate another split, or "
                    "--force it"
                )
            folds.append(Fold(spread(left, choice.limit, choice.seed), [], 0.0))
        else:
            folds.extend(make_folds(examples, train, choice))
        for sample in (e for f in folds for e in f.pool if train is None and not e.output):
            raise DataError(f"sample {sample.id!r} has no response to find heads with: give golds")
        return [e for f in folds for e in (f.test if train is not None else [*f.test, *f.pool])]

    tests: list[Example] = []

    def beside(train: list[Example]) -> list[Example]:
        _require_task(train, task, other)
        tests.extend(load_examples(path, select=partial(choose, train=train), **loading))
        return [e for f in folds for e in f.pool]

    if other is not None:
        pool = load_examples(other, select=beside, **choice.loading)
        where = f"{split_name(other)}{' (forced)' if choice.force else ''}"
    else:
        tests = pool = load_examples(path, select=choose, **loading)
        where = "users set aside" if len(folds) == 1 else "users of the other fold"
        if found_before:
            where = "" if seen is None else "a fit"
    # The same folds, of examples with their profiles.
    of_test, of_pool = ({e.id: e for e in part} for part in (tests, pool))
    filled = [
        replace(f, test=[of_test[e.id] for e in f.test], pool=[of_pool[e.id] for e in f.pool])
        for f in folds
    ]
    return TaskSamples(filled, split_name(path), where)


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


def _require_task(examples: Sequence[Example], task: str, path: Path | None) -> None:
    if examples[0].task != task:
        raise DataError(f"{path}: holds {examples[0].task or 'no benchmark task'}, not {task}")


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


def make_folds(
    examples: Sequence[Example], train: Sequence[Example] | None, choice: Choice
) -> list[Fold]:
    """One fold, or two where users are few.

    With a training split, heads are found there, on people of whom nothing is evaluated. Without
    one, ``discovery + calibration`` users are set aside. Where these and ``limit`` samples to
    evaluate are more than there are, the users are halved, and each half is evaluated with heads
    found on the other; on its samples in the training split, if all people are in both.

    Args:
        examples: The evaluation split.
        train: Samples of another split.

    Raises:
        DataError: Fewer than eight users, too few to find heads and evaluate.
    """
    wanted, limit, seed = choice.discovery + choice.calibration, choice.limit, choice.seed
    share = choice.discovery / wanted
    users = len({e.user_id for e in examples})
    if train is not None:
        twice = sorted({e.id for e in examples}.intersection(e.id for e in train))
        if twice and not choice.force:
            raise DataError(
                f"sample {twice[0]!r} is in the split that heads are found on and in the one to "
                "evaluate; name another split, or force it"
            )
        test = spread(examples, limit, seed)
        left = list(train) if choice.force else _of_others(train, test, examples)
        n_left = len({e.user_id for e in left})
        # Few strangers are left where both splits are of the same people: these are halved then.
        if choice.force or n_left >= wanted or (n_left >= 4 and 2 * n_left >= users):
            return [Fold(test, _drawn(left, wanted, seed), share)]
    if users < 8:
        raise DataError(
            f"{users} users are too few to find heads and to evaluate: give a training split "
            "(--discovery-split) of others, or a fitted folder (--fitted)"
        )
    if train is None and users - wanted >= (limit or users / 2):
        pool, rest = _part(examples, wanted / users, seed)
        return [Fold(spread(rest, limit, seed), pool, share)]
    a, b = _part(examples, 0.5, seed)
    halves = spread(a, limit and limit - limit // 2, seed), spread(b, limit and limit // 2, seed)
    if train is None:
        return [Fold(halves[0], b, share), Fold(halves[1], a, share)]
    pools = [_of_others(train, half, examples) for half in halves]
    if min(len({e.user_id for e in pool}) for pool in pools) < 4:
        raise DataError(
            "too few people of the split that heads are found on are not among those to evaluate; "
            "name another split, or force it"
        )
    return [
        Fold(half, _drawn(pool, wanted, seed), share)
        for half, pool in zip(halves, pools, strict=True)
    ]


def _of_others(
    train: Sequence[Example], test: Sequence[Example], examples: Sequence[Example]
) -> list[Example]:
    """Training samples of people of whom nothing is evaluated; any sample may join two of one."""
    ids = {e.id for e in examples}
    return [e for e in Seen.of(test).unseen([*examples, *train]) if e.id not in ids]


def _drawn(examples: Sequence[Example], wanted: int, seed: int) -> list[Example]:
    """The samples of ``wanted`` users, or of all."""
    users = len({e.user_id for e in examples})
    return list(examples) if users <= wanted else list(_part(examples, wanted / users, seed)[0])


def _part(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], ...]:
    return split_users(examples, (share, 1 - share), seed)


def find_tasks(data: Path) -> list[str]:
    """The tasks of which a data folder has samples with golds; a ``DataError`` if there are
    none."""
    if data == Path(NAME):
        raise DataError("the bundled people belong to no benchmark task; give LaMP or LongLaMP")
    formats = ((format_of(path), path) for path in find_sources(data))
    found = sorted({t for f, path in formats if (t := f.task(path)) and f.has_golds(path)})
    if not found:
        raise DataError(f"{data}: holds no task's folder such as LaMP_4; name one with --task")
    return found


def find_samples(data: Path, task: str, split: str | None) -> Path:
    """What to load for a task's split, from anywhere under a data folder.

    Without a split: the development split, or the only one there is; of equal splits, such as
    ``LaMP_4/dev`` and ``time/LaMP_4/dev``, the one less deep.

    Raises:
        DataError: No such samples, or several splits to choose from.
    """
    found = find_sources(data)
    own = [path for path in found if format_of(path).task(path) == task_name(task)]
    if not own and len(found) == 1 and format_of(found[0]).task(found[0]) is None:
        own = found  # a file whose name says nothing; what it holds will be checked
    splits: dict[str, Path] = {}
    for path in sorted(own, key=lambda p: len(p.parts)):
        other = splits.setdefault(split_name(path), path)
        if other != path and len(other.parts) == len(path.parts):
            raise DataError(f"{data}: holds {other} and {path}; name the one of them with --data")
    names = ", ".join(sorted(splits)) or "none"
    if split is None:
        known = [
            name for name in PREFERRED
            if name in splits and format_of(splits[name]).has_golds(splits[name])
        ]  # fmt: skip
        split = next(iter(known or splits), None) if known or len(splits) == 1 else None
        if split is None:
            raise DataError(f"{data}: name the split of {task} to evaluate; there is {names}")
    if split not in splits:
        raise DataError(f"{data}: no split {split!r} of {task}; there is {names}")
    return splits[split]


def find_sibling(evaluated: Path, split: str) -> Path | None:
    """Another split with golds of the same data (not of another setting), if there is one."""
    places = (evaluated.parent, evaluated.parent.parent / split)
    sources = (path for place in places if place.is_dir() for path in find_sources(place))
    alike = (p for p in sources if format_of(p) is format_of(evaluated) and split_name(p) == split)
    return next((p for p in alike if p != evaluated and format_of(p).has_golds(p)), None)


def split_name(path: Path) -> str:
    """The name of a split, such as ``dev``."""
    return format_of(path).split(path)
