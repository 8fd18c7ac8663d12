"""What requests may ask for, and what is refused, in one line and without harm."""

from __future__ import annotations

import copy
import json
import os
from types import SimpleNamespace

import pytest
import torch
from support.engines import (
    LOWEST,
    Asked,
    answers,
    engine,
    generated,
    greedy,
    loaded,
    random_prompt,
    tokens,
)
from support.models import SHAPE, tiny
from vllm.exceptions import VLLMValidationError

import prefheads as ph
from prefheads.errors import PrefheadsError
from prefheads.heads.weights import Provenance
from prefheads.vllm.library import Library
from prefheads.vllm.request import resolve, steering_of
from prefheads.vllm.support import require_supported

OK = {"map": "hard", "gamma": 0.5}
BAD = [
    ({"gamma": 1.0}, "map is missing"),
    ({"map": "hard"}, "gamma is missing"),
    (OK | {"map": "nobody"}, "no head map 'nobody'"),
    (OK | {"map": "../maps/hard"}, "no head map"),
    (OK | {"map": 3}, "map is an id"),
    (OK | {"map": {}}, "map is an id"),
    (OK | {"map": {"hard": 0.7, "soft": 0.7}}, "add up to more than 1"),
    (OK | {"map": {"hard": "1"}}, "hard is a number from 0 to 1"),
    (OK | {"gamma": -1}, "gamma must be a finite number"),
    (OK | {"gamma": float("nan")}, "gamma must be a finite number"),
    (OK | {"gamma": True}, "gamma must be a number"),
    (OK | {"gamma": "1"}, "gamma must be a number"),
    (OK | {"mode": "prompt"}, "choose from contrast, amplify"),
    (OK | {"suppression": 2}, r"suppression must lie in \[0, 1\]"),
    (OK | {"target": "profile"}, "takes no bias on scores"),
    (OK | {"scope": "all"}, "steers the response only"),
    (OK | {"cap": 1.0}, "unknown field 'cap'"),
    (OK | {"map": "lowest"}, "PREFHEADS_FORK=0 or lower"),
    ("{", "no valid JSON"),
    ([1], "is an object such as"),
]


@pytest.fixture(scope="module")
def llama(saved):
    with engine(saved("llama")) as llm:
        yield llm


def test_bad_requests_are_refused_and_good_ones_go_on(llama) -> None:
    good = Asked(random_prompt(20, 1), OK, 4)
    wanted = generated(loaded("llama"), good)
    for how, message in BAD:
        with pytest.raises(VLLMValidationError, match=message) as refusal:
            answers(llama, [Asked(random_prompt(5, 2), how)])
        assert "\n" not in str(refusal.value)
    assert tokens(answers(llama, [good])[0]) == wanted


def test_what_http_can_carry_is_json_text(llama) -> None:
    asked = Asked(random_prompt(20, 1), OK, 4)
    wanted = generated(loaded("llama"), asked)
    asked.how = json.dumps(OK)
    assert tokens(answers(llama, [asked])[0]) == wanted


def test_a_map_can_be_added_while_running(llama, maps) -> None:
    new = ph.HeadWeights.from_heads(SHAPE, [(1, 0), (1, 1)])
    asked = Asked(random_prompt(30, 4), {"map": "added", "gamma": 1.5}, 6)
    with pytest.raises(VLLMValidationError, match="no head map 'added'"):
        answers(llama, [asked])
    new.save(maps / "added.safetensors")
    try:
        found = tokens(answers(llama, [asked])[0])
    finally:
        (maps / "added.safetensors").unlink()
    with ph.steer(model := loaded("llama"), new, 1.5):
        assert found == greedy(model, asked.prompt, 6)


def test_parameters_can_be_used_again(llama) -> None:
    asked = Asked(random_prompt(20, 1), OK, 4)
    params = asked.params
    twice = [llama.generate(asked.inputs, params, use_tqdm=False)[0] for _ in range(2)]
    assert [tokens(o) for o in twice] == [generated(loaded("llama"), asked)] * 2


def test_nobody_can_pass_off_a_request_as_checked() -> None:
    library = Library((_maps(),))
    done = resolve({"prefheads": OK}, library, True)
    forged = {k: v for k, v in done.items() if k != "prefheads"}
    assert steering_of(done) is not None
    assert steering_of(resolve(forged, library, True)) is None
    assert steering_of(resolve(done | {"prefheads": OK | {"gamma": 0}}, library, True)) is None


def test_gains() -> None:
    library = Library((_maps(),))
    for mode, gains in [
        ("amplify", 1 + 0.5 * _soft()),
        ("contrast", 1 - 0.25 * _soft()),
    ]:
        asked = {"map": "soft", "gamma": 0.5, "mode": mode, "suppression": 0.25}
        steering = steering_of(json.loads(json.dumps(resolve({"prefheads": asked}, library, True))))
        assert torch.allclose(steering.gains(SHAPE), gains)


def test_maps_of_run_folders(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ph.HeadWeights(_soft()).save(tmp_path / name / "heads.safetensors")
        ph.HeadWeights(_soft()).save(tmp_path / name / "retrieval-heads.safetensors")  # not a map
    ph.HeadWeights(LOWEST).save(tmp_path / "alone.safetensors")
    (tmp_path / "notes.txt").write_text("nothing")
    assert Library((tmp_path,)).ids == ["a", "alone", "b"]
    assert Library((tmp_path / "a",)).ids == ["a"]
    assert Library((tmp_path / "a", tmp_path / "alone.safetensors")).fork == 0
    assert Library((tmp_path / "a",)).fork == 1
    with pytest.raises(PrefheadsError, match="a second head map 'a'"):
        Library((tmp_path, tmp_path / "a"))
    with pytest.raises(PrefheadsError, match="no such file"):
        Library((tmp_path / "nowhere",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrefheadsError, match="no head maps here"):
        Library((tmp_path / "empty",))
    with pytest.raises(PrefheadsError, match="layers 0 to 2"):
        Library((tmp_path / "a",), fork=3)


def test_maps_of_a_fitted_steerer(tmp_path) -> None:
    from dataclasses import asdict

    from prefheads.storage import save_tensors, write_json

    folder = tmp_path / "run"
    folder.mkdir()
    stack = torch.stack([_soft(), LOWEST])
    meta = {"infos": [asdict(Provenance())] * 3}
    save_tensors(
        folder / "steerer.safetensors", {"maps": stack, "shared": _soft() / 2}, "steerer", meta
    )
    write_json(folder / "steerer.json", {})
    library = Library((folder,))
    assert library.ids == ["run/shared", "run/0", "run/1"]
    assert torch.equal(library.get("run/1").values, LOWEST)
    assert torch.equal(library.get("run/shared").values, _soft() / 2)


def test_maps_of_different_models(tmp_path) -> None:
    ph.HeadWeights(_soft(), Provenance(fingerprint="x")).save(tmp_path / "a.safetensors")
    ph.HeadWeights(_soft(), Provenance(fingerprint="y")).save(tmp_path / "b.safetensors")
    with pytest.raises(PrefheadsError, match="'b' is for another model than 'a'"):
        Library((tmp_path,))


OPTIONS = [
    ("model_config.runner_type", "pooling", "pooling"),
    ("parallel_config.pipeline_parallel_size", 2, "pipeline parallelism"),
    ("parallel_config.decode_context_parallel_size", 2, "context parallelism"),
    ("parallel_config.use_ubatching", True, "dual batch overlap"),
    ("speculative_config", object(), "speculative decoding"),
    ("model_config.enable_prompt_embeds", True, "prompt embeddings"),
    ("use_v2_model_runner", True, "VLLM_USE_V2_MODEL_RUNNER=0"),
    ("lora_config", object(), "contrast with LoRA"),
    ("model_config.hf_config.final_logit_softcapping", 30.0, "contrast with capped logits"),
]


@pytest.mark.parametrize(("option", "value", "message"), OPTIONS, ids=lambda v: str(v)[:30])
def test_options_that_steering_does_not_work_with(llama, option, value, message) -> None:
    config = copy.deepcopy(attributes(llama.llm_engine.vllm_config))
    require_supported(config, contrast=True)
    *path, last = option.split(".")
    place = config
    for name in path:
        place = getattr(place, name)
    setattr(place, last, value)
    with pytest.raises(PrefheadsError, match=message) as refusal:
        require_supported(config, contrast=True)
    assert "\n" not in str(refusal.value)
    if message.startswith("contrast"):
        require_supported(config, contrast=False)


def attributes(config) -> SimpleNamespace:
    """What is looked at in an engine's configuration; properties become plain attributes."""
    text = config.model_config.hf_config
    model = SimpleNamespace(
        runner_type=config.model_config.runner_type,
        enable_prompt_embeds=config.model_config.enable_prompt_embeds,
        hf_config=text,
    )
    names = ("pipeline_parallel_size", "decode_context_parallel_size")
    names += ("prefill_context_parallel_size", "use_ubatching")
    parallel = SimpleNamespace(**{n: getattr(config.parallel_config, n) for n in names})
    return SimpleNamespace(
        model_config=model,
        parallel_config=parallel,
        scheduler_config=config.scheduler_config,
        cache_config=config.cache_config,
        speculative_config=config.speculative_config,
        use_v2_model_runner=config.use_v2_model_runner,
        lora_config=config.lora_config,
    )


def test_prefix_caching_needs_the_scheduler(saved) -> None:
    message = "add --scheduler-cls prefheads.vllm.SteeringScheduler"
    with (
        pytest.raises(PrefheadsError, match=message),
        engine(saved("llama"), scheduler_cls=None),
    ):
        pass


def test_prefix_caching_off_needs_no_scheduler(saved) -> None:
    asked = Asked(random_prompt(20, 1), OK, 4)
    with engine(saved("llama"), scheduler_cls=None, enable_prefix_caching=False) as llm:
        assert tokens(answers(llm, [asked])[0]) == generated(loaded("llama"), asked)


def test_another_architecture_is_refused(tmp_path, saved) -> None:
    tiny("olmo2", hidden_size=128).save_pretrained(tmp_path)
    for file in saved("llama").glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    message = "Olmo2ForCausalLM cannot be steered in vLLM, only Gemma3, Llama"
    with pytest.raises(PrefheadsError, match=message), engine(tmp_path):
        pass


def test_maps_for_another_model_are_refused(saved, tmp_path, monkeypatch) -> None:
    ph.HeadWeights(torch.ones(3, 5)).save(tmp_path / "wide.safetensors")
    monkeypatch.setenv("PREFHEADS_MAPS", str(tmp_path))
    with pytest.raises(PrefheadsError, match="made for the model"), engine(saved("llama")):
        pass


def test_a_server_without_maps_says_so() -> None:
    with pytest.raises(PrefheadsError, match="PREFHEADS_MAPS"):
        resolve({"prefheads": OK}, None, True)
    assert resolve({"other": 1}, None, True) == {"other": 1}
    assert resolve(None, None, True) is None


def test_a_server_that_only_amplifies_says_so() -> None:
    with pytest.raises(PrefheadsError, match="only amplifies"):
        resolve({"prefheads": OK}, Library((_maps(),)), False)


def _maps():
    from pathlib import Path

    return Path(os.environ["PREFHEADS_MAPS"])


def _soft() -> torch.Tensor:
    from support.engines import MAPS

    return MAPS["soft"]
