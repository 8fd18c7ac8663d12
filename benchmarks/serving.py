"""Throughput of steered generation in vLLM, against vLLM without the plugin.

Each engine is a process of its own and works only when it is its turn: a round times them all, one
after the other, in an order that alternates, and gives one ratio to plain vLLM for each. Requests
are random tokens, so that every answer has its full length; all come at once.

    python -m benchmarks.serving --requests 64 --prompt 200 --response 100 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import prefheads as ph
from prefheads.models.bundled import model_dir

HOW: dict[str, dict[str, Any] | None] = {
    "unsteered": None,
    "amplify": {"map": "drawn", "gamma": 0.25, "mode": "amplify"},
    "contrast": {"map": "drawn", "gamma": 0.5, "mode": "contrast"},
}


def draw(shape: tuple[int, int], n_heads: int, lowest: int) -> ph.HeadWeights:
    """Random heads, none below a layer: speed depends on no more than that."""
    free = (shape[0] - lowest) * shape[1]
    chosen = torch.randperm(free, generator=torch.Generator().manual_seed(0))[:n_heads]
    heads = [(lowest + i // shape[1], i % shape[1]) for i in chosen.tolist()]
    return ph.HeadWeights.from_heads(shape, heads)


def prompts(args: argparse.Namespace) -> torch.Tensor:
    """Random tokens (requests, prompt)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(100, 10_000, (args.requests, args.prompt), generator=generator)


def serve(connection: Connection, maps: str | None, args: argparse.Namespace) -> None:
    """A process with a vLLM engine: for each way of steering it gets, the seconds it takes."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {} if maps is None else {"PREFHEADS_MAPS": maps}
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(args.model),
        dtype=args.dtype,
        enforce_eager=True,
        max_model_len=args.prompt + args.response,
        max_num_seqs=args.batch,
        enable_prefix_caching=False,  # rounds repeat their prompts
        kv_cache_memory_bytes=args.cache * 2**20,
        generation_config="vllm",
    )
    inputs = [{"prompt_token_ids": p} for p in prompts(args).tolist()]
    connection.send(None)
    while (how := connection.recv()) != "stop":
        extra = None if how is None else {"prefheads": how}
        params = SamplingParams(
            temperature=0, max_tokens=args.response, ignore_eos=True, extra_args=extra
        )
        started = time.perf_counter()
        llm.generate(inputs, params, use_tqdm=False)
        connection.send(time.perf_counter() - started)


@torch.no_grad()
def transform(connection: Connection, maps: str, args: argparse.Namespace) -> None:
    """A process with the model in transformers, which generates batch by batch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()
    model.generation_config.eos_token_id = None
    weights = ph.HeadWeights.load(Path(maps) / "drawn.safetensors")
    connection.send(None)
    while (how := connection.recv()) != "stop":
        started = time.perf_counter()
        for batch in prompts(args).split(args.batch):
            steering = (
                ph.steer(model, weights, how["gamma"], mode=how["mode"]) if how else nullcontext()
            )
            with steering:
                model.generate(batch, max_new_tokens=args.response, do_sample=False)
        connection.send(time.perf_counter() - started)


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each way, by round; the first round warms up and is left out."""
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads((args.model / "config.json").read_text())
        shape = (config["num_hidden_layers"], config["num_attention_heads"])
        draw(shape, args.heads, args.fork).save(Path(folder) / "drawn.safetensors")
        kinds = {"vLLM": (serve, None), "prefheads.vllm": (serve, folder)}
        if args.transformers:
            kinds["transformers"] = (transform, folder)
        ends = {}
        for kind, (target, maps) in kinds.items():
            ends[kind], other = spawn.Pipe()
            spawn.Process(target=target, args=(other, maps, args), daemon=True).start()
            ends[kind].recv()
        turns = [("vLLM", "plain", None)]
        turns += [("prefheads.vllm", name, how) for name, how in HOW.items()]
        if args.transformers:
            turns += [("transformers", name, how) for name, how in HOW.items()]
        for round_ in range(args.rounds + 1):
            for kind, name, how in turns if round_ % 2 else reversed(turns):
                ends[kind].send(how)
                taken = ends[kind].recv()
                if round_:
                    seconds.setdefault(f"{kind} {name}", []).append(taken)
        for end in ends.values():
            end.send("stop")
    return seconds


def main() -> None:
    """Measure, and print one line of JSON after readable ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a model (default: the bundled one)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32, help="requests that run at a time")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of each prompt")
    parser.add_argument("--response", type=int, default=100, help="tokens of each response")
    parser.add_argument("--heads", type=int, default=11, help="heads in the map")
    parser.add_argument("--fork", type=int, default=0, help="lowest layer of these heads")
    parser.add_argument("--cache", type=int, default=1024, help="MiB for keys and values")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transformers", action="store_true", help="time that as well")
    args = parser.parse_args()
    args.model = args.model or model_dir()
    seconds = measure(args)
    base = seconds["vLLM plain"]
    result = {}
    for name, taken in seconds.items():
        ratios = [b / t for b, t in zip(base, taken, strict=True)]
        rate = args.requests * args.response / statistics.median(taken)
        result[name] = {"tokens_per_second": rate, "ratios": ratios}
        print(
            f"{name:28} {rate:8.1f} tokens/s, {statistics.median(ratios):.3f} of plain vLLM "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    print(json.dumps(settings | {"result": result}))


if __name__ == "__main__":
    main()
