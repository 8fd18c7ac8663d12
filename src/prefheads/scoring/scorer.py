"""Likelihood of responses (Eq. 3): of one under many head maps, of many under one steering."""

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
from prefheads.interventions.branching import Pass
from prefheads.interventions.forward import forward_set_to, skipped
from prefheads.interventions.hooks import observing
from prefheads.interventions.intercept import (
    causal_model,
    evaluating,
    head_layout,
    input_device,
    positions,
)
from prefheads.interventions.layout import require_keys_of_tokens
from prefheads.interventions.plan import ALL, Plan, Where, branch_plan
from prefheads.interventions.probes import sharing_of
from prefheads.interventions.shared_prompt import Clean, NewOnly
from prefheads.models.limits import Budget, context_length
from prefheads.scoring.nll import projected_nll, token_nll, vocabulary_projection
from prefheads.steering.context import active_steering
from prefheads.steering.response import response_from
from prefheads.types import Scope, Target


class Unchanged(Pass):
    """The pass of the unchanged model over the response, and what it leaves for those that branch
    off.

    Attributes:
        inputs: ``(1, n, d)``, the hidden states that entered each layer.
        rest: What else each layer was given.
        logits: ``(1, T, vocab)`` of the response.
        hidden: ``(1, T, d)``, what a :func:`vocabulary_projection` made them of, if there is one.
    """

    logits: Tensor
    hidden: Tensor | None = None

    def __init__(self, plan: Plan, n_keys: int, prompt: Clean | None) -> None:
        super().__init__(plan, n_keys, prompt=prompt)
        self.inputs: dict[int, Tensor] = {}
        self.rest: dict[int, Any] = {}

    @property
    def nbytes(self) -> int:
        """Of what it leaves."""
        return self.logits.nbytes + sum(x.nbytes for x in self.inputs.values())

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Keep the layer's input."""
        self.inputs[index] = hidden
        self.rest[index] = rest
        return super().enter_layer(index, hidden, rest)


class Scorer:
    """Scores one response under any number of head maps; what they share is computed once: the
    prompt, and what enters each layer of the unchanged model.

    Must be used inside :func:`prefheads.interventions.intercept.intercept`, with a backend that
    takes masks.

    Args:
        encoded: Prompt, response and profile mask of one example.
        scope: ``"response"``: gains act at positions that predict the response, and what attention
            reads of the prompt is shared by all maps, where the model lets them share it
            (:mod:`prefheads.interventions.probes`). ``"all"``: they act at every position.
        budget: Tokens a pass, shared between examples so that it adapts once.
    """

    def __init__(
        self, model: PreTrainedModel, encoded: Encoded, scope: Scope, budget: Budget | None = None
    ) -> None:
        self.model = model = causal_model(model)
        self.encoded = encoded
        self.budget = budget or Budget()
        device = input_device(model)
        prompt, self.targets = encoded.prompt_ids.to(device), encoded.response_ids.to(device)
        self.n_keys = len(prompt) + len(self.targets) - 1
        self.profile = nn.functional.pad(encoded.profile_mask, (0, self.n_keys - len(prompt)))[None]
        self.inputs = torch.cat([prompt, self.targets[:-1]])[None]
        self.first = 0  # position that passes begin at
        self.where = Where(len(prompt) - 1) if scope == "response" else ALL
        self.prompt: Clean | None = None  # what all rows share
        sharing = sharing_of(model)
        self.joins = sharing.joins
        _forget_lengths(model)
        if self.where.start and sharing.clean:
            self.first, self.where = self.where.start, ALL
            # The whole text: where tokens stand may be told by how many there are.
            self.prompt = Clean(self.first)
            with torch.no_grad(), observing(self.prompt):
                model(
                    input_ids=self.inputs,
                    use_cache=False,
                    logits_to_keep=1,
                    **positions(model, 0, self.n_keys),
                )
            self.prompt.inputs.clear()
            self.inputs = self.inputs[:, self.first :]

    @property
    def nbytes(self) -> int:
        """Of what is kept of the prompt and the unchanged model."""
        return self.unchanged.nbytes + (0 if self.prompt is None else self.prompt.nbytes)

    @torch.no_grad()
    def logits(self, gains: Tensor, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits of the response under each map of gains.

        Args:
            gains: ``(R, n_layers, n_heads)``, 1 leaving a head alone.
            target: What the gains multiply.

        Yields:
            ``(rows, logits)``: indices ``(r,)`` into ``gains``, and ``(1 + r, T, vocab)`` with the
            unchanged model's logits first.
        """
        for rows, logits in self._changed(gains, target, self.run):
            yield rows, torch.cat([self.unchanged.logits, logits])

    def _changed(
        self, gains: Tensor, target: Target, answer: Callable[[Pass], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Like :meth:`logits`, without the unchanged model; yields rows and ``answer(pass)``."""
        if target == "profile":
            require_keys_of_tokens(self.model, head_layout(self.model))
        # Rows that leave at about the same layer share a pass.
        order = branch_plan(gains, target)[1]

        def work(rows: slice) -> Tensor:
            plan, _ = branch_plan(gains[order[rows]], target, joins=self.joins)
            return answer(self.branch(plan))

        for rows, logits in self.budget.run(len(gains), self.inputs.shape[1], work):
            yield order[rows], logits

    @cached_property
    def unchanged(self) -> Unchanged:
        """The pass of the model as it is, from which all others branch off; run once."""
        plan = Plan(torch.ones(1, *head_layout(self.model).shape), 1, [], [], "head")
        unchanged = Unchanged(plan, self.n_keys, prompt=self.prompt)
        projection = vocabulary_projection(self.model)
        with torch.no_grad():
            if projection is None:
                unchanged.logits = self.run(unchanged)
            else:
                unchanged.hidden = self._hidden(unchanged, projection)
                weight, bias = projection.weight, projection.bias
                unchanged.logits = nn.functional.linear(unchanged.hidden, weight, bias)
        return unchanged

    def branch(self, plan: Plan) -> Pass:
        """A pass of rows that leave the unchanged one."""
        return Pass(plan, self.n_keys, self.profile, self.prompt, self.unchanged.inputs, self.where)

    def run(self, running: Pass) -> Tensor:
        """Logits of the response ``(rows, T, vocab)`` of a pass, from its first layer on."""
        layout = head_layout(self.model)
        first = 0 if running.entered is None else running.plan.first
        cache = NewOnly(self.first, layout.shape[0]) if self.prompt is not None else None
        with observing(running), skipped(layout, first):
            out = self.model(
                input_ids=self.inputs,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=len(self.targets),
                **positions(self.model, self.first, self.n_keys),
            )
        logits: Tensor = out.logits[:, -len(self.targets) :]  # some models give all of them
        return logits

    def _hidden(self, running: Pass, projection: nn.Linear) -> Tensor:
        """What enters the projection where the response is predicted, ``(rows, T, width)``."""
        with forward_set_to(projection, lambda hidden: hidden):
            return self.run(running)

    def _token_nll(self, running: Pass) -> Tensor:
        """NLL of the response's tokens ``(rows, T)`` in a pass."""
        projection, known = vocabulary_projection(self.model), self.unchanged
        if projection is None or known.hidden is None:
            return token_nll(self.run(running), self.targets)
        hidden = self._hidden(running, projection)
        return projected_nll(hidden, projection, self.targets, (known.hidden, known.logits))

    @torch.no_grad()
    def nll(self, gains: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Mean response NLL (Eq. 3), in nats a token, unchanged ``()`` and under each map of gains
        ``(R,)``.

        Raises:
            ModelError: The model's logits are not finite.
        """
        result = torch.empty(len(gains))
        for rows, nll in self._changed(gains, target, self._token_nll):
            result[rows] = nll.mean(-1).cpu()
        base = token_nll(self.unchanged.logits[0], self.targets).mean().cpu()
        if not (torch.isfinite(result).all() and torch.isfinite(base)):
            raise ModelError(
                f"the model's logits for example {self.encoded.example_id!r} are not finite; "
                "try float32"
            )
        return base, result


def _forget_lengths(model: PreTrainedModel) -> None:
    """Positions that scale with the longest text seen (dynamic NTK) go back to what they were in
    the beginning when the model meets a short one."""
    if "dynamic" in str(getattr(model.config.get_text_config(), "rope_parameters", None)):
        ids = torch.zeros((1, 2), dtype=torch.long, device=input_device(model))
        with torch.no_grad():
            model(input_ids=ids, use_cache=False, **positions(model, 0, 2))


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
        given: dict[str, Any] = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
        with (
            evaluating(model),
            response_from(batch.prompt_ids.shape[1], profile_mask=batch.profile_mask),
        ):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                logits_to_keep=batch.response_ids.shape[1],
                **(given if positions(model, 0, 1) else {}),
            ).logits[:, -batch.response_ids.shape[1] :]
        real = batch.response_mask.to(logits.device)
        nll = token_nll(logits, batch.response_ids.to(logits.device)).masked_fill(~real, 0)
        values.append((nll.sum(1) / real.sum(1)).cpu())
    result = torch.cat(values) if values else torch.empty(0)
    if not torch.isfinite(result).all():
        bad = examples[int((~torch.isfinite(result)).nonzero()[0])].id
        raise ModelError(f"the model's logits for example {bad!r} are not finite; try float32")
    return result
