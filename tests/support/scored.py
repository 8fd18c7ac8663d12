"""Log-probabilities of what vLLM gave."""

from __future__ import annotations


def scored(output) -> list[list[float]]:
    one = output.outputs[0]
    steps = zip(one.token_ids, one.logprobs, strict=True)
    return [[token, step[token].logprob] for token, step in steps]
