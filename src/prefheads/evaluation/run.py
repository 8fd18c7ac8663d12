"""One task from its samples to its measurements: find heads, generate, score likelihood."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.calibration.validate import Validation
from prefheads.data.encoding import encode
from prefheads.discovery.retrieval import retrieval_scores
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.decoder import make_decoder
from prefheads.evaluation.generate import generate_records
from prefheads.evaluation.likelihood import likelihood
from prefheads.evaluation.methods import Method
from prefheads.evaluation.prepare import Fold
from prefheads.evaluation.records import Record, Records, write_samples
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.generation import room_for_prompt
from prefheads.storage import plain, writable_dir, write_json
from prefheads.tasks.answers import answers_of

RECORDS = "records.jsonl"
LIKELIHOOD = "likelihood.json"
SHORT = 16  # new tokens for a label or a rating


@dataclass(frozen=True)
class EvaluationPlan:
    """How tasks are evaluated; what the results depend on.

    Attributes:
        methods: What is compared; the first is the baseline.
        max_new_tokens: By default what the task's answers need.
        label_tokens: The same for tasks whose answer is a label or a rating (LaMP-1, 2 and 3);
            more where a model talks before it answers, and the answer is extracted.
        clusters: Clusters of users; chosen from the data if None.
        min_samples: Discovery samples that a cluster needs.
    """

    methods: tuple[Method, ...]
    generation: bool = True
    likelihood: bool = True
    max_new_tokens: int | None = None
    label_tokens: int = SHORT
    batch_size: int = 8
    clusters: int | None = None
    min_samples: int = 10
    encoder: str = "bundled"
    seed: int = 0
    progress: bool = True

    @property
    def needs_steerer(self) -> bool:
        """Whether any method works with what discovery found."""
        return any(m.needs_steerer for m in self.methods)

    def new_tokens(self, task: str) -> int:
        """Tokens that an answer of a task may have."""
        return self.max_new_tokens or answer_length(task, self.label_tokens)


@dataclass(frozen=True)
class Measured:
    """All measurements of a task.

    Attributes:
        texts: For each method, and each draw of a random one, the records of all samples; empty
            without generation.
        nll: Likelihood under each method, or None.
        settings: For each method, and each draw, how it steered, one text a fold.
        split: Which samples these are, for titles.
        heads_from: Where heads were found.
        draws: The names of each method's draws, by the method as typed; its own for one that is not
            drawn. The first is the baseline. Empty: the methods of the measurements.
    """

    task: str
    texts: dict[str, list[Record]]
    nll: Validation | None
    settings: dict[str, list[str]]
    folds: int
    split: str = ""
    heads_from: str = ""
    draws: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def methods(self) -> Mapping[str, Sequence[str]]:
        """The names of each method's draws; the first method is the baseline."""
        names = self.texts or (() if self.nll is None else self.nll.methods)
        return self.draws or {name: (name,) for name in names}


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    folds: Sequence[Fold],
    fitted: PreferenceSteerer | None,
    plan: EvaluationPlan,
    out: Path,
    *,
    split: str = "",
    heads_from: str = "",
) -> Measured:
    """Measure every method on every fold of a task; finished parts in ``out`` are kept.

    Args:
        folds: Samples, with those that heads are found on.
        fitted: The steerer to use; None fits one on each fold's pool.
        split, heads_from: As in :class:`Measured`.

    Raises:
        DataError: Samples that cannot be used, told before the work begins.
        ArtifactError: ``out`` holds another evaluation, or one is at work there.
    """
    try:
        alone = FileLock(writable_dir(out) / ".lock").acquire(timeout=0)
    except Timeout:
        raise ArtifactError(f"{out}: another evaluation is at work there") from None
    with alone:
        _check(model, tokenizer, task, folds, plan)
        drawn = {m.name: m.drawn(plan.seed) for m in plan.methods}
        methods = {one.name: one for draws in drawn.values() for one in draws}
        tests = [e for fold in folds for e in fold.test]
        records = Records(out / RECORDS)
        write_samples(out, tests)
        parts: list[Validation] = []
        settings: dict[str, list[str]] = {name: [] for name in methods}
        heads = partial(
            _retrieval_heads, model, tokenizer, plan, out.parent / "retrieval-heads.safetensors"
        )
        for index, fold in enumerate(folds):
            steerer = fitted
            if steerer is None and plan.needs_steerer:
                steerer = _fit(model, tokenizer, fold, plan, out / f"fit-{index}")
            decoders = [
                make_decoder(m, model, fold.test, steerer, heads, plan.seed)
                for m in methods.values()
            ]
            for decoder in decoders:
                settings[decoder.method.name].append(decoder.method.described(decoder.setting))
            common = (model, tokenizer, fold.test, decoders)
            how: dict[str, Any] = {"seed": plan.seed, "progress": plan.progress}
            if plan.likelihood:
                path = out / f"likelihood-{index}.jsonl"
                parts.append(likelihood(*common, checkpoint=path, **how))
            if plan.generation:
                generate_records(
                    *common,
                    records,
                    max_new_tokens=plan.new_tokens(task),
                    batch_size=plan.batch_size,
                    label=f"{task}, fold {index + 1} of {len(folds)}" if len(folds) > 1 else task,
                    **how,
                )
        ids = [e.id for e in tests]
        names = {name: tuple(one.name for one in draws) for name, draws in drawn.items()}
        texts = {name: records.of(name, ids) for name in methods} if plan.generation else {}
        nll = _joined(parts, names) if parts else None
        if nll is not None:
            write_json(out / LIKELIHOOD, plain(nll.to_dict()))
        return Measured(task, texts, nll, settings, len(folds), split, heads_from, names)


def _check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    folds: Sequence[Fold],
    plan: EvaluationPlan,
) -> None:
    """Stumble over what cannot be used now, not after hours of work."""
    answers = answers_of(task)
    for fold in folds:
        if plan.likelihood and len({e.user_id for e in fold.test}) < 2:
            raise DataError(f"{task}: likelihood compares users, and needs samples of two or more")
        if plan.generation:
            room = room_for_prompt(model, plan.new_tokens(task))
            for example in fold.test:
                encode(tokenizer, replace(example, output=None), max_length=room)
        for example in fold.test:
            gold = (example.output or "").strip()
            if example.output is not None and (problem := answers.problem(gold)):
                raise DataError(f"sample {example.id!r}: gold {gold!r} {problem}")


def answer_length(task: str, of_label: int = SHORT) -> int:
    """New tokens that an answer of this task needs, ``of_label`` if it is a label or a rating."""
    return answers_of(task).new_tokens or of_label


def _fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fold: Fold,
    plan: EvaluationPlan,
    folder: Path,
) -> PreferenceSteerer:
    users = {e.user_id for e in fold.pool}
    if (folder / "steerer.json").is_file():
        steerer = PreferenceSteerer.load(folder, model, tokenizer)
        if {user for part in steerer.users.values() for user in part} != users:
            raise ArtifactError(
                f"{folder}: its heads were found on other users than this run's; "
                "give another folder"
            )
        return steerer
    discovery = round(fold.share * len(users))
    steerer = PreferenceSteerer.fit(
        model,
        tokenizer,
        fold.pool,
        plan.clusters,
        fractions=(fold.share, 1 - fold.share),
        discovery_limit=discovery,
        calibration_limit=len(users) - discovery,
        min_samples=plan.min_samples,
        encoder=plan.encoder,
        run=folder,
        seed=plan.seed,
        progress=plan.progress,
    )
    steerer.save(folder)
    return steerer


def _joined(parts: Sequence[Validation], names: Mapping[str, Sequence[str]]) -> Validation:
    """All folds, and the draws of random controls as one method."""
    nll = np.concatenate([p.nll for p in parts])
    index = parts[0].methods.index
    drawn = {m: nll[:, :, [index(name) for name in draws]] for m, draws in names.items()}
    return replace(
        parts[0],
        methods=tuple(drawn),
        nll=np.stack([values.mean(-1) for values in drawn.values()], -1),
        draws={name: values for name, values in drawn.items() if values.shape[-1] > 1},
        example_ids=tuple(key for p in parts for key in p.example_ids),
        user_ids=tuple(user for p in parts for user in p.user_ids),
    )


def _retrieval_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: EvaluationPlan,
    path: Path,
    fraction: float,
) -> HeadWeights:
    """The heads that copy from the context most, measured once a model when a method asks."""
    if path.is_file():
        scores = HeadScores.load(path, model)
    else:
        scores = retrieval_scores(model, tokenizer, seed=plan.seed, progress=plan.progress)
        scores.save(path)
    with warnings.catch_warnings():  # a small model may have fewer that copy at all
        warnings.simplefilter("ignore")
        return scores.top(fraction=fraction)
