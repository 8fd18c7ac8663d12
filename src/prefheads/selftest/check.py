"""A self-test on the user's own model: what steering and discovery say, against slow references.

1. Steering by next to nothing is plain decoding: with both caches, in all forms and scopes, for one
   text and for a padded batch of different users, and in beam search.
2. Steering by much is what full passes of single texts say, and so are the scores of some heads.
3. Nothing is left on the model.

Each difference is relative to the largest logit (that of scores in nats) and stands beside the
model's own: how far its cached and padded decoding is from its own full passes, which is what its
precision does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.errors import PrefheadsError
from prefheads.interventions.hooks import attention_backend
from prefheads.interventions.intercept import evaluating, head_layout, intercept, masked_backend
from prefheads.interventions.layout import causal_model, input_device
from prefheads.progress import track
from prefheads.scoring.scorer import Scorer
from prefheads.selftest.subject import BATCH, CACHES, ONE, Subject, gap, marks
from prefheads.steering.context import steer
from prefheads.types import Mode, Scope, Target

NOTHING = 1e-6  # a strength that only rounding can tell from none
FLOOR = 5e-5  # of the largest logit: what is right in float32
FLOOR_NATS = 1e-4
SLACK = 8  # times the model's own noise: a contrast adds up three numbers


@dataclass(frozen=True)
class Finding:
    """One comparison."""

    what: str
    difference: float | None  # the largest; None where nothing could be compared
    limit: float  # the largest difference that counts as right
    note: str = ""  # why nothing could be compared, or what is wrong

    @property
    def right(self) -> bool:
        """Whether the difference is within the limit, or the way was refused with a reason."""
        return self.difference is None or self.difference <= self.limit


@dataclass(frozen=True)
class Check:
    """What :func:`check` found.

    Attributes:
        model: Its name.
        shape: Layers and heads.
        dtype: What the model runs in.
        device: Where it takes its tokens.
        attention: Its attention implementation.
        noise: How far the model's own decoding is from its full passes, relative to the largest
            logit.
        findings: One for each comparison.
    """

    model: str
    shape: tuple[int, int]
    dtype: str
    device: str
    attention: str
    noise: float
    findings: tuple[Finding, ...]

    @property
    def right(self) -> bool:
        """Whether all of it is."""
        return all(finding.right for finding in self.findings)


def check(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, progress: bool = True
) -> Check:
    """Test steering and discovery on a model, its device, precision and attention.

    Takes about a minute for a model of 135 M parameters on two CPU cores.

    Args:
        model: Any causal language model of transformers.
        tokenizer: Its tokenizer.
        progress: Show a progress bar.

    Raises:
        ModelError: The model's heads cannot be reached.
    """
    model = causal_model(model)
    before, layout = marks(model), head_layout(model)
    with evaluating(model), torch.no_grad():
        what = _Tests(Subject(model, tokenizer))
        tests = list(what.all())
        findings = [test() for test in track(tests, "check", unit="test", disable=not progress)]
    after = marks(model)
    left = [name for name in before if before[name] != after[name]]
    findings.append(Finding("left on the model afterwards", float(len(left)), 0, ", ".join(left)))
    return Check(
        model=str(model.config.name_or_path or type(model).__name__),
        shape=layout.shape,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(input_device(model)),
        attention=attention_backend(model),
        noise=max(what.subject.noise.values()),
        findings=tuple(findings),
    )


class _Tests:
    """All comparisons."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.model = subject, subject.model
        # What counts as rounding, by the texts that the model itself decodes best: some models
        # ignore padding.
        self.limit = max(FLOOR, SLACK * min(subject.noise.values()))

    def all(self) -> Iterator[Callable[[], Finding]]:
        """Comparisons to run, one by one."""
        ways = itertools.product(get_args(Mode), get_args(Target), get_args(Scope))
        for mode, target, scope in ways:
            how = {"mode": mode, "target": target, "scope": scope}
            # A static cache without padding has no mask, a padded batch has one.
            yield partial(self.nothing, how, ONE, "static")
            yield partial(self.nothing, how, BATCH, "dynamic")
            if (target, scope) == ("head", "response"):
                yield partial(self.nothing, how, ONE, "dynamic")
                yield partial(self.nothing, how, BATCH, "static")
        for mode in get_args(Mode):
            yield partial(self.beams, mode)
        for mode, target in itertools.product(get_args(Mode), get_args(Target)):
            yield partial(self.much, {"mode": mode, "target": target, "scope": "response"})
        for target in get_args(Target):
            yield partial(self.scores, target)

    def nothing(self, how: dict[str, Any], batch: str, cache: str) -> Finding:
        """Steering by next to nothing."""
        what = f"next to nothing: {how['mode']} {how['target']}, {how['scope']}, {cache}, {batch}"
        plain = self.subject.plain[batch, cache]
        if isinstance(plain, str):
            return Finding(what, None, self.limit, f"transformers: {plain}")
        tokens, wanted = plain
        given = self.subject.batches[batch]
        weights = self.subject.maps(len(given.prompt_ids))

        def difference() -> float:
            with steer(self.model, weights, NOTHING, profile_mask=given.profile_mask, **how):
                new, logits = self.subject.generate(given, **CACHES[cache])
            # Where rounding has changed a token, what follows is another text.
            same = (new == tokens).int().cumprod(1).sum(1).tolist()
            return max(
                gap(x[: n + 1], y[: n + 1]) for x, y, n in zip(logits, wanted, same, strict=True)
            )

        return self._found(what, self.limit, difference)

    def beams(self, mode: Mode) -> Finding:
        """Beam search by next to nothing: the scores of the beams."""
        rows = self.subject.batches[BATCH]

        def difference() -> float:
            plain = self.subject.search(rows)
            with steer(self.model, self.subject.maps(len(rows.prompt_ids)), NOTHING, mode=mode):
                return gap(self.subject.search(rows), plain)

        return self._found(f"next to nothing: {mode}, three beams", self.limit, difference)

    def much(self, how: dict[str, Any]) -> Finding:
        """Steering by much against full passes."""
        rows, gamma = self.subject.batches[BATCH], 1.0
        weights = self.subject.maps(len(rows.prompt_ids))

        def difference() -> float:
            with steer(self.model, weights, gamma, profile_mask=rows.profile_mask, **how):
                new, logits = self.subject.generate(rows)
            worst = 0.0
            for i, (encoded, tokens) in enumerate(self.subject.texts(BATCH, new)):
                amplified = how["mode"] == "amplify"
                gains = 1 + gamma * weights[i] if amplified else 1 - weights[i]
                wanted = self.subject.full(encoded, tokens, gains, how["target"])
                if not amplified:
                    wanted = (1 + gamma) * self.subject.full(encoded, tokens) - gamma * wanted
                worst = max(worst, gap(logits[i], wanted))
            return worst

        what = f"full passes: {how['mode']} {how['target']}, {BATCH}"
        own = self.subject.noise[BATCH]
        if own > self.limit:
            note = f"the model's own decoding of such a batch is {own:.1g} from its full passes"
            return Finding(what, None, self.limit, note)
        return self._found(what, self.limit, difference)

    def scores(self, target: Target) -> Finding:
        """PCS of some heads against full passes, in nats a token."""
        encoded, (n_layers, n_heads) = self.subject.encoded[1], self.subject.layout.shape
        picked = {(0, 0), (n_layers // 2, n_heads // 2), (n_layers - 1, n_heads - 1)}
        gains = torch.ones(len(picked), n_layers, n_heads)
        for row, (layer, head) in zip(gains, sorted(picked), strict=True):
            row[layer, head] = 0

        def difference() -> float:
            with intercept(self.model, masked_backend(self.model)):
                base, found = Scorer(self.model, encoded, "response").nll(gains, target)
            plain = self.subject.nll(encoded)
            wanted = torch.stack([self.subject.nll(encoded, g, target) for g in gains])
            return float(((found - base) - (wanted - plain).mean(-1)).abs().max())

        what = f"full passes: PCS of {len(picked)} heads by {target}, in nats"
        limit = max(FLOOR_NATS, SLACK * self.subject.noise_nats)
        return self._found(what, limit, difference)

    def _found(self, what: str, limit: float, difference: Callable[[], float]) -> Finding:
        try:
            return Finding(what, difference(), limit)
        except PrefheadsError as error:
            return Finding(what, None, limit, f"refused: {error}")
