"""What heads do (6.3), measured in the model: where they look, and which tokens they favour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.data.encoding import Encoded
from prefheads.data.example import Example
from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores, Provenance, fingerprint
from prefheads.heads.weights import Head
from prefheads.interventions.hooks import (
    AttentionCall,
    AttentionRecorder,
    hooked,
    require_weights,
)
from prefheads.interventions.intercept import intercept, masked_backend
from prefheads.interventions.layout import input_device
from prefheads.models.limits import Budget
from prefheads.progress import track
from prefheads.scoring.scorer import Scorer, encode_all, token_nll
from prefheads.steering.combine import divergence, require_numbers
from prefheads.types import Scope, Target

FLOOR = 1e-4  # mean probability below which a token is no candidate, and its change no finding
N_TOKENS = 12
Group = Literal["top", "random"]


@dataclass(frozen=True)
class Shift:
    """A token that a head makes likelier or less likely.

    Attributes:
        token: Its text.
        change: Mean change of its log-probability through the head, in nats.
        probability: Its mean probability with the head.
    """

    token: str
    change: float
    probability: float


@dataclass(frozen=True)
class Effect:
    """What one head does to the next token where a response is predicted.

    Attributes:
        head: Layer and head.
        group: Whether it is a top head, or one drawn at random as control.
        divergence: KL divergence of the distribution without the head from the one with it, of
            each sample, in nats a token.
        switched: Share of the positions where another token becomes the likeliest.
        raised, lowered: The tokens whose log-probability rises and falls most through the head.
    """

    head: Head
    group: Group
    divergence: tuple[float, ...]
    switched: float
    raised: tuple[Shift, ...]
    lowered: tuple[Shift, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``dataclasses.asdict`` gives, after JSON."""
        shifts = {n: tuple(Shift(**s) for s in data[n]) for n in ("raised", "lowered")}
        values = {"head": tuple(data["head"]), "divergence": tuple(data["divergence"])}
        return cls(**{**data, **values, **shifts})


@dataclass(frozen=True)
class HeadRoles:
    """What heads do on some samples.

    Attributes:
        attention: As ``values``, the share of each head's attention that goes to the profile's
            tokens, over the positions that predict the response.
        even: The same share if attention were spread evenly over the tokens seen.
        effects: Effects of single heads, by what was taken from them.
    """

    attention: HeadScores
    even: float
    effects: Mapping[str, tuple[Effect, ...]]

    def to_dict(self) -> dict[str, Any]:
        """All but the attention, for JSON."""
        effects = {target: [asdict(e) for e in found] for target, found in self.effects.items()}
        return {"even": self.even, "effects": effects}

    @classmethod
    def from_dict(cls, attention: HeadScores, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` gives, after JSON."""
        effects = {
            target: tuple(Effect.from_dict(e) for e in found)
            for target, found in data["effects"].items()
        }
        return cls(attention, float(data["even"]), effects)


def measure_roles(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    heads: Mapping[Target, Mapping[Group, Sequence[Head]]],
    scope: Scope = "response",
    progress: bool = True,
) -> HeadRoles:
    """Measure what heads attend to, and what single heads do to the next token.

    Args:
        examples: With profile and response; attention is computed eagerly for them.
        heads: Heads whose effect is measured, by what is taken from them.
        scope: Where they are ablated.

    Raises:
        DataError: An example without profile or response, or too long.
        ModelError: The model shows no attention weights.
    """
    encoded = encode_all(model, tokenizer, examples)
    for e in encoded:
        if not e.profile_mask.any():
            raise DataError(f"example {e.example_id!r} has no profile to attend to")
    attention = profile_attention(model, encoded, progress)
    even = torch.stack([_even_share(e) for e in encoded]).mean()
    effects = head_effects(model, tokenizer, encoded, heads, scope, progress)
    return HeadRoles(attention, float(even), effects)


@torch.no_grad()
def profile_attention(
    model: PreTrainedModel, encoded: Sequence[Encoded], progress: bool = True
) -> HeadScores:
    """Share of attention that every head gives to the profile where the response is predicted.

    Returns:
        ``values`` are the shares in [0, 1], ``nll`` the NLL of the responses.
    """
    shares, losses = [], []
    with intercept(model, "eager") as layout:
        for e in track(encoded, "attention", unit="example", disable=not progress):
            ids, targets = torch.cat([e.prompt_ids, e.response_ids[:-1]]), e.response_ids
            look = _ProfileShare(len(targets), e.profile_mask)
            with hooked(look):
                # Without a cache, so that sliding windows too have a key for each token.
                logits = model(
                    input_ids=ids[None].to(input_device(model)),
                    use_cache=False,
                    logits_to_keep=len(targets),
                ).logits[0]
            shares.append(torch.stack([look.share[i] for i in range(layout.shape[0])]))
            losses.append(token_nll(logits, targets.to(logits.device)).mean().cpu())
    info = Provenance(
        model_id=str(model.config.name_or_path),
        fingerprint=fingerprint(model.config),
        scope="",  # measured without an intervention
        target="",
        method="attention to the profile",
    )
    ids_of = tuple(e.example_id for e in encoded), tuple(e.user_id for e in encoded)
    return HeadScores(torch.stack(shares), torch.stack(losses), *ids_of, info)


class _ProfileShare(AttentionRecorder):
    """Records how much each head attends to the profile from the last ``n`` positions."""

    def __init__(self, n: int, profile: Tensor) -> None:
        self.n, self.profile = n, profile
        self.share: dict[int, Tensor] = {}

    def record(self, call: AttentionCall, out: Tensor, weights: Tensor | None) -> None:
        seen = require_weights(call, weights)[0, :, -self.n :, : len(self.profile)].float()
        share = seen[..., self.profile.to(seen.device)].sum(-1).mean(-1)  # of (heads, n, prompt)
        self.share[call.layer] = share.cpu()


def _even_share(encoded: Encoded) -> Tensor:
    """Share of the profile among the tokens seen, over the positions that predict the response."""
    first = len(encoded.prompt_ids)
    seen = torch.arange(first, first + len(encoded.response_ids))
    return (encoded.profile_mask.sum() / seen).mean()


@torch.no_grad()
def head_effects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    heads: Mapping[Target, Mapping[Group, Sequence[Head]]],
    scope: Scope = "response",
    progress: bool = True,
) -> dict[str, tuple[Effect, ...]]:
    """What single heads do to the next token: the model as it is against it without the head.

    Samples count alike, and so do the positions of one sample. Tokens that are never likely
    (mean probability below ``FLOOR`` with and without the head) are left out of the lists.
    """
    sums: dict[Target, _Sums] = {}
    budget = Budget()
    with intercept(model, masked_backend(model)) as layout:
        for e in track(encoded, "effect of heads", unit="example", disable=not progress):
            scorer = Scorer(model, e, scope, budget)
            for target, groups in heads.items():
                places = [head for group in groups.values() for head in group]
                gains = torch.ones(len(places), *layout.shape)
                for row, (layer, head) in enumerate(places):
                    gains[row, layer, head] = 0
                total = sums.setdefault(target, _Sums(len(places)))
                total.begin()
                for rows, logits in scorer.logits(gains, target):
                    total.add(rows.tolist(), logits)
                require_numbers(torch.tensor(total.divergence[-1]), e.example_id)
    return {
        target: sums[target].effects(tokenizer, [(h, g) for g, hs in groups.items() for h in hs])
        for target, groups in heads.items()
    }


class _Sums:
    """Sums over samples of what each of ``n_rows`` ablations changes."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.divergence: list[list[float]] = []  # of each sample, by row
        self.switched = [0.0] * n_rows
        self.plain = torch.tensor(0.0)  # (vocab,), then; each a sum of means over positions
        self.ablated: list[Tensor] = [torch.tensor(0.0)] * n_rows
        self.change: list[Tensor] = [torch.tensor(0.0)] * n_rows

    def begin(self) -> None:
        """The next sample."""
        self.divergence.append([0.0] * self.n_rows)
        self._first = True

    def add(self, rows: Sequence[int], logits: Tensor) -> None:
        """Logits ``(1 + r, T, vocab)``: unchanged, then of some rows."""
        log_p = logits[0].float().log_softmax(-1)
        if self._first:
            self.plain = self.plain + log_p.exp().mean(0).cpu()
            self._first = False
        for row, other in zip(rows, logits[1:], strict=True):
            log_q = other.float().log_softmax(-1)
            change = torch.where(log_p.isneginf(), 0.0, log_p - log_q)
            self.divergence[-1][row] = float(divergence(log_p, log_q).mean())
            self.switched[row] += float((log_p.argmax(-1) != log_q.argmax(-1)).float().mean())
            self.ablated[row] = self.ablated[row] + log_q.exp().mean(0).cpu()
            self.change[row] = self.change[row] + change.mean(0).cpu()

    def effects(
        self, tokenizer: PreTrainedTokenizerBase, heads: Sequence[tuple[Head, Group]]
    ) -> tuple[Effect, ...]:
        """One for each row."""
        n = len(self.divergence)
        p = self.plain / n
        found = []
        for row, (head, group) in enumerate(heads):
            change, q = self.change[row] / n, self.ablated[row] / n
            likely = (torch.maximum(p, q) >= FLOOR).nonzero()[:, 0]
            order = likely[change[likely].argsort(descending=True, stable=True)].tolist()
            shifts = [
                [Shift(token_text(tokenizer, i), float(change[i]), float(p[i])) for i in some]
                for some in (
                    [i for i in order[:N_TOKENS] if change[i] > 0],
                    [i for i in order[::-1][:N_TOKENS] if change[i] < 0],
                )
            ]
            found.append(
                Effect(
                    head,
                    group,
                    tuple(sample[row] for sample in self.divergence),
                    self.switched[row] / n,
                    tuple(shifts[0]),
                    tuple(shifts[1]),
                )
            )
        return tuple(found)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as text; bytes that are no text alone as the vocabulary writes them."""
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text or not text else text
