"""Likelihood of responses (Eq. 3): of one under many head maps, or of many under one steering."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.data.encoding import Encoded, encode, pad_batch
from prefheads.data.example import Example
from prefheads.errors import DataError, ModelError, SteeringError
from prefheads.interventions.branching import BranchedForward
from prefheads.interventions.hooks import attribute_set_to, hooked
from prefheads.interventions.intercept import evaluating, head_layout
from prefheads.interventions.layout import (
    causal_model,
    input_device,
    positions,
    require_keys_of_tokens,
    takes_positions,
)
from prefheads.interventions.plan import (
    ALL_POSITIONS,
    ActivePositions,
    BranchPlan,
    branches_of_one,
    without_branches,
)
from prefheads.interventions.probes import sharing_of
from prefheads.interventions.projection import vocabulary_projection
from prefheads.interventions.shared_prompt import NewTokensCache, RecordedPrompt
from prefheads.models.limits import Budget, context_length
from prefheads.steering.context import active_steering
from prefheads.steering.response import response_from
from prefheads.types import Scope, Target

AT_ONCE = 2**24  # logits in memory beside those that are returned


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL in nats of ``targets`` (..., T) under ``logits`` (..., T, vocab), float32 (..., T)."""
    chosen = logits.gather(-1, targets.expand(logits.shape[:-1])[..., None])[..., 0].float()
    rows = logits.flatten(0, -2)
    few = max(1, AT_ONCE // logits.shape[-1])
    lse = torch.cat([part.float().logsumexp(-1) for part in rows.split(few)])
    return lse.reshape(chosen.shape) - chosen


def mean_nll(logits: Tensor, targets: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Mean NLL of ``targets`` (T,) under ``logits`` (T, vocab) at each temperature, on the CPU."""
    at_each = (logits if t == 1 else logits / t for t in temperatures)
    return torch.stack([token_nll(x, targets).mean() for x in at_each]).cpu()


def projected_nll(
    hidden: Tensor, projection: nn.Linear, targets: Tensor, known: tuple[Tensor, Tensor]
) -> Tensor:
    """NLL of ``targets`` (T,) under the logits that a projection makes of ``hidden`` (rows, T,
    width), float32 (rows, T). ``known``: hidden states ``(1, T, width)`` close to all of them, and
    their logits."""
    # Only the difference is projected: it is small, and so is its rounding error.
    parts = (hidden - known[0]).split(max(1, AT_ONCE // known[1].numel()))
    logits = (known[1] + nn.functional.linear(x, projection.weight).float() for x in parts)
    return torch.cat([token_nll(x, targets) for x in logits])


class CleanRun(BranchedForward):
    """The pass of the unsteered model over the response; it records what branches leave from."""

    logits: Tensor  # of the response, (1, T, vocab)
    hidden: Tensor | None = None  # what a vocabulary projection made them of, (1, T, width)

    def __init__(self, plan: BranchPlan, n_keys: int, prompt: RecordedPrompt | None) -> None:
        super().__init__(plan, n_keys, prompt=prompt)
        self.recorded: dict[int, Tensor] = {}  # what entered each layer, (1, n, width)
        self.rest: dict[int, Any] = {}  # what else it was given

    @property
    def nbytes(self) -> int:
        """Bytes of its logits and of what entered each layer."""
        return self.logits.nbytes + sum(x.nbytes for x in self.recorded.values())

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Record the layer's input."""
        self.recorded[index] = hidden
        self.rest[index] = rest
        return super().enter_layer(index, hidden, rest)


class Scorer:
    """Scores one response under any number of head maps. What they share is computed once: the
    prompt, and the clean run from which their rows leave.

    Must be used inside :func:`prefheads.interventions.intercept.intercept`, with a backend that
    takes masks.

    Args:
        encoded: Prompt, response and profile mask of one example.
        scope: ``"response"``: gains act at the positions that predict the response, and all maps
            share the prompt where the model allows it (:mod:`prefheads.interventions.probes`).
            ``"all"``: gains act at every position.
        budget: Bound on the tokens of a pass, shared between examples so that it adapts once.
        means: What ablated heads hand on, as for :class:`prefheads.interventions.plan.BranchPlan`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoded: Encoded,
        scope: Scope,
        budget: Budget | None = None,
        means: Sequence[Tensor] | None = None,
    ) -> None:
        self.means = means
        self.model = model = causal_model(model)
        self.layout = head_layout(model)
        self.encoded = encoded
        self.budget = budget or Budget()
        device = input_device(model)
        prompt, self.targets = encoded.prompt_ids.to(device), encoded.response_ids.to(device)
        self.n_keys = len(prompt) + len(self.targets) - 1
        self.profile = nn.functional.pad(encoded.profile_mask, (0, self.n_keys - len(prompt)))[None]
        self.ids = torch.cat([prompt, self.targets[:-1]])[None]
        self.first = 0  # position that passes begin at
        self.active = ActivePositions(len(prompt) - 1) if scope == "response" else ALL_POSITIONS
        self.prompt: RecordedPrompt | None = None  # shared by all rows
        sharing = sharing_of(model)
        self.any_layer = sharing.any_layer
        # Positions that scale with the longest text seen (dynamic NTK): a short text resets them.
        if "dynamic" in str(getattr(model.config.get_text_config(), "rope_parameters", None)):
            ids = torch.zeros((1, 2), dtype=torch.long, device=device)
            with torch.no_grad():
                model(input_ids=ids, use_cache=False, **positions(model, 0, 2))
        if self.active.start and sharing.recorded:
            self.first, self.active = self.active.start, ALL_POSITIONS
            # The whole text: some models place tokens by how many there are.
            self.prompt = RecordedPrompt(self.first)
            with torch.no_grad(), hooked(self.prompt):
                self._logits(0, 1)
            self.prompt.layer_inputs.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of the prompt and the clean run."""
        return self.clean_run.nbytes + (0 if self.prompt is None else self.prompt.nbytes)

    @torch.no_grad()
    def logits(self, gains: Tensor, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield indices ``(r,)`` into maps of gains ``(R, n_layers, n_heads)``, and the logits of
        the response under each of them, those of the clean run first, ``(1 + r, T, vocab)``."""
        for rows, logits in self._branched(gains, target, self.run):
            yield rows, torch.cat([self.clean_run.logits, logits])

    def _branched(
        self, gains: Tensor, target: Target, answer: Callable[[BranchedForward], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows of ``gains``, and ``answer`` of the pass that they share."""
        if target == "profile":
            require_keys_of_tokens(self.model, self.layout)
        # Rows that leave at about the same layer share a pass.
        order = branches_of_one(gains, target)[1]

        def work(rows: slice) -> Tensor:
            plan, _ = branches_of_one(
                gains[order[rows]], target, any_layer=self.any_layer, means=self.means
            )
            return answer(self.branch(plan))

        for rows, logits in self.budget.run(len(gains), self.n_keys - self.first, work):
            yield order[rows], logits

    @cached_property
    def clean_run(self) -> CleanRun:
        """The pass of the unsteered model, which runs once."""
        ones = torch.ones(1, *self.layout.shape)
        clean = CleanRun(without_branches(ones, "head"), self.n_keys, self.prompt)
        projection = vocabulary_projection(self.model)
        with torch.no_grad():
            if projection is None:
                clean.logits = self.run(clean)
            else:
                clean.hidden = self._hidden(clean, projection)
                clean.logits = projection(clean.hidden)
        return clean

    def branch(self, plan: BranchPlan) -> BranchedForward:
        """A pass of rows that leave the clean run."""
        recorded = self.clean_run.recorded
        return BranchedForward(plan, self.n_keys, self.profile, self.prompt, recorded, self.active)

    def run(self, branched: BranchedForward) -> Tensor:
        """Logits of the response ``(rows, T, vocab)`` of a pass, from its first layer on."""
        cache = None if self.prompt is None else self.prompt.cache(self.layout.shape[0])
        with branched.running(self.layout):
            return self._logits(self.first, len(self.targets), cache)

    def _logits(self, first: int, n: int, cache: NewTokensCache | None = None) -> Tensor:
        """Logits of the last ``n`` positions in a call with the tokens from ``first`` on."""
        options = {}
        if takes_positions(self.model):
            options["position_ids"] = torch.arange(first, self.n_keys, device=self.ids.device)[None]
        logits: Tensor = self.model(
            input_ids=self.ids[:, first:],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=n,
            **options,
        ).logits
        return logits[:, -n:]  # some models give all of them

    def _hidden(self, branched: BranchedForward, projection: nn.Linear) -> Tensor:
        """What enters the projection where the response is predicted, ``(rows, T, width)``."""
        with attribute_set_to(projection, "forward", lambda hidden: hidden):
            return self.run(branched)

    def _token_nll(self, branched: BranchedForward) -> Tensor:
        """NLL of the response's tokens ``(rows, T)`` in a pass."""
        projection, clean = vocabulary_projection(self.model), self.clean_run
        if projection is None or clean.hidden is None:
            return token_nll(self.run(branched), self.targets)
        hidden = self._hidden(branched, projection)
        return projected_nll(hidden, projection, self.targets, (clean.hidden, clean.logits))

    @torch.no_grad()
    def nll(self, gains: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Mean response NLL (Eq. 3), in nats a token, of the clean run ``()`` and under each map of
        gains ``(R,)``."""
        result = torch.empty(len(gains))
        for rows, nll in self._branched(gains, target, self._token_nll):
            result[rows] = nll.mean(-1).cpu()
        base = token_nll(self.clean_run.logits[0], self.targets).mean().cpu()
        if not (torch.isfinite(result).all() and torch.isfinite(base)):
            raise ModelError(
                f"the model's logits for example {self.encoded.example_id!r} are not finite; "
                "try float32"
            )
        return base, result


@torch.inference_mode(False)  # screening differentiates with what this makes
def encode_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    end_of_turn: bool = False,
) -> list[Encoded]:
    """Encode examples for a model's context; every one must have a response."""
    for example in examples:
        if not example.output:
            raise DataError(f"example {example.id!r} has no response to score")
    limit = context_length(model)
    return [encode(tokenizer, e, max_length=limit, end_of_turn=end_of_turn) for e in examples]


@torch.no_grad()
def response_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    *,
    batch_size: int = 8,
    end_of_turn: bool = False,
) -> Tensor:
    """Mean NLL of each example's response, in nats a token (Eq. 3), under whatever steering is
    active, in evaluation mode.

    Args:
        batch_size: Examples a pass. Under a steering for B users, ``examples`` are those users' in
            order, one each, and go through as one batch.

    Returns:
        ``(n_examples,)`` float32.

    Raises:
        DataError: An example has no response or does not fit the context.
        ModelError: The logits are not finite.
        SteeringError: Not one example for each user of the steering.
    """
    model, examples = causal_model(model), list(examples)
    encoded = encode_all(model, tokenizer, examples, end_of_turn)
    steering = active_steering(model)
    if steering is not None and steering.batch > 1:
        batch_size = steering.batch
        if len(encoded) != batch_size:
            raise SteeringError(
                f"a batch of {len(encoded)} does not fit steering for {batch_size} users: give one "
                "example for each, in their order"
            )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    device = input_device(model)
    values = []
    for i in range(0, len(encoded), batch_size):
        batch = pad_batch(encoded[i : i + batch_size], pad)
        ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)[:, :-1].to(device)
        mask = torch.cat([batch.prompt_mask, batch.response_mask], 1)[:, :-1].to(device).long()
        options = {}
        if takes_positions(model):
            options["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        n_prompt, n = batch.prompt_ids.shape[1], batch.response_ids.shape[1]
        with evaluating(model), response_from(n_prompt, profile_mask=batch.profile_mask):
            out = model(input_ids=ids, attention_mask=mask, logits_to_keep=n, **options)
        logits = out.logits[:, -n:]
        real = batch.response_mask.to(logits.device)
        nll = token_nll(logits, batch.response_ids.to(logits.device)).masked_fill(~real, 0)
        values.append((nll.sum(1) / real.sum(1)).cpu())
    result = torch.cat(values) if values else torch.empty(0)
    if not torch.isfinite(result).all():
        bad = examples[int((~torch.isfinite(result)).nonzero()[0])].id
        raise ModelError(f"the model's logits for example {bad!r} are not finite; try float32")
    return result
