"""Discovery of all heads, four ways:

``authors``    one full forward pass a head, eager attention, logits at every position;
``naive``      one full forward pass a head, sdpa attention, logits for the response only;
``exact``      ``discover(method="exact")``;
``screened``   ``discover(method="screen")``.

The first two cost the same for every head, so they are timed on a few heads spread over the
layers, and compared with ours by the time for one head.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import shared_by_cells
from benchmarks.results import Cell
from benchmarks.subject import Subject, spread
from prefheads.data.encoding import Encoded
from prefheads.discovery.screen import CANDIDATES, choose_candidates, estimate_scores
from prefheads.interventions.intercept import head_layout, intercept
from prefheads.models.limits import Budget
from prefheads.scoring.scorer import Scorer, token_nll

WAYS = ("authors", "naive", "exact", "screened")
TOP = 0.04  # of the heads


def cells(args: argparse.Namespace) -> list[Cell]:
    """What the command line asks for."""
    common = shared_by_cells("discovery", args)
    result: list[Cell] = []
    for scope in args.scopes:
        for target in args.targets:
            for prompt in args.prompts:
                for response in args.responses:
                    shape = {
                        "prompt": prompt,
                        "response": response,
                        "scope": scope,
                        "target": target,
                        "tokens_per_pass": args.tokens_per_pass,
                    }
                    times = {"rounds": args.rounds, "heads": args.heads}
                    for n in args.examples:
                        result.append(common | {"what": "time"} | shape | {"examples": n} | times)
                    for way in WAYS:
                        result.append(common | {"what": "memory", "way": way} | shape)
    return result


def measure(subject: Subject, cell: Cell) -> Cell:
    """The result of one cell."""
    ways = _Ways(subject, cell)
    if cell["what"] == "memory":
        return subject.peak_of(lambda: ways.run(cell["way"], ways.some[:1]))
    return ways.compare(cell["rounds"])


class _Ways:
    def __init__(self, subject: Subject, cell: Cell) -> None:
        self.subject, self.model = subject, subject.model
        self.scope, self.target = cell["scope"], cell["target"]
        self.tokens = cell["tokens_per_pass"]
        self.layout = head_layout(self.model)
        self.n = self.layout.shape[0] * self.layout.shape[1]
        count = cell.get("examples", 1)
        self.examples = [subject.text(cell["prompt"], cell["response"], i) for i in range(count)]
        self.some = spread(self.n, cell.get("heads", 1), self.layout.n_heads)

    def run(self, way: str, heads: Sequence[int]) -> Tensor:
        """NLL ``(n_heads,)`` of ``heads``, ablated, the i-th on example i (in turn): all of them
        are timed together; or all heads on all examples ``(n_examples, n)``."""
        if way in ("authors", "naive"):
            chosen = [(head, self.examples[i % len(self.examples)]) for i, head in enumerate(heads)]
            with backend(self.model, "eager" if way == "authors" else "sdpa"):
                return torch.tensor([self._full_pass(e, h, way == "authors") for h, e in chosen])
        with intercept(self.model):
            if way == "screened":
                return self._screened()
            return self._ablated(self._scorers(), torch.arange(self.n))

    def compare(self, rounds: int) -> Cell:
        """All ways in turn, ``rounds`` times after one to warm up: seconds a head and example."""
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        differences = []
        for round_ in range(rounds + 1):
            found = {}
            for way in WAYS:
                if way in ("authors", "naive") and self.target == "profile":
                    continue  # a full pass under another mask: it costs the same
                took, found[way] = self.subject.timed(partial(self.run, way, self.some))
                single = way in ("authors", "naive")
                units = len(self.some) if single else self.n * len(self.examples)
                if round_:
                    seconds[way].append(took / units)
            if "naive" in found:
                rows = [i % len(self.examples) for i in range(len(self.some))]
                gap = found["exact"][rows, self.some] - found["naive"]
                differences.append(gap.abs().max().item())
        k = max(1, round(TOP * self.n))
        top = found["exact"].mean(0).topk(k).indices.tolist()
        kept = found["screened"].mean(0).nan_to_num(float("-inf")).topk(k).indices.tolist()
        return {
            "seconds": {way: values for way, values in seconds.items() if values},
            "difference": max(differences, default=None),
            "recall": len(set(top) & set(kept)) / k,
            "n_heads": self.n,
        }

    # -- the ways --

    @torch.no_grad()
    def _full_pass(self, e: Encoded, head: int, all_logits: bool) -> float:
        """NLL with one head's part of the output projection's input zeroed (target ``"head"``)."""
        n_heads = self.layout.n_heads
        first = len(e.prompt_ids) - 1 if self.scope == "response" else 0

        def zero(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            x = args[0].clone()
            x.unflatten(-1, (n_heads, -1))[:, first:, head % n_heads] = 0
            return (x,)

        name = f"model.layers.{head // n_heads}.self_attn.o_proj"
        handle = self.model.get_submodule(name).register_forward_pre_hook(zero)
        try:
            ids = torch.cat([e.prompt_ids, e.response_ids[:-1]])[None].to(self.subject.device)
            keep = 0 if all_logits else len(e.response_ids)
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[0]
        finally:
            handle.remove()
        targets = e.response_ids.to(logits.device)
        return float(token_nll(logits[-len(targets) :], targets).mean())

    def _scorers(self) -> Iterator[Scorer]:
        budget = Budget(self.tokens)
        return (Scorer(self.model, e, self.scope, budget) for e in self.examples)

    def _ablated(self, scorers: Iterable[Scorer], heads: Tensor) -> Tensor:
        gains = torch.ones(len(heads), self.n)
        gains[torch.arange(len(heads)), heads] = 0
        gains = gains.reshape(-1, *self.layout.shape)
        result = torch.full((len(self.examples), self.n), torch.nan)
        for i, scorer in enumerate(scorers):
            result[i, heads] = scorer.nll(gains, self.target)[1]
        return result

    def _screened(self) -> Tensor:
        scorers = list(self._scorers())  # their prompts are kept for the ablation
        estimates = [estimate_scores(s, self.layout, self.target)[0] for s in scorers]
        return self._ablated(scorers, choose_candidates(torch.stack(estimates), CANDIDATES))


@contextmanager
def backend(model: Any, name: str) -> Iterator[None]:
    """Another attention implementation inside the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
