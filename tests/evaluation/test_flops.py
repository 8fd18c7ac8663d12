"""The FLOP counts: the paper's table, and what tiny real models are seen to compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from support.models import ARCHITECTURES, BASE, SHAPE, random_ids, tiny
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, GPT2Config, MambaConfig, PreTrainedModel

import prefheads
from prefheads.data.encoding import encode
from prefheads.data.example import Example
from prefheads.errors import ModelError
from prefheads.evaluation.flops import LLAMA_3_8B, ModelCost, model_cost, paper_estimate
from prefheads.interventions.intercept import head_layout
from prefheads.steering.cad import context_contrast
from prefheads.steering.dola import layer_contrast

N, NEW, BARE = 16, 6, 11  # longer than the sliding windows of 8 tokens
TABLE_3 = {512: (6.57, 6.96, 1.06), 1024: (13.04, 13.43, 1.03), 2048: (26.80, 27.21, 1.02)}
each_kind = pytest.mark.parametrize("kind", ARCHITECTURES)


@cache
def model_of(kind: str) -> PreTrainedModel:
    """A tiny model whose every product the counter sees: it does not know fused kernels."""
    model = tiny(kind, "eager")
    if kind == "mixtral":
        model.set_experts_implementation("eager")
    head_layout(model)  # runs the model once, which is not to be counted
    return model


@cache
def cost_of(kind: str) -> ModelCost:
    return model_cost(model_of(kind).config)


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def generated(model: PreTrainedModel, n: int = N) -> int:
    ids = random_ids(n)[None]
    return counted(lambda: model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False))


# --- the paper


@pytest.mark.parametrize("prompt", TABLE_3)
def test_papers_table(prompt: int) -> None:
    estimate = paper_estimate(LLAMA_3_8B, prompt, 32)
    assert estimate is not None
    plain, dps = estimate
    shown = (round(plain / 1e12, 2), round(dps / 1e12, 2), round(dps / plain, 2))
    assert shown == TABLE_3[prompt]


def test_no_estimate_without_the_width_of_the_mlp() -> None:
    assert paper_estimate(GPT2Config(), 512, 32) is None


def test_llama_by_hand() -> None:
    cost = model_cost(LLAMA_3_8B)
    width, keys, mlp = 4096, 8 * 128, 14336
    projections = 2 * width * width + 2 * width * keys + 3 * width * mlp
    assert [layer.per_token for layer in cost.layers] == [2 * projections] * 32
    assert [layer.per_pair for layer in cost.layers] == [2 * 2 * width] * 32
    assert (cost.vocabulary, cost.outside) == (2 * width * 128256, 0)


# --- what is computed, product by product


@each_kind
def test_plain_generation(kind: str) -> None:
    assert generated(model_of(kind)) == cost_of(kind).plain(N, NEW)


def test_prompt_of_one_token() -> None:
    model, cost = model_of("gemma2"), cost_of("gemma2")
    assert generated(model, 1) == cost.plain(1, NEW)
    with prefheads.steer(model, torch.ones(SHAPE), 0.5):
        assert generated(model, 1) == cost.contrast(1, NEW)


@pytest.mark.parametrize(
    ("kind", "fork"), [*((kind, 1) for kind in ARCHITECTURES), ("gemma2", 0), ("gemma2", 2)]
)
def test_contrast_from_its_fork_on(kind: str, fork: int) -> None:
    weights = torch.zeros(SHAPE)
    weights[fork, 1] = weights[-1, 0] = 1
    with prefheads.steer(model_of(kind), weights, 0.5):
        assert generated(model_of(kind)) == cost_of(kind).contrast(N, NEW, fork)


@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_gain_on_the_profile_costs_no_more(mode: str) -> None:
    """But for the last token of the prompt, which looks at it once more when amplified."""
    model, cost = model_of("gemma2"), cost_of("gemma2")
    options = {"mode": mode, "target": "profile", "profile_mask": torch.arange(N) < 12}
    again = N * sum(layer.per_pair for layer in cost.layers) if mode == "amplify" else 0
    with prefheads.steer(model, torch.ones(SHAPE), 0.5, **options):
        assert generated(model) == getattr(cost, mode)(N, NEW) + again


@each_kind
def test_amplification(kind: str) -> None:
    with prefheads.steer(model_of(kind), torch.ones(SHAPE), 0.5, mode="amplify"):
        assert generated(model_of(kind)) == cost_of(kind).amplify(N, NEW)


@each_kind
def test_context_aware_decoding(kind: str) -> None:
    bare = random_ids(BARE)[None]
    with context_contrast(model_of(kind), bare, torch.ones_like(bare), 0.5):
        assert generated(model_of(kind)) == cost_of(kind).cad(N, NEW, BARE)


@each_kind
def test_contrasting_layers(kind: str) -> None:
    with layer_contrast(model_of(kind), [0, 2]):
        assert generated(model_of(kind)) == cost_of(kind).dola(N, NEW, 2)


@pytest.mark.parametrize("all_logits", [False, True])
def test_naive_discovery(all_logits: bool) -> None:
    response, model = 5, model_of("gemma2")
    ids = random_ids(N + response - 1)[None]

    @torch.no_grad()
    def passes() -> None:
        for _ in range(1 + SHAPE[0] * SHAPE[1]):
            model(input_ids=ids, use_cache=False, logits_to_keep=0 if all_logits else response)

    expected = cost_of("gemma2").naive_discovery(N, response, all_logits=all_logits)
    assert counted(passes) == expected


@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize(  # tokens: some heads a pass; one; all
    ("kind", "tokens"), [*((kind, 70) for kind in ARCHITECTURES), ("gemma2", 1), ("gemma2", 999)]
)
def test_discovery(kind: str, scope: str, tokens: int, characters) -> None:
    example = Example("1", "someone", [{"text": "Likes short words."}], "Say it:", "Hello you")
    encoded = encode(characters, example)

    def run() -> None:
        model, options = model_of(kind), {"scope": scope, "tokens_per_pass": tokens}
        prefheads.discover(model, characters, [example], **options, progress=False)

    run()  # the probes of a model that is new cost passes of their own
    found = counted(run)
    n, response = len(encoded.prompt_ids), len(encoded.response_ids)
    assert found == cost_of(kind).discovery(n, response, scope, tokens_per_pass=tokens)


def test_counting_leaves_the_config_as_it_is() -> None:
    config = model_of("llama").config
    before = config.to_dict(), config._attn_implementation
    model_cost(config)
    assert (config.to_dict(), config._attn_implementation) == before


# --- the command


def test_command_shows_paper_and_count_side_by_side(cli) -> None:
    result = cli("flops")
    assert result.code == 0
    cost = model_cost(LLAMA_3_8B)
    for prompt, (plain, dps, _) in TABLE_3.items():
        exact = f"{cost.plain(prompt, 32) / 1e12:.2f}"
        (line,) = [x for x in result.out.splitlines() if f"{plain:.2f}" in x and f"{dps:.2f}" in x]
        assert str(prompt) in line
        assert exact in line


def test_command_reads_any_config(cli, tmp_path: Path) -> None:
    model_of("mixtral").config.save_pretrained(tmp_path)
    cost = cost_of("mixtral")
    more = ("--prompt", "17, 30", "--new", 6, "--fork", 1, "--bare", 11, "--json")
    for path in (tmp_path, tmp_path / "config.json"):
        result = json.loads(cli("flops", "--model", path, *more).out)
        assert [row["prompt"] for row in result["decoding"]] == [17, 30]
        exact = result["decoding"][0]["exact"]
        assert exact["plain"] == cost.plain(17, 6)
        assert exact["contrast"] == cost.contrast(17, 6, 1)
        assert exact["cad"] == cost.cad(17, 6, 11)
        assert result["discovery"][1]["all"] == cost.discovery(30, 6, "all")


def test_command_without_an_estimate(cli, tmp_path: Path) -> None:
    model_of("gpt2").config.save_pretrained(tmp_path)
    assert "n/a" in cli("flops", "--model", tmp_path).out
    result = json.loads(cli("flops", "--model", tmp_path, "--json").out)
    assert result["decoding"][0]["paper"] is None


# --- bad input


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--prompt", "512,many"), "--prompt"),
        (("--prompt", ""), "--prompt"),
        (("--prompt", "0"), "--prompt"),
        (("--fork", "32"), "--fork 32"),
        (("--new", "0"), "--new"),
        (("--model", "/no/such/model"), "/no/such/model"),
    ],
)
def test_bad_options(cli, options: tuple[str, ...], part: str) -> None:
    result = cli("flops", *options)
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert part in line


@pytest.mark.parametrize("kind", ["mamba", "bart", "lfm2"])
def test_models_that_are_no_stack_of_attention(kind: str) -> None:
    config = MambaConfig(**BASE) if kind == "mamba" else AutoConfig.for_model(kind, **BASE)
    with pytest.raises(ModelError, match="cannot") as caught:
        model_cost(config)
    assert "\n" not in str(caught.value)
