"""Tiny models as folders, for what takes a path: a byte-level tokenizer and a chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from support.models import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONTEXT = 1024
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


class Result(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges: a token a byte."""
    special = ["<pad>", "<s>", "</s>"]
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_model(folder: Path, change: Callable[[Any], None] | None = None, **sizes: int) -> Path:
    model = tiny(vocab_size=259, max_position_embeddings=CONTEXT, **sizes)
    if change is not None:
        change(model)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
