"""How much faster exact discovery is than one full forward pass a head.

Both are timed in turn in one process: a round times ours on one example with all heads, and the
naive way on a few heads spread over the layers (its cost is the same for every head, so the time
for all is that for one times their number). The agreement of the two is checked on those heads.

    python -m benchmarks.discovery --prompt 400 --response 12 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from prefheads import load_model
from prefheads.attention import head_layout, intercept
from prefheads.encoding import Encoded
from prefheads.scoring import Budget, Scorer, token_nll


def example(vocabulary: int, n_prompt: int, n_response: int) -> Encoded:
    """Random tokens: speed does not depend on what they are."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> torch.Tensor:
        return torch.randint(100, vocabulary, (n,), generator=generator)

    profile = torch.zeros(n_prompt, dtype=torch.bool)
    profile[n_prompt // 8 : n_prompt // 2] = True
    return Encoded(draw(n_prompt), draw(n_response), profile, "", False, "random", "nobody")


@torch.no_grad()
def naive(model: torch.nn.Module, e: Encoded, layer: int, head: int, n_heads: int) -> float:
    """NLL with one head's slice of the output projection's input zeroed; one full forward pass."""
    start = len(e.prompt_ids) - 1

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x = args[0].clone()
        x.unflatten(-1, (n_heads, -1))[:, start:, head] = 0
        return (x,)

    projection = model.get_submodule(f"model.layers.{layer}.self_attn.o_proj")
    handle = projection.register_forward_pre_hook(hook)
    try:
        ids = torch.cat([e.prompt_ids, e.response_ids[:-1]])[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, start:]
    finally:
        handle.remove()
    return float(token_nll(logits, e.response_ids).mean())


def main() -> None:
    """Measure, and print one line of JSON after a readable one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=400, help="tokens of the prompt")
    parser.add_argument("--response", type=int, default=12, help="tokens of the response")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", type=int, default=6, help="heads the naive way is timed on")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, _ = load_model("bundled")
    n_layers, n_heads = head_layout(model).shape
    n = n_layers * n_heads
    e = example(model.config.vocab_size, args.prompt, args.response)
    gains = (1 - torch.eye(n)).reshape(n, n_layers, n_heads)
    heads = [(i * n // args.heads) + i % n_heads for i in range(args.heads)]

    ours, theirs, worst = [], [], 0.0
    for round_ in range(args.rounds + 1):  # the first warms up
        started = time.perf_counter()
        with intercept(model):
            _, nll = Scorer(model, e, "response", Budget()).nll(gains, "head")
        fast = time.perf_counter() - started
        started = time.perf_counter()
        slow_nll = [naive(model, e, h // n_heads, h % n_heads, n_heads) for h in heads]
        slow = (time.perf_counter() - started) / len(heads) * n
        worst = max(worst, (nll[heads] - torch.tensor(slow_nll)).abs().max().item())
        if round_:
            ours.append(fast)
            theirs.append(slow)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    print(
        f"{args.prompt} prompt + {args.response} response tokens, {n} heads, {args.threads} "
        f"threads: ours {statistics.median(ours):.1f} s, naive {statistics.median(theirs):.0f} s, "
        f"{ratio:.0f} times faster ({min(ratios):.0f} to {max(ratios):.0f}), "
        f"largest difference {worst:.1e} nats"
    )
    print(json.dumps(vars(args) | {"ours_s": ours, "naive_s": theirs, "difference": worst}))


if __name__ == "__main__":
    main()
