"""The texts of every method, and the records that keep them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compared import METHODS, decoders
from support.layers import reference as layer_contrasted
from support.reference import greedy, plain_logits
from torch import Tensor

import prefheads as ph
from prefheads.data.encoding import encode
from prefheads.data.example import without_profile
from prefheads.evaluation.generate import generate_records
from prefheads.evaluation.records import Records
from prefheads.steerer.core import PreferenceSteerer


def test_texts_are_those_of_stock_generate(
    tiny_model,
    tweets,
    tweet_steerer: PreferenceSteerer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batched from a shared prompt, as alone from scratch, for every method without sampling."""
    model, tokenizer = tiny_model
    few = tweets[10:15]
    names = tuple(n for n in METHODS if n not in ("cad", "dola"))
    made = decoders(names, tiny_model, few, tweet_steerer)
    # What a checkpoint brings of its own is no part of plain decoding.
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 5.0)
    records = Records(tmp_path / "records.jsonl")
    generate_records(
        model, tokenizer, few, made, records, max_new_tokens=6, batch_size=3, progress=False
    )
    monkeypatch.undo()
    for i, example in enumerate(few):
        encoded = encode(tokenizer, replace(example, output=None), max_length=1000)
        ids = encoded.prompt_ids[None]
        for decoder in made:
            record = records.done[decoder.method.name, example.id]
            how = decoder.setting
            weights = torch.zeros(3, 4) if decoder.weights is None else decoder.weights[i]
            with ph.steer(
                model,
                weights,
                how.gamma,
                mode=how.mode,
                target=how.target,
                suppression=how.suppression,
                scope=decoder.scope,
                schedule=how.schedule,
                profile_mask=encoded.profile_mask,
            ):
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=6,
                    do_sample=False,
                )
            alone = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert record.prediction == alone
            assert record.prompt_tokens == ids.shape[1] and 0 < record.new_tokens <= 6
            assert record.reference == example.output and record.seconds > 0


def test_baselines_in_a_batch_are_those_alone(
    tiny_model, tweets, tweet_steerer: PreferenceSteerer, tmp_path: Path
) -> None:
    few, names = tweets[10:15], ("cad", "dola", "cad:repetition_penalty=1.3")
    batched, alone = Records(tmp_path / "batched.jsonl"), Records(tmp_path / "alone.jsonl")
    for records, size in ((batched, 3), (alone, 1)):
        made = decoders(names, tiny_model, few, tweet_steerer)
        options = {"max_new_tokens": 6, "batch_size": size, "progress": False}
        generate_records(*tiny_model, few, made, records, **options)
    texts = {key: r.prediction for key, r in alone.done.items()}
    assert {key: r.prediction for key, r in batched.done.items()} == texts
    assert texts["cad", few[0].id] != texts["dola", few[0].id]


def test_baselines_are_contrasts_of_full_passes(
    tiny_model, tweets, tweet_steerer: PreferenceSteerer, tmp_path: Path
) -> None:
    """CAD against the prompt without the profile, DoLa against an early layer (of 3: 0 or 1)."""
    model, tokenizer = tiny_model
    few, names = tweets[10:12], ("cad:gamma=2", "dola", "dola:layers=low:plausibility=0.5")
    records = Records(tmp_path / "records.jsonl")
    made = decoders(names, tiny_model, few, tweet_steerer)
    generate_records(*tiny_model, few, made, records, max_new_tokens=6, progress=False)
    for example in few:
        asked = replace(example, output=None)
        prompt = encode(tokenizer, asked).prompt_ids
        bare = encode(tokenizer, without_profile(asked)).prompt_ids

        def context(new: list[int], prompt: Tensor = prompt, bare: Tensor = bare) -> Tensor:
            own, other = (plain_logits(model, torch.tensor([*p, *new]))[-1] for p in (prompt, bare))
            return 3 * own - 2 * other

        def layer(
            new: list[int], early: int, plausibility: float, prompt: Tensor = prompt
        ) -> Tensor:
            ids = torch.tensor([*prompt, *new])
            scores = layer_contrasted(model, ids, [early], plausibility)[0]
            seen = ids.unique()
            scores[seen] = torch.where(scores[seen] < 0, scores[seen] * 1.2, scores[seen] / 1.2)
            return scores

        after = (context, partial(layer, early=1, plausibility=0.1))
        after = (*after, partial(layer, early=0, plausibility=0.5))
        wanted = [tokenizer.decode(greedy(a, 6), skip_special_tokens=True).strip() for a in after]
        assert [records.done[name, example.id].prediction for name in names] == wanted
        assert len(set(wanted)) == 3


def test_a_checkpoint_brings_no_way_of_its_own(
    tiny_model,
    tweets,
    tweet_steerer: PreferenceSteerer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a model's generation_config says changes neither greedy nor sampled texts."""
    few, names = tweets[10:13], ("plain", "plain:temperature=1.5", "dps")
    made = decoders(names, tiny_model, few, tweet_steerer)
    own = {"do_sample": True, "temperature": 0.1, "top_p": 0.2, "top_k": 2, "num_beams": 3}
    texts = []
    for shipped in ({}, own, {"repetition_penalty": 5.0}):
        for name, value in shipped.items():
            monkeypatch.setattr(tiny_model[0].generation_config, name, value)
        records = Records(tmp_path / f"{len(texts)}.jsonl")
        generate_records(*tiny_model, few, made, records, max_new_tokens=8, progress=False)
        texts.append({key: r.prediction for key, r in records.done.items()})
        monkeypatch.undo()
    assert texts[0] == texts[1] == texts[2]


def test_a_prompt_is_encoded_once_for_all_that_share_it(
    tiny_model,
    tweets,
    tweet_steerer: PreferenceSteerer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefheads.evaluation import generate as module

    masked = "decore:scope=all"  # from the first token on
    few, names, calls = tweets[10:15], ("plain", "dps", "cad", "decore", masked), []
    stock = module.encode_prompt

    def counted(model: Any, batch: Any) -> Any:
        calls.append(len(batch.prompt_ids))
        return stock(model, batch)

    monkeypatch.setattr(module, "encode_prompt", counted)
    records = Records(tmp_path / "records.jsonl")
    made = decoders(names, tiny_model, few, tweet_steerer)
    options = {"max_new_tokens": 3, "batch_size": 3, "progress": False}
    generate_records(*tiny_model, few, made, records, **options)
    assert calls == [3, 2]
    shared = {name for (name, _), r in records.done.items() if r.prompt_seconds > 0}
    assert shared == {"plain", "dps", "cad", "decore"}


def test_a_run_goes_on_in_batches_of_another_size(
    tiny_model, tweets, tweet_steerer: PreferenceSteerer, tmp_path: Path
) -> None:
    few, names = tweets[10:16], ("plain", "cad", "dps")
    made = decoders(names, tiny_model, few, tweet_steerer)
    options = {"max_new_tokens": 5, "progress": False}
    whole = Records(tmp_path / "whole.jsonl")
    generate_records(*tiny_model, few, made, whole, batch_size=6, **options)
    path = tmp_path / "part.jsonl"
    for examples, size in ((few[:3], 3), (few, 2), (few, 4)):
        part = decoders(names, tiny_model, examples, tweet_steerer)
        generate_records(*tiny_model, examples, part, Records(path), batch_size=size, **options)
    assert len(path.read_text().split("\n")) == 1 + len(names) * len(few)  # none twice
    found = Records(path).done
    assert {k: r.prediction for k, r in found.items()} == {
        k: r.prediction for k, r in whole.done.items()
    }
    sizes = {r.id: r.batch_size for r in found.values()}
    assert [sizes[e.id] for e in few] == [3, 3, 3, 2, 2, 2]


def test_calibrated_for_every_position(
    tiny_model, tweets, tweet_steerer: PreferenceSteerer, tmp_path: Path
) -> None:
    """A fit for scope "all" cannot go on from a prompt encoded without it."""
    few = tweets[10:12]
    everywhere = replace(tweet_steerer, scope="all")
    (made,) = decoders(("calibrated",), tiny_model, few, everywhere)
    assert made.scope == "all" and not made.shares_prompt
    records = Records(tmp_path / "records.jsonl")
    generate_records(*tiny_model, few, [made], records, max_new_tokens=3, progress=False)
    assert len(records.done) == 2


def test_a_temperature_samples_the_same_again(
    tiny_model, tweets, tweet_steerer: PreferenceSteerer, tmp_path: Path
) -> None:
    few, names = tweets[10:14], ("plain:temperature=1.5", "dps:temperature=1.5", "plain")
    texts = []
    for run in ("a", "b"):
        records = Records(tmp_path / f"{run}.jsonl")
        made = decoders(names, tiny_model, few, tweet_steerer)
        # In the second run another method's texts are there already.
        if run == "b":
            generate_records(*tiny_model, few, made[2:], records, max_new_tokens=8, progress=False)
        generate_records(*tiny_model, few, made, records, max_new_tokens=8, progress=False)
        texts.append({key: r.prediction for key, r in records.done.items()})
    assert texts[0] == texts[1]
    assert any(texts[0][names[0], e.id] != texts[0]["plain", e.id] for e in few)


def test_a_batch_too_large_is_halved(
    tiny_model,
    tweets,
    tweet_steerer: PreferenceSteerer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefheads.evaluation import generate as module

    few = tweets[10:15]
    made = decoders(("plain", "dps"), tiny_model, few, tweet_steerer)
    whole = Records(tmp_path / "whole.jsonl")
    generate_records(*tiny_model, few, made, whole, max_new_tokens=5, progress=False)
    stock = module.complete

    def small(model: Any, tokenizer: Any, batch: Any, **options: Any) -> Any:
        if len(batch.prompt_ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return stock(model, tokenizer, batch, **options)

    monkeypatch.setattr(module, "complete", small)
    halved = Records(tmp_path / "halved.jsonl")
    generate_records(*tiny_model, few, made, halved, max_new_tokens=5, progress=False)
    assert {r.batch_size for r in halved.done.values()} == {1, 2}
    for key, made_whole in whole.done.items():
        assert halved.done[key].prediction == made_whole.prediction


# --- records
