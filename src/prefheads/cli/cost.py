"""What a command will cost, told before the work: samples, passes, minutes and memory.

The time is that of one plain pass over a sample of middling length, taken on the spot, for each
token that the work sends through the model. Progress corrects it from the first sample on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.data.encoding import Encoded
from prefheads.data.example import Example
from prefheads.discovery.screen import CANDIDATES
from prefheads.interventions.intercept import head_layout
from prefheads.models.limits import Budget
from prefheads.scoring.scorer import encode_all, response_nll

SAMPLED = 32  # samples whose lengths stand for those of all
BACKWARD = 3  # a pass with gradients costs as many without


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes:
        what: For people, such as "270 heads".
        samples: That it goes over.
        copies: How often each sample's response goes through the model.
        prompts: How often its prompt does; in between, keys and values are kept.
        whole: Whether each copy takes the prompt along (scope "all").
    """

    what: str
    samples: Sequence[Example]
    copies: float
    prompts: int = 1
    whole: bool = False

    def tokens(self, lengths: Sequence[tuple[int, int]]) -> float:
        """Tokens through the model, from prompt and response lengths of some of the samples."""
        each = (
            self.prompts * prompt + self.copies * (response + self.whole * prompt)
            for prompt, response in lengths
        )
        return sum(each) / len(lengths) * len(self.samples)


def discovery_stage(
    model: PreTrainedModel,
    samples: Sequence[Example],
    *,
    target: str = "head",
    scope: str = "response",
    reference: str | None = None,
    method: str = "exact",
) -> Stage:
    """PCS of all heads: a head's copy takes its own layer and those above, half on average."""
    layers, heads = head_layout(model).shape
    share, screening = (CANDIDATES, BACKWARD) if method == "screen" else (1, 0)
    ablated = layers * heads * share
    twice = reference is not None and (target, reference) != ("profile", "no-profile")
    contexts = 2 if twice else 1
    what = f"{ablated:.0f} of {layers * heads} heads ablated, target {target}"
    return Stage(what, samples, contexts * (1 + ablated / 2 + screening), contexts, scope == "all")


def fit_stages(
    model: PreTrainedModel,
    found: Sequence[Example],
    held: Sequence[Example],
    n_settings: int,
    objective: str = "likelihood",
    **how: Any,
) -> list[Stage]:
    """A fit: PCS for both targets, then every setting, and the temperatures of the chosen one."""
    contexts = 2 if objective == "specificity" else 1
    copies, whole = contexts * n_settings + 2, how.get("scope") == "all"
    return [
        *(discovery_stage(model, found, target=target, **how) for target in ("head", "profile")),
        Stage(f"{n_settings} settings", held, copies, contexts + 1, whole),
    ]


def tell_cost(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stages: Sequence[Stage]
) -> None:
    """Two lines on standard error: what will be done, and about how long and large it is."""
    if not stages:
        return
    tokens, longest, pace = 0.0, 0, 0.0
    for stage in stages:
        step = -(-len(stage.samples) // SAMPLED)
        encoded = encode_all(model, tokenizer, stage.samples[::step])
        lengths = [(len(e.prompt_ids), len(e.response_ids)) for e in encoded]
        tokens += stage.tokens(lengths)
        longest = max(longest, *map(sum, lengths))
        pace = pace or _seconds_a_token(model, tokenizer, stage.samples[::step], encoded)
    done = "; ".join(f"{len(s.samples)} samples, {s.what}" for s in stages)
    print(f"to do: {done}", file=sys.stderr)
    weights = model.get_memory_footprint() / 1e9
    beside = _working_bytes(model, longest) / 1e9
    print(
        f"cost: {tokens:,.0f} tokens through the model, about {_duration(pace * tokens)} at the "
        f"pace of one pass just now; memory about {weights + beside:.1f} GB, {weights:.1f} GB of "
        "it weights",
        file=sys.stderr,
    )


def _seconds_a_token(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Example],
    encoded: Sequence[Encoded],
) -> float:
    sizes = [len(e.prompt_ids) + len(e.response_ids) for e in encoded]
    middle = sorted(range(len(sizes)), key=sizes.__getitem__)[len(sizes) // 2]
    seconds = []
    for _ in range(2):  # the first warms up
        began = time.monotonic()
        response_nll(model, tokenizer, [samples[middle]]).cpu()
        seconds.append(time.monotonic() - began)
    return min(seconds) / sizes[middle]


def _working_bytes(model: PreTrainedModel, longest: int) -> float:
    """Keys and values of the longest sample, and what one batch of copies holds at once."""
    text, size = model.config.get_text_config(), model.dtype.itemsize
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    kept = 2 * text.num_hidden_layers * heads * width * size
    logits = 2 * 4 * text.vocab_size  # of the response's positions, in float32 and twice
    return float(longest * kept + Budget().tokens * (kept + logits))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
