"""Which texts of a run are read token by token, and how they were steered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.data.encoding import Encoded, encode
from prefheads.data.example import Example, spread, without_profile
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.decoder import make_decoder
from prefheads.evaluation.methods import Method
from prefheads.evaluation.records import Record, read_samples
from prefheads.evaluation.run import answer_length
from prefheads.heads.scores import HeadWeights
from prefheads.models.limits import context_length
from prefheads.report.measure.comparison import compare, shown_setting
from prefheads.report.measure.tokens import PromptTexts, Readings, Token, trace
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steerer.fit import PARTS
from prefheads.steering.context import steer_with
from prefheads.steering.generation import room_for_prompt
from prefheads.steering.setting import Setting

PREFERRED = ("calibrated", "dps-cluster", "dps")  # whose texts are shown, the first that steers
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Steered = Callable[[Encoded], AbstractContextManager[Any]]


def of_evaluation(
    loaded: Loaded,
    folder: Path,
    records: Mapping[str, Mapping[str, Record]],
    steerers: Sequence[PreferenceSteerer],
    max_new_tokens: int | None,
    limit: int,
    seed: int,
) -> Readings:
    """Texts that an evaluation left of a task, by plain decoding and by one way of steering.

    Args:
        folder: Of the task, with its samples.
        records: Its texts, by method and sample.
        steerers: One a fold.
        max_new_tokens: As the evaluation was told.
        limit, seed: How many samples, and how they are drawn.

    Raises:
        ArtifactError: Texts of another model, or by other heads than those at hand.
        DataError: No plain texts, or none that were steered by heads of the steerers.
    """
    model, tokenizer = loaded
    plain = next((m for m in records if _usual(Method.parse(m), "plain")), "")
    if not plain:
        raise DataError(f"{folder}: holds no texts of plain decoding to compare with")
    method, steerer_of = _steered(folder, records, steerers)
    samples = {e.id: e for e in read_samples(folder)}
    both = [
        key for key in records[plain]
        if key in records[method.name] and samples.get(key) is not None
        and samples[key].user_id in steerer_of
    ]  # fmt: skip
    differing = {
        k for k in both if records[plain][k].prediction != records[method.name][k].prediction
    }
    shown = _first(samples, both, differing, limit, seed)
    room = room_for_prompt(model, max_new_tokens or answer_length(folder.name))
    traces = []
    for example in shown:
        record = records[method.name][example.id]
        decoder = make_decoder(method, model, [example], steerer_of[example.user_id], seed=seed)
        if record.steering and record.steering != decoder.marks(0):
            raise ArtifactError(
                f"{folder}: sample {example.id!r} was generated with other heads than those of "
                "the fit; evaluate again into another folder"
            )
        prompt = encode(tokenizer, replace(example, output=None), max_length=room)
        if hashlib.sha256(prompt.text.encode()).hexdigest() != record.prompt_sha256:
            raise ArtifactError(
                f"{folder}: sample {example.id!r} was generated from another prompt; give the "
                "model of the run with --model"
            )
        texts = {
            "plain": records[plain][example.id].prediction,
            "steered": record.prediction,
            "written": example.output,
        }
        how = _steering(model, decoder.maps[0], decoder.setting)
        traces.append(_trace(loaded, example, prompt, texts, how))
    settings = {records[method.name][e.id].setting for e in shown}
    return Readings(
        method.name, "; ".join(sorted(settings)), len(differing), len(both), tuple(traces)
    )


def _usual(method: Method, kind: str) -> bool:
    """Whether it is of a kind, and decodes greedily without a penalty."""
    greedy = Method.parse("plain").options
    return method.kind == kind and all(method.options[name] == greedy[name] for name in greedy)


def _steered(
    folder: Path,
    records: Mapping[str, Mapping[str, Record]],
    steerers: Sequence[PreferenceSteerer],
) -> tuple[Method, dict[str, PreferenceSteerer]]:
    """The method to show, and the steerer of each user: one that has not seen them if there is."""
    for kind in PREFERRED:
        for method in filter(lambda m: _usual(m, kind), map(Method.parse, records)):
            steering = [s for s in steerers if not method.setting(s).plain]
            if not steering:
                continue
            users = {r.user_id for r in records[method.name].values()}
            seen = [{u for p in PARTS[:2] for u in s.users.get(p, ())} for s in steering]
            return method, {
                user: next((s for s, own in zip(steering, seen, strict=True) if user not in own),
                           steering[0])
                for user in users
            }  # fmt: skip
    raise DataError(
        f"{folder}: holds no texts that were steered by heads of a fit; there are "
        f"{', '.join(records)}"
    )


def _first(
    samples: Mapping[str, Example], keys: Sequence[str], wanted: set[str], limit: int, seed: int
) -> list[Example]:
    """Samples of different users, wanted ones first."""
    chosen = spread([samples[k] for k in keys if k in wanted], limit, seed)
    rest = [samples[k] for k in keys if k not in wanted]
    return chosen + (spread(rest, limit - len(chosen), seed) if len(chosen) < limit else [])


def of_steerer(
    steerer: PreferenceSteerer, examples: Sequence[Example], cache: Path, limit: int
) -> Readings:
    """Texts generated for users that fitting has not seen, plain and steered.

    Args:
        examples: Samples to choose from.
        cache: Checkpoint of finished texts.

    Raises:
        DataError: No samples of unseen users, or nothing to steer with.
    """
    if shown_setting(steerer).plain:
        raise DataError("calibration tried no way of steering, so there is nothing to compare")
    unseen = steerer.unseen(examples)
    if not unseen:
        raise DataError("all users took part in fitting; texts need users of their own")
    length = answer_length(steerer.task or "")
    setting, room = shown_setting(steerer), room_for_prompt(steerer.model, length)
    by_id = {e.id: e for e in unseen}
    traces = []
    for found in compare(steerer, unseen, limit, cache, length):
        example = by_id[found.example_id]
        # As in generation: the form of the prompt is the steerer's.
        own = replace(example, task=steerer.task, output=None)
        prompt = encode(steerer.tokenizer, own, max_length=room)
        heads = steerer.heads_for([example.profile])[0]
        how = _steering(steerer.model, heads, setting)
        loaded = steerer.model, steerer.tokenizer
        traces.append(_trace(loaded, example, prompt, found.texts, how))
    return side_by_side(steerer, traces)


def side_by_side(steerer: PreferenceSteerer, texts: Sequence[PromptTexts]) -> Readings:
    """Texts of :func:`prefheads.report.measure.comparison.compare`, differing ones first."""
    best = "best setting tried (calibration chose plain decoding)"
    method = best if steerer.setting.plain else "calibrated"
    ordered = tuple(sorted(texts, key=lambda t: not t.differs))
    differing = sum(t.differs for t in texts)
    return Readings(method, str(shown_setting(steerer)), differing, len(texts), ordered)


def _steering(model: PreTrainedModel, heads: HeadWeights, setting: Setting) -> Steered:
    weights = torch.as_tensor(heads.values)[None]
    return lambda e: steer_with(model, weights, setting, e.profile_mask[None])


def _trace(
    loaded: Loaded,
    example: Example,
    prompt: Encoded,
    texts: Mapping[str, str | None],
    how: Steered,
) -> PromptTexts:
    """All texts of a sample after the prompt that they were generated from; none if empty."""
    model, tokenizer = loaded
    limit = context_length(model)
    room = None if limit is None else limit - len(prompt.prompt_ids)
    found: dict[str, tuple[Token, ...]] = {}
    for name, text in texts.items():
        if text is None:
            continue
        alone = without_profile(replace(example, output=text))  # whose prompt fits in any case
        tokens = torch.LongTensor(encode(tokenizer, alone).response_ids[:room])
        read = replace(prompt, response_ids=tokens)
        steered = partial(how, read)
        found[name] = trace(model, tokenizer, read, steered) if len(tokens) else ()
    return PromptTexts(example.user_id, example.input, found)
