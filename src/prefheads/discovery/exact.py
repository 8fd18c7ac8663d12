"""Discovery: the Preference Contribution Score (PCS, Eq. 3-4) of every head, by ablation.

1. The prompt is encoded once; its keys and values serve all heads.
2. Ablating a head of layer l leaves everything below l as it was, so its row joins the pass at l
   as a copy of the unablated one (:mod:`prefheads.interventions.branching`).
3. The heads of several layers go through as one batch, response positions only.
4. PCS is the ablated minus the unablated mean NLL of the response tokens.

Screened discovery does this for the heads alone whose estimated score is high
(:mod:`prefheads.discovery.screen`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.checkpoint import Checkpoint, digest, model_marks
from prefheads.data.encoding import Encoded
from prefheads.data.example import Example, other_profiles, without_profile
from prefheads.discovery.screen import CANDIDATES, choose_candidates, estimate_scores
from prefheads.errors import DataError, ModelError, SteeringError
from prefheads.heads.scores import HeadScores, Provenance, fingerprint
from prefheads.interventions.hooks import AttentionCall, AttentionRecorder, hooked
from prefheads.interventions.intercept import head_layout, intercept, masked_backend
from prefheads.interventions.layout import HeadLayout, causal_model, input_device, positions
from prefheads.interventions.probes import sharing_of
from prefheads.models.limits import Budget
from prefheads.progress import track
from prefheads.scoring.scorer import Scorer, encode_all
from prefheads.types import Ablation, DiscoveryMethod, Reference, Scope, Target

KEPT_BYTES = 2**30  # prompts kept between screening and ablation; others are encoded twice


def discover(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    *,
    scope: Scope = "response",
    target: Target = "head",
    reference: Reference | None = None,
    method: DiscoveryMethod = "exact",
    ablation: Ablation = "zero",
    candidates: float = CANDIDATES,
    end_of_turn: bool = False,
    checkpoint: str | Path | None = None,
    tokens_per_pass: int = 1024,
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
            it reads from the profile's tokens; ``"query"``, what it looks for.
        reference: Subtract the same score measured with the profile taken out
            (``"no-profile"``) or another user's in its place (``"other-profile"``).
        method: ``"exact"``: every head is ablated. ``"screen"``: only the heads whose scores a
            second-order estimate from gradients, averaged over all examples, puts highest. They
            are the same on all examples, and their scores are those of ``"exact"``; the others
            have not been measured: their score is 0, so that they are never selected.
        ablation: ``"zero"``: an ablated head hands on nothing, as in the paper. ``"mean"``: it
            hands on its mean output over all examples where ablation acts; for target
            ``"head"`` and method ``"exact"``.
        candidates: Share of all heads that ``"screen"`` ablates; take several times the share that
            is to be selected.
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
        SteeringError: An unknown option, or a share of candidates outside (0, 1].
        ArtifactError: The checkpoint belongs to another run, or cannot be read or written.
    """
    for name, value, allowed in (
        ("scope", scope, get_args(Scope)),
        ("target", target, get_args(Target)),
        ("reference", reference, (None, *get_args(Reference))),
        ("method", method, get_args(DiscoveryMethod)),
        ("ablation", ablation, get_args(Ablation)),
    ):
        if value not in allowed:
            choices = ", ".join(map(str, allowed))
            raise SteeringError(f"unknown {name} {value!r}; choose from {choices}")
    if not 0 < candidates <= 1:
        raise SteeringError(f"candidates={candidates}: give a share of the heads in (0, 1]")
    if ablation == "mean" and (target, method) != ("head", "exact"):
        raise SteeringError("ablation='mean' goes with target='head' and method='exact'")
    model, examples = causal_model(model), list(examples)
    if not examples:
        raise DataError("no examples to discover heads on")
    layout = head_layout(model)
    encoded = encode_all(model, tokenizer, examples, end_of_turn)
    others: list[Encoded] | None = None
    if reference == "other-profile":
        others = encode_all(model, tokenizer, other_profiles(examples, seed), end_of_turn)
    elif reference == "no-profile" and target != "profile":  # no profile, nothing to read from it
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
        ablation=ablation,
        n_examples=len(examples),
        seed=seed,
    )
    screened = method == "screen"
    options = [asdict(info), *([candidates] if screened else []), *model_marks(model)]
    run = digest(options, [*encoded, *(others or [])])
    budget, means, room = Budget(tokens_per_pass), None, KEPT_BYTES if screened else 0
    # Screening takes gradients, which inference mode has none of.
    without_gradients = torch.is_inference_mode_enabled() and not screened
    with (
        torch.inference_mode(without_gradients),
        intercept(model, masked_backend(model)),
    ):
        store = Checkpoint(checkpoint, run)
        if ablation == "mean":
            means = store.once("means", lambda: mean_outputs(model, encoded, scope, progress))
        scorers = _Scorers(lambda e: Scorer(model, e, scope, budget, means), room)

        def fill(
            first: int, label: str, score: Callable[[Encoded], tuple[Tensor, Tensor]]
        ) -> dict[str, Tensor]:
            """Fill the rows of the checkpoint from ``first`` on, one an example."""

            def row(i: int) -> dict[str, Tensor]:
                values, nll = score(encoded[i])
                if others is not None:
                    values = values - score(others[i])[0]
                return {"values": values, "nll": nll}

            rows = range(first, first + len(encoded))
            return store.fill(rows, row, f"{label}, target {target}", progress)

        first, heads = 0, torch.arange(layout.shape[0] * layout.shape[1])
        if screened:
            if not sharing_of(model).any_layer:
                raise ModelError(
                    f"{type(model).__name__} hands more than hidden states from layer to layer, "
                    "so one alone cannot be differentiated; use method 'exact'"
                )

            estimates = fill(
                0, "screening", lambda e: estimate_scores(scorers.lend(e), layout, target, seed)
            )
            first, heads = len(examples), choose_candidates(estimates["values"], candidates)
        result = fill(first, "PCS", lambda e: _pcs(scorers.take(e), layout, target, heads))
    return HeadScores(
        result["values"],
        result["nll"],
        tuple(e.id for e in examples),
        tuple(e.user_id for e in examples),
        info,
    )


class _Scorers:
    """Makes the scorer of an example, and keeps those that are used twice while they fit."""

    def __init__(self, make: Callable[[Encoded], Scorer], room: int) -> None:
        self.make, self.room = make, room  # bytes
        self._kept: dict[int, Scorer] = {}

    def lend(self, encoded: Encoded) -> Scorer:
        """A scorer that will be asked for again."""
        scorer = self.make(encoded)
        size = scorer.nbytes
        if size <= self.room:
            self.room -= size
            self._kept[id(encoded)] = scorer
        return scorer

    def take(self, encoded: Encoded) -> Scorer:
        """A scorer, for the last time."""
        return self._kept.pop(id(encoded), None) or self.make(encoded)


def _pcs(
    scorer: Scorer, layout: HeadLayout, target: Target, heads: Tensor
) -> tuple[Tensor, Tensor]:
    """PCS on one example ``(n_layers, n_heads)``, 0 but for ``heads``, indices ``(n,)`` into the
    flattened ones; and the unablated NLL ``()``."""
    scores = torch.zeros(layout.shape[0] * layout.shape[1])
    gains = torch.ones(len(heads), len(scores))
    gains[torch.arange(len(heads)), heads] = 0  # one head less in each
    base, ablated = scorer.nll(gains.reshape(-1, *layout.shape), target)
    scores[heads] = ablated - base
    return scores.reshape(layout.shape), base


class _Sums(AttentionRecorder):
    """Adds up what the heads of each layer hand on from a position on."""

    def __init__(self) -> None:
        self.start, self.count = 0, 0
        self.sums: dict[int, Tensor] = {}

    def record(self, call: AttentionCall, out: Tensor, weights: Tensor | None) -> None:
        """Add the outputs of one text, ``(1, T, H, d)``."""
        total = out[0, self.start :].double().sum(0).cpu()
        self.sums[call.layer] = self.sums.get(call.layer, 0) + total


@torch.no_grad()
def mean_outputs(
    model: PreTrainedModel, encoded: Sequence[Encoded], scope: Scope, progress: bool = True
) -> list[Tensor]:
    """The mean output of every head where ablation of a scope acts, over all positions of all
    examples alike: for each layer ``(n_heads, head_dim)``, float32."""
    sums, device = _Sums(), input_device(model)
    for e in track(encoded, "mean outputs", unit="example", disable=not progress):
        ids = torch.cat([e.prompt_ids, e.response_ids[:-1]]).to(device)[None]
        sums.start = len(e.prompt_ids) - 1 if scope == "response" else 0
        sums.count += ids.shape[1] - sums.start
        places = positions(model, 0, ids.shape[1])
        with hooked(sums):
            model(input_ids=ids, use_cache=False, logits_to_keep=1, **places)
    layers = range(head_layout(model).shape[0])
    return [(sums.sums[i] / sums.count).float().to(device) for i in layers]
