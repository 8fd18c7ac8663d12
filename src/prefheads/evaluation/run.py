"""One task from its samples to its measurements: find heads, generate, score likelihood."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.discovery.retrieval import retrieval_scores
from prefheads.errors import ArtifactError
from prefheads.evaluation.folds import Fold
from prefheads.evaluation.generate import generate_records
from prefheads.evaluation.likelihood import likelihood
from prefheads.evaluation.methods import Decoder, Method, make_decoder
from prefheads.evaluation.records import Record, Records
from prefheads.examples import Example
from prefheads.heads import HeadScores, HeadWeights
from prefheads.steerer import PreferenceSteerer
from prefheads.storage import writable_dir
from prefheads.validate import Validation

SHORT, LONG, VERY_LONG = 16, 48, 512  # new tokens for a label, a line, a page


@dataclass(frozen=True)
class Plan:
    """How tasks are evaluated; what the results depend on.

    Attributes:
        methods: What is compared; the first is the baseline.
        generation, likelihood: What is measured.
        max_new_tokens: By default what the task's answers need.
        clusters: Clusters of users; chosen from the data if None.
        min_samples: Discovery samples that a cluster needs.
        encoder: Sentence encoder of profiles.
    """

    methods: tuple[Method, ...]
    generation: bool = True
    likelihood: bool = True
    max_new_tokens: int | None = None
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


@dataclass(frozen=True)
class Measured:
    """All measurements of a task.

    Attributes:
        task: Its name.
        texts: For each method the records of all samples; empty without generation.
        nll: Likelihood under every method, or None.
        settings: For each method how it steered, one text a fold.
        folds: Number of folds.
    """

    task: str
    texts: dict[str, list[Record]]
    nll: Validation | None
    settings: dict[str, list[str]]
    folds: int


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    folds: Sequence[tuple[Fold, PreferenceSteerer | None]],
    plan: Plan,
    out: Path,
) -> Measured:
    """Measure every method on every fold of a task; finished parts in ``out`` are kept.

    Args:
        folds: Samples, and the steerer to use with them; None fits one on the fold's pool.

    Raises:
        ArtifactError: ``out`` holds another evaluation, or one is at work there.
    """
    writable_dir(out)
    try:
        with FileLock(out / ".lock", timeout=0):
            return _evaluate(model, tokenizer, task, folds, plan, out)
    except Timeout:
        raise ArtifactError(f"{out}: another evaluation is at work there") from None


def _evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    folds: Sequence[tuple[Fold, PreferenceSteerer | None]],
    plan: Plan,
    out: Path,
) -> Measured:
    records = Records(out / "records.jsonl")
    parts: list[Validation] = []
    settings: dict[str, list[str]] = {}
    for index, (fold, fitted) in enumerate(folds):
        name = f"{task}, fold {index + 1} of {len(folds)}" if len(folds) > 1 else task
        steerer = fitted
        if steerer is None and plan.needs_steerer:
            steerer = _fit(model, tokenizer, fold, plan, out / f"fit-{index}")
        heads = RetrievalHeads(model, tokenizer, out.parent / "retrieval-heads.safetensors", plan)
        decoders = [make_decoder(m, model, fold.test, steerer, heads) for m in plan.methods]
        for decoder in decoders:
            how = str(decoder.setting) if decoder.maps else decoder.method.kind
            settings.setdefault(decoder.method.name, []).append(how)
        if plan.likelihood:
            parts.append(_likelihood(model, tokenizer, fold.test, decoders, plan, out, index))
        if plan.generation:
            generate_records(
                model,
                tokenizer,
                fold.test,
                decoders,
                records,
                max_new_tokens=plan.max_new_tokens or answer_length(task),
                batch_size=plan.batch_size,
                seed=plan.seed,
                progress=plan.progress,
                label=name,
            )
    ids = [e.id for fold, _ in folds for e in fold.test]
    names = [m.name for m in plan.methods]
    texts = {name: records.of(name, ids) for name in names} if plan.generation else {}
    return Measured(task, texts, _joined(parts), settings, len(folds))


def answer_length(task: str) -> int:
    """New tokens that an answer of this task needs."""
    if task.startswith("LongLaMP"):
        return VERY_LONG
    return SHORT if task in ("LaMP-1", "LaMP-2", "LaMP-3") else LONG


def _fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fold: Fold,
    plan: Plan,
    folder: Path,
) -> PreferenceSteerer:
    if (folder / "steerer.json").is_file():
        return PreferenceSteerer.load(folder, model, tokenizer)
    steerer = PreferenceSteerer.fit(
        model,
        tokenizer,
        fold.pool,
        plan.clusters,
        fractions=(fold.share, 1 - fold.share),
        min_samples=plan.min_samples,
        encoder=plan.encoder,
        run=folder,
        seed=plan.seed,
        progress=plan.progress,
    )
    steerer.save(folder)
    return steerer


def _likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    decoders: Sequence[Decoder],
    plan: Plan,
    out: Path,
    fold: int,
) -> Validation:
    return likelihood(
        model,
        tokenizer,
        examples,
        decoders,
        checkpoint=out / f"likelihood-{fold}.safetensors",
        seed=plan.seed,
        progress=plan.progress,
    )


def _joined(parts: Sequence[Validation]) -> Validation | None:
    if not parts:
        return None
    return replace(
        parts[0],
        nll=np.concatenate([p.nll for p in parts]),
        example_ids=tuple(key for p in parts for key in p.example_ids),
        user_ids=tuple(user for p in parts for user in p.user_ids),
    )


class RetrievalHeads:
    """The heads that copy from the context, measured once a model when a method asks for them."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, plan: Plan
    ) -> None:
        self.model, self.tokenizer, self.path, self.plan = model, tokenizer, path, plan
        self._scores: HeadScores | None = None

    def __call__(self, fraction: float) -> HeadWeights:
        """The heads with the highest copy scores, so many of all."""
        if self._scores is None and self.path.is_file():
            self._scores = HeadScores.load(self.path, self.model)
        if self._scores is None:
            self._scores = retrieval_scores(
                self.model, self.tokenizer, seed=self.plan.seed, progress=self.plan.progress
            )
            self._scores.save(self.path)
        with warnings.catch_warnings():  # a small model may have fewer that copy at all
            warnings.simplefilter("ignore")
            return self._scores.top(fraction=fraction)
