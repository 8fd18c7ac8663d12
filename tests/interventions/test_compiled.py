"""Steps that generate() compiles: it does so for static caches on a GPU, here for all devices."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version
from support.models import tiny
from support.reference import plain_logits
from support.steered import (
    HARD,
    PROMPTS,
    SOFT,
    ZERO,
    assert_untouched,
    each_way,
    expected,
    generate,
)
from transformers import CompileConfig

from prefheads.steering.context import steer

STATS = torch._dynamo.utils.counters["stats"]
MAPS = torch.stack([SOFT, HARD, ZERO])


def options(**more):
    config = CompileConfig(backend="eager", mode=None, **more)  # dynamo's graph, run as torch does
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    STATS.clear()


def assert_graphs(n: int) -> None:
    """Dynamo has made ``n`` graphs; what is older than the tests' torch cuts a step into more."""
    made = STATS["unique_graphs"]
    assert made == n if Version(torch.__version__) >= Version("2.13") else made >= n


@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_one_graph_does_for_all_maps_and_strengths(mode, scope) -> None:
    model = tiny()
    for weights, gamma in ((SOFT, 1.5), (HARD, 0.7), (SOFT, 0.3)):
        with steer(model, weights, gamma, mode=mode, scope=scope):
            new = generate(model, PROMPTS[0], **options())
        assert new == [expected(model, 0, weights, gamma, mode=mode, scope=scope)]
        assert_graphs(1)


@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_a_batch_of_different_users(mode) -> None:
    model = tiny()
    with steer(model, MAPS, [1.5, 0.7, 1], mode=mode):
        new = generate(model, **options())
    assert_graphs(1)
    assert new == [
        expected(model, i, MAPS[i], gamma, mode=mode) for i, gamma in enumerate([1.5, 0.7, 1])
    ]


@each_way
def test_graphs_of_plain_steps_and_of_steered_ones_stay_apart(how) -> None:
    model = tiny()
    before = plain_logits(model, PROMPTS[0])
    plain = generate(model, PROMPTS[0])
    assert generate(model, PROMPTS[0], **options()) == plain
    for _ in range(2):
        profile = {"profile_mask": PROMPTS[0] > PROMPTS[0].median()}
        more = profile if how["target"] == "profile" else {}
        with steer(model, SOFT, 1.5, **how, **more):
            assert generate(model, PROMPTS[0], **options()) == generate(model, PROMPTS[0])
        assert generate(model, PROMPTS[0], **options()) == plain
    # Those of target profile, whose masks grow, run as they are.
    assert_graphs(1 + (how["target"] != "profile"))
    assert_untouched(model, before)


@pytest.mark.parametrize("mode", ["contrast", "amplify"])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt2", "granite", "qwen3", "mixtral"])
def test_other_models(kind, mode) -> None:
    model = tiny(kind)
    with steer(model, SOFT, 1.5, mode=mode):
        assert generate(model, n_new=12, **options()) == generate(model, n_new=12)
    assert STATS["unique_graphs"]


def test_steps_are_compiled_again_for_no_length() -> None:
    model = tiny()
    with steer(model, SOFT, 1.5):
        for prompt in PROMPTS:
            compiled = generate(model, prompt, max_length=64, n_new=None, **options())
            assert compiled == generate(model, prompt, max_length=64, n_new=None)
    assert_graphs(1)


@torch._dynamo.config.patch(recompile_limit=2)
@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_steps_that_the_compiler_gives_up_on(mode) -> None:
    """It makes so many graphs of a function and no more; then it runs as it is."""
    model = tiny()
    for n in range(1, 5):
        ids = PROMPTS[0].expand(n, -1)
        how = {"input_ids": ids, "max_new_tokens": 6, "do_sample": False}
        with steer(model, SOFT, 1.5, mode=mode):
            assert torch.equal(model.generate(**how, **options()), model.generate(**how))
    assert STATS["unique_graphs"] <= 2


def test_an_error_leaves_nothing_behind(monkeypatch) -> None:
    model = tiny()
    before = plain_logits(model, PROMPTS[0])
    expected_new = expected(model, 0, SOFT, 1.5)

    def broken(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr("prefheads.steering.answer.SteeredForward.end_step", broken)
    with steer(model, SOFT, 1.5):
        with pytest.raises(RuntimeError, match="broken"):
            generate(model, PROMPTS[0], **options())
        assert generate(model, PROMPTS[0]) == [expected_new]
    assert_untouched(model, before)
