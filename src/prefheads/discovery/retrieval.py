"""Retrieval heads (Wu et al., 2024), which DeCoRe masks: heads that look up what is being copied.

A prompt hides one note, the needle, among others, and asks for it. While the model is fed the
needle as its answer, a head has copied a token if, where that token is predicted, it attends most
to a place in the needle that holds this very token. Its copy score is the share of the needle's
tokens that it has copied.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.data.encoding import encode
from prefheads.data.example import Example
from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores, Provenance, fingerprint
from prefheads.interventions.hooks import (
    AttentionCall,
    AttentionRecorder,
    hooked,
    require_weights,
)
from prefheads.interventions.intercept import intercept
from prefheads.interventions.layout import input_device
from prefheads.models.limits import context_length
from prefheads.progress import track
from prefheads.scoring.scorer import token_nll

MAX_TOKENS = 1024
"""Prompts and answer together are at most this long: attention weights take its square."""
LENGTHS = (0.25, 0.5, 0.95)
"""Shares of that length; the longest leaves some room, as tokens differ at the joints."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where among the notes the needle is, from first to last."""

NAMES = (
    "Ada", "Boris", "Chen", "Dara", "Emil", "Fatima", "Goran", "Hana", "Igor", "Jamila",
    "Kofi", "Lena", "Marek", "Nadia", "Omar",
)  # fmt: skip
THINGS = (
    "coins", "keys", "maps", "shells", "stamps", "candles", "ribbons", "bottles",
    "pencils", "medals", "beads", "tickets",
)  # fmt: skip
COLOURS = (
    "red", "blue", "green", "white", "black", "yellow", "purple", "orange", "silver",
    "golden",
)  # fmt: skip
PLACES = (
    "barn", "attic", "cellar", "garden", "kitchen", "library", "harbour", "tower",
    "stable", "chapel", "cabin", "mill",
)  # fmt: skip
NOTES = (
    "{name} sold {number} {things} at the {place}.",
    "{name} has never been to the {place}.",
    "{name} walked past the {place} with {other}.",
    "The {place} was full of {colour} {things}.",
    "{name} gave {other} {number} {colour} {things}.",
    "Nobody saw {name} near the {place} in the morning.",
)
NEEDLE = "{name} hid {number} {colour} {things} in the {place}."
QUESTION = "Copy the note that says what {name} hid."


def retrieval_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_prompts: int = 30,
    seed: int = 0,
    progress: bool = True,
) -> HeadScores:
    """Copy score of every head on needle-in-a-haystack prompts of several lengths and depths.

    Args:
        model: Any causal language model of transformers that uses its attention interface; its
            attention is computed eagerly meanwhile.
        n_prompts: How many prompts, each with another needle.
        seed: Decides what they say.
        progress: Show a progress bar.

    Returns:
        ``values`` are the copy scores in [0, 1], ``nll`` the mean NLL of the needle's tokens in
        nats; an example is a prompt. ``.top(fraction=0.04)`` gives the map to steer with:
        ``steer(model, heads, 1.0, target="query", schedule="entropy")`` is DeCoRe.

    Raises:
        DataError: No prompts asked for, or the context is too short for them.
        ModelError: The model or its eager attention cannot be handled.
    """
    if n_prompts < 1:
        raise DataError(f"n_prompts={n_prompts}: measure on at least one prompt")
    limit = min(context_length(model) or MAX_TOKENS, MAX_TOKENS)
    prompts = [needle_prompt(tokenizer, i, seed, limit) for i in range(n_prompts)]
    prompts = track(prompts, "copy score", unit="prompt", disable=not progress)
    with intercept(model, "eager") as layout:
        copied = [_copied(model, layout.shape, prompt) for prompt in prompts]
    values, losses = zip(*copied, strict=True)
    info = Provenance(
        model_id=str(model.config.name_or_path),
        fingerprint=fingerprint(model.config),
        task="retrieval",
        scope="",  # measured without an intervention, so found for either scope
        method="copy",
        n_examples=n_prompts,
        seed=seed,
    )
    ids = tuple(f"needle-{i}" for i in range(n_prompts))
    return HeadScores(torch.stack(values), torch.stack(losses), ids, ids, info)


@dataclass(frozen=True)
class NeedlePrompt:
    """Tokens of a prompt ``(P,)``, and which of them are its needle."""

    ids: Tensor
    start: int
    end: int

    @property
    def needle(self) -> Tensor:
        """Tokens ``(T,)`` of the needle, which are also the answer."""
        return self.ids[self.start : self.end]


def needle_prompt(
    tokenizer: PreTrainedTokenizerBase, index: int, seed: int, limit: int
) -> NeedlePrompt:
    """The prompt of an index: lengths and depths take turns, what it says is drawn. Prompt and
    answer have ``limit`` tokens together at most."""
    rng = random.Random(f"{seed}-{index}")
    names = rng.sample(NAMES, len(NAMES))
    needle = NEEDLE.format_map(_words(rng, names) | {"name": names[-1]})
    question = QUESTION.format(name=names[-1])
    depth = DEPTHS[index // len(LENGTHS) % len(DEPTHS)]
    length = LENGTHS[index % len(LENGTHS)] * limit
    notes: list[str] = []
    locate = partial(_locate, tokenizer, f"needle-{index}", needle, question, limit)
    found = locate([needle])
    room = length - len(found.ids) - len(found.needle)
    while room > 0 or not notes:
        note = rng.choice(NOTES).format_map(_words(rng, names[:-1]))
        room -= len(tokenizer("\n" + note, add_special_tokens=False)["input_ids"])
        if room >= 0 or not notes:
            notes.append(note)
    at = round(depth * len(notes))
    found = locate([*notes[:at], needle, *notes[at:]])
    if len(found.ids) + len(found.needle) > limit:
        raise DataError(f"a context of {limit} tokens is too short for needle prompts")
    return found


def _words(rng: random.Random, names: Sequence[str]) -> dict[str, str]:
    name, other = rng.sample(names, 2)
    return {
        "name": name,
        "other": other,
        "number": str(rng.randint(2, 99)),
        "things": rng.choice(THINGS),
        "colour": rng.choice(COLOURS),
        "place": rng.choice(PLACES),
    }


def _locate(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    needle: str,
    question: str,
    limit: int,
    notes: list[str],
) -> NeedlePrompt:
    text = "\n".join([*notes, "", question])
    encoded = encode(tokenizer, Example(name, "", (), text, None), max_length=limit)
    start = encoded.text.index(needle)
    end = start + len(needle)
    special = not tokenizer.chat_template
    tokens = tokenizer(encoded.text, add_special_tokens=special, return_offsets_mapping=True)
    places = [i for i, (a, b) in enumerate(tokens["offset_mapping"]) if a < end and b > start]
    return NeedlePrompt(encoded.prompt_ids, places[0], places[-1] + 1)


class _MostAttended(AttentionRecorder):
    """Records where each head attends most, from the last ``n`` positions."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.most: dict[int, Tensor] = {}

    def record(self, call: AttentionCall, out: Tensor, weights: Tensor | None) -> None:
        last = require_weights(call, weights)[0, :, -self.n :]
        self.most[call.layer] = last.argmax(-1).cpu()


@torch.no_grad()
def _copied(
    model: PreTrainedModel, shape: tuple[int, int], prompt: NeedlePrompt
) -> tuple[Tensor, Tensor]:
    """Copy score of each head ``(n_layers, n_heads)`` on a prompt, and the needle's NLL ``()``."""
    needle = prompt.needle
    ids = torch.cat([prompt.ids, needle[:-1]])
    seen = _MostAttended(len(needle))
    with hooked(seen):
        # Without a cache, so that sliding windows too have a key for each token.
        logits = model(
            input_ids=ids[None].to(input_device(model)),
            use_cache=False,
            logits_to_keep=len(needle),
        ).logits[0]
    most = torch.stack([seen.most[layer] for layer in range(shape[0])])  # (L, H, T)
    copied = (most >= prompt.start) & (most < prompt.end) & (ids[most] == needle)
    return copied.float().mean(-1), token_nll(logits, needle.to(logits.device)).mean().cpu()
