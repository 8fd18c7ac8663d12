"""Exact discovery: the Preference Contribution Score (PCS, Eq. 3-4) of every head, by ablation.

1. The prompt is encoded once; its keys and values serve all heads.
2. Ablating a head of layer l leaves everything below l as it was, so its row joins the pass at l
   as a copy of the unablated one (:mod:`prefheads.fork`).
3. The heads of several layers go through as one batch, response positions only.
4. PCS is the ablated minus the unablated mean NLL of the response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.attention import HeadLayout, head_layout, intercept
from prefheads.checkpoint import Checkpoint, digest, model_marks
from prefheads.encoding import Encoded
from prefheads.errors import DataError, SteeringError
from prefheads.examples import Example, other_profiles, without_profile
from prefheads.fork import Target
from prefheads.heads import HeadScores, Provenance, fingerprint
from prefheads.masks import masked_backend
from prefheads.scoring import Budget, Scorer, encode_all
from prefheads.steering import Scope

Reference = Literal["no-profile", "other-profile"]


def discover(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    scope: Scope = "response",
    target: Target = "head",
    reference: Reference | None = None,
    method: Literal["exact"] = "exact",
    end_of_turn: bool = False,
    checkpoint: str | Path | None = None,
    tokens_per_pass: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> HeadScores:
    """Preference Contribution Scores of all heads on all examples.

    Args:
        model: Any causal language model of transformers that uses its attention interface.
        examples: Each with a response.
        scope: ``"response"``: the head is ablated where the response is predicted, as steering
            does. ``"all"``: at every position, the prompt's too (Eq. 4 read literally).
        target: What ablation takes away: ``"head"``, the head's output; ``"profile"``, only what
            it reads from the profile's tokens.
        reference: Subtract the same score measured with the profile taken out
            (``"no-profile"``) or another user's in its place (``"other-profile"``).
        method: ``"exact"``.
        end_of_turn: Count the end-of-turn token as part of the response.
        checkpoint: File in which finished examples are kept; a killed run that is started again
            goes on from it, and a finished one returns at once.
        tokens_per_pass: Memory bound; halved by itself when memory runs out.
        seed: Decides whose profile is the other one.
        progress: Show a progress bar.

    Returns:
        Scores ``(n_examples, n_layers, n_heads)`` in nats a token.

    Raises:
        DataError: An example without response, or one that does not fit the context.
        ModelError: The model cannot be handled, or its logits are not finite.
        ArtifactError: The checkpoint belongs to another run, or cannot be read or written.
    """
    for name, value, allowed in (
        ("scope", scope, get_args(Scope)),
        ("target", target, get_args(Target)),
        ("reference", reference, (None, *get_args(Reference))),
        ("method", method, ("exact",)),
    ):
        if value not in allowed:
            choices = ", ".join(map(str, allowed))
            raise SteeringError(f"unknown {name} {value!r}; choose from {choices}")
    if not examples:
        raise DataError("no examples to discover heads on")
    layout = head_layout(model)
    encoded = encode_all(model, tokenizer, examples, end_of_turn)
    others: list[Encoded] | None = None
    if reference == "other-profile":
        others = encode_all(model, tokenizer, other_profiles(examples, seed), end_of_turn)
    elif reference == "no-profile" and target == "head":  # no profile, nothing to read from it
        without = [without_profile(e) for e in examples]
        others = encode_all(model, tokenizer, without, end_of_turn)

    tasks = {e.task for e in examples}
    info = Provenance(
        model_id=str(model.config.name_or_path),
        fingerprint=fingerprint(model.config),
        task=tasks.pop() if len(tasks) == 1 else None,
        scope=scope,
        target=target,
        reference=reference,
        method=method,
        n_examples=len(examples),
        seed=seed,
    )
    run = digest([asdict(info), *model_marks(model)], [*encoded, *(others or [])])
    budget = Budget(tokens_per_pass)
    with intercept(model, masked_backend(model)), Checkpoint(checkpoint, run) as store:
        done = len(store.rows)
        indices = range(done, len(examples))
        bar = tqdm(
            indices, "PCS", len(examples), unit="example", initial=done, disable=not progress
        )
        for i in bar:
            score, base = _pcs(model, layout, encoded[i], scope, target, budget)
            if others is not None:
                score = score - _pcs(model, layout, others[i], scope, target, budget)[0]
            store.add(values=score, nll=base)
        result = store.stacked()
    return HeadScores(
        result["values"],
        result["nll"],
        tuple(e.id for e in examples),
        tuple(e.user_id for e in examples),
        info,
    )


def _pcs(
    model: PreTrainedModel,
    layout: HeadLayout,
    encoded: Encoded,
    scope: Scope,
    target: Target,
    budget: Budget,
) -> tuple[Tensor, Tensor]:
    """PCS of every head on one example ``(n_layers, n_heads)``, and the unablated NLL ``()``."""
    n = layout.shape[0] * layout.shape[1]
    gains = (1 - torch.eye(n)).reshape(n, *layout.shape)  # one head less in each
    base, ablated = Scorer(model, encoded, scope, budget).nll(gains, target)
    return (ablated - base).reshape(layout.shape), base
