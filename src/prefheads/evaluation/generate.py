"""Generate with every method, batch by batch; a batch's prompts are encoded once for all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from prefheads.data.encoding import Batch, Encoded, encode, pad_batch
from prefheads.data.example import Example, without_profile
from prefheads.evaluation.decoder import Decoder
from prefheads.evaluation.methods import Prompts
from prefheads.evaluation.records import Record, Records
from prefheads.models.limits import out_of_memory
from prefheads.progress import track
from prefheads.steering.generation import complete, encode_prompt, room_for_prompt


def generate_records(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    decoders: Sequence[Decoder],
    records: Records,
    *,
    max_new_tokens: int,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
    label: str = "generate",
) -> None:
    """Fill ``records`` with what every method writes for every example.

    Batches are the same in every run, and sampling is seeded for each, so a run that was killed
    ends with the texts of one that was not.

    Args:
        decoders: Made for these very examples.
        batch_size: Samples decoded together; halved for a batch that does not fit the memory.

    Raises:
        DataError: An input without room for new tokens.
        ArtifactError: The records are of other data, or cannot be written.
    """
    room = room_for_prompt(model, max_new_tokens)
    total = len(examples) * len(decoders)
    with track(total=total, desc=label, unit="text", disable=not progress) as bar:
        for start in range(0, len(examples), batch_size):
            rows = slice(start, min(start + batch_size, len(examples)))
            encoded = [
                encode(tokenizer, replace(e, output=None), max_length=room) for e in examples[rows]
            ]
            ids = [e.example_id for e in encoded]
            hashes = [_sha256(e.text) for e in encoded]
            wanted = [
                d
                for d in decoders
                if not records.finished(
                    d.method.name, ids, hashes, [d.marks(i) for i in range(rows.start, rows.stop)]
                )
            ]
            bar.update(len(ids) * (len(decoders) - len(wanted)))
            if wanted:
                work = _Work(model, tokenizer, examples, max_new_tokens, room, seed)
                for made in work.run(rows, encoded, hashes, wanted):
                    records.add(made)
                    bar.update(len(made))


class _Work:
    """One batch under several methods."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        max_new_tokens: int,
        room: int | None,
        seed: int,
    ) -> None:
        self.model, self.tokenizer, self.examples = model, tokenizer, examples
        self.max_new_tokens, self.room, self.seed = max_new_tokens, room, seed
        self.pad = tokenizer.pad_token_id or 0

    def run(
        self,
        rows: slice,
        encoded: Sequence[Encoded],
        hashes: Sequence[str],
        decoders: Sequence[Decoder],
    ) -> Any:
        """Yield the records of each method; the batch is halved where memory runs out."""
        todo = list(decoders)
        try:
            batch = pad_batch(encoded, self.pad)
            prompt, seconds = self._prompt(batch, todo)
            while todo:
                yield self._texts(rows, encoded, hashes, batch, todo[0], prompt, seconds)
                todo.pop(0)
        except RuntimeError as error:
            if not out_of_memory(error) or len(encoded) == 1:
                raise
        # Outside of the handler, whose error holds on to all that did not fit.
        prompt = None
        middle = len(encoded) // 2
        for a, b in ((0, middle), (middle, len(encoded))) if todo else ():
            part = slice(rows.start + a, rows.start + b)
            yield from self.run(part, encoded[a:b], hashes[a:b], todo)

    def _prompt(self, batch: Batch, decoders: Sequence[Decoder]) -> tuple[Cache | None, float]:
        """The prompts' keys and values, if methods share them, and the seconds they took."""
        if not any(d.shares_prompt for d in decoders):
            return None, 0.0
        start = time.perf_counter()
        prompt = encode_prompt(self.model, batch)
        return prompt, self._since(start)

    def _since(self, start: float) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _texts(
        self,
        rows: slice,
        encoded: Sequence[Encoded],
        hashes: Sequence[str],
        batch: Batch,
        decoder: Decoder,
        prompt: Cache | None,
        prompt_seconds: float,
    ) -> list[Record]:
        method = decoder.method

        @cache
        def bare() -> Batch:
            rest = [without_profile(replace(e, output=None)) for e in self.examples[rows]]
            return pad_batch(
                [encode(self.tokenizer, e, max_length=self.room) for e in rest], self.pad
            )

        shared = prompt if decoder.shares_prompt else None
        set_seed(int(_sha256(f"{self.seed} {method.name} {rows.start}")[:8], 16))
        start = time.perf_counter()
        with decoder.acting(Prompts(self.model, rows, batch, bare)):
            done = complete(
                self.model,
                self.tokenizer,
                batch,
                max_new_tokens=self.max_new_tokens,
                prompt=shared,
                **method.generate_options,
            )
        seconds, n = self._since(start), len(encoded)
        return [
            Record(
                task=example.task or "",
                id=example.id,
                user_id=example.user_id,
                method=method.name,
                prompt_sha256=prompt_hash,
                prediction=text.text,
                reference=example.output,
                setting=decoder.described,
                gamma=decoder.strength,
                prompt_tokens=len(e.prompt_ids),
                new_tokens=text.n_tokens,
                seconds=seconds / n,
                prompt_seconds=prompt_seconds / n if shared is not None else 0.0,
                batch_size=n,
                steering=decoder.marks(row),
            )
            for row, example, e, prompt_hash, text in zip(
                range(rows.start, rows.stop),
                self.examples[rows],
                encoded,
                hashes,
                done,
                strict=True,
            )
        ]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
