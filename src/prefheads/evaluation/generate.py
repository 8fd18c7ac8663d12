"""Generate with every method, batch by batch; a batch's prompts are encoded once for all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

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
        batch_size: Samples decoded together; halved for a batch that does not fit the memory.

    Raises:
        DataError: An input without room for new tokens.
        ArtifactError: The records are of other data, or cannot be written.
    """
    work = _Work(model, tokenizer, max_new_tokens, seed)
    total = len(examples) * len(decoders)
    with track(total=total, desc=label, unit="text", disable=not progress) as bar:
        for start in range(0, len(examples), batch_size):
            part = enumerate(examples[start : start + batch_size], start)
            samples = [_Sample(row, work.encoded(example), example) for row, example in part]
            ids, hashes = [s.example.id for s in samples], [s.prompt_sha256 for s in samples]
            wanted = [
                d
                for d in decoders
                if not records.finished(
                    d.method.name, ids, hashes, [d.marks(s.row) for s in samples]
                )
            ]
            bar.update(len(samples) * (len(decoders) - len(wanted)))
            for made in work.run(samples, wanted) if wanted else ():
                records.add(made)
                bar.update(len(made))


@dataclass(frozen=True)
class _Sample:
    row: int
    encoded: Encoded
    example: Example

    @property
    def prompt_sha256(self) -> str:
        return _sha256(self.encoded.text)


@dataclass(frozen=True)
class _Work:
    """Batches under several methods."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    seed: int

    def encoded(self, example: Example) -> Encoded:
        """An example's prompt, with room for new tokens."""
        room = room_for_prompt(self.model, self.max_new_tokens)
        return encode(self.tokenizer, replace(example, output=None), max_length=room)

    def run(
        self, samples: Sequence[_Sample], decoders: Sequence[Decoder]
    ) -> Iterator[list[Record]]:
        """Yield the records of each method; the batch is halved where memory runs out."""
        todo = list(decoders)
        prompt, seconds = None, 0.0
        try:
            batch = self._batch([s.encoded for s in samples])
            if any(d.shares_prompt for d in todo):
                start = time.perf_counter()
                prompt = encode_prompt(self.model, batch)
                seconds = _since(start)
            while todo:
                yield self._texts(samples, batch, todo[0], prompt, seconds)
                todo.pop(0)
        except RuntimeError as error:
            if not out_of_memory(error) or len(samples) == 1:
                raise
        # Outside of the handler, whose error holds on to all that did not fit.
        prompt = None
        middle = len(samples) // 2
        for part in (samples[:middle], samples[middle:]) if todo else ():
            yield from self.run(part, todo)

    def _batch(self, encoded: Sequence[Encoded]) -> Batch:
        return pad_batch(encoded, self.tokenizer.pad_token_id or 0)

    def _texts(
        self,
        samples: Sequence[_Sample],
        batch: Batch,
        decoder: Decoder,
        prompt: Cache | None,
        prompt_seconds: float,
    ) -> list[Record]:
        method, first, n = decoder.method, samples[0].row, len(samples)

        @cache
        def bare() -> Batch:
            return self._batch([self.encoded(without_profile(s.example)) for s in samples])

        shared = prompt if decoder.shares_prompt else None
        set_seed(int(_sha256(f"{self.seed} {method.name} {first}")[:8], 16))
        start = time.perf_counter()
        with method.acting(decoder, Prompts(self.model, slice(first, first + n), batch, bare)):
            options = {"max_new_tokens": self.max_new_tokens, **method.generate_options}
            done = complete(self.model, self.tokenizer, batch, prompt=shared, **options)
        seconds = _since(start)
        return [
            Record(
                task=sample.example.task or "",
                id=sample.example.id,
                user_id=sample.example.user_id,
                method=method.name,
                prompt_sha256=sample.prompt_sha256,
                prediction=text.text,
                reference=sample.example.output,
                setting=method.described(decoder.setting),
                gamma=decoder.strength,
                prompt_tokens=len(sample.encoded.prompt_ids),
                new_tokens=text.n_tokens,
                seconds=seconds / n,
                prompt_seconds=prompt_seconds / n if shared is not None else 0.0,
                batch_size=n,
                steering=decoder.marks(sample.row),
            )
            for sample, text in zip(samples, done, strict=True)
        ]


def _since(start: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
