"""How likely every method makes what users really wrote: own, another's and no profile.

Needs no generation, and separates methods with far fewer samples than text metrics do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.calibration.calibrate import score_settings
from prefheads.calibration.validate import Validation
from prefheads.checkpoint import Checkpoint, digest, model_marks
from prefheads.data.encoding import Encoded
from prefheads.data.example import Example, other_profiles, without_profile
from prefheads.evaluation.decoder import SETTING_FIELDS, Decoder
from prefheads.interventions.intercept import head_layout, intercept, masked_backend
from prefheads.models.limits import Budget
from prefheads.scoring.scorer import Scorer, encode_all, mean_nll
from prefheads.stats import Array
from prefheads.steering.combine import require_numbers
from prefheads.steering.setting import PLAIN
from prefheads.types import Scope


def likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    decoders: Sequence[Decoder],
    *,
    checkpoint: Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Validation:
    """Mean NLL of every response under every method, in three contexts.

    A method's temperature divides its logits. Columns of methods under which a given text has no
    likelihood (``Decoder.has_likelihood``) are NaN. Infinite where any other method rules out what
    a user wrote.

    Args:
        examples: Samples of at least two users, each with a response.
        decoders: Made for these very examples.
        checkpoint: Files of finished samples get this name and a hash of the methods.
        seed: Decides whose profile is the other one.

    Raises:
        DataError: The model itself rules out what a user wrote.
        ModelError: Logits that are no numbers.
    """
    bare = [without_profile(e) for e in examples]
    encoded = [
        encode_all(model, tokenizer, context)
        for context in (examples, other_profiles(examples, seed), bare)
    ]
    degrees = sorted({float(d.method.options["temperature"]) for d in decoders})
    nll = np.full((len(examples), 3, len(decoders)), np.nan)
    for scope in ("response", "all"):
        chosen = [i for i, d in enumerate(decoders) if d.scope == scope and d.has_likelihood]
        if not chosen:
            continue
        part = [decoders[i] for i in chosen]
        values = _scores(model, encoded, part, scope, degrees, checkpoint, progress)
        for column, i in enumerate(chosen):
            t = degrees.index(float(decoders[i].method.options["temperature"]))
            nll[:, :, i] = values[:, :, column, t]
    return Validation(
        PLAIN,
        tuple(d.method.name for d in decoders),
        nll,
        tuple(e.id for e in examples),
        tuple(e.user_id for e in examples),
    )


def _scores(
    model: PreTrainedModel,
    encoded: Sequence[Sequence[Encoded]],
    decoders: Sequence[Decoder],
    scope: Scope,
    temperatures: Sequence[float],
    checkpoint: Path | None,
    progress: bool,
) -> Array:
    """NLL ``(n_examples, n_contexts, n_decoders, n_temperatures)`` of decoders of one scope.

    Every prompt is encoded once for all of them. The last context is the one without a profile,
    which methods may contrast with.
    """
    settings = [replace(d.setting, heads=d.method.name) for d in decoders]
    maps = {d.method.name: w for d in decoders if (w := d.weights) is not None}
    nothing = {"none": torch.zeros(head_layout(model).shape)}
    own_logits = [i for i, d in enumerate(decoders) if d.method.likelihood == "logits"]
    # As the marks of results of before have them.
    written = [{field: getattr(s, field) for field in SETTING_FIELDS} for s in settings]
    contrasts = {i: decoders[i].strength for i in own_logits}
    run = digest(
        [scope, written, contrasts, list(temperatures), *model_marks(model)],
        (e for part in encoded for e in part),
        list(maps.values()),
    )
    budget = Budget()
    path = checkpoint and checkpoint.with_stem(f"{checkpoint.stem}-{scope}-{run[:8]}")
    label = "likelihood" if scope == "response" else "likelihood, all positions"

    def row(i: int) -> dict[str, Tensor]:
        own = {name: m[i] for name, m in maps.items()} or nothing
        scorers = [Scorer(model, part[i], scope, budget) for part in encoded]
        nll = torch.stack([score_settings(s, own, settings, temperatures)[0] for s in scorers])
        if own_logits:
            plain = [s.clean_run.logits[0].float() for s in scorers]
            for column in own_logits:
                for context, scorer in enumerate(scorers):
                    logits = decoders[column].method.logits(plain[context], plain[-1])
                    nll[context, column] = mean_nll(logits, scorer.targets, temperatures)
            require_numbers(nll, encoded[0][i].example_id)
        return {"nll": nll}

    with intercept(model, masked_backend(model)):
        store = Checkpoint(path, run)
        rows = store.fill(range(len(encoded[0])), row, label, progress)
    return rows["nll"].double().numpy()
