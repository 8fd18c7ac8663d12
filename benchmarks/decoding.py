"""Greedy decoding, six ways, for a batch of different users:

``plain``      stock ``generate()``;
``off``        the same under ``steer()`` of strength 0;
``amplify``    ``steer(mode="amplify")``;
``contrast``   ``steer(mode="contrast")``, Eq. 8;
``authors``    Eq. 8 in a plain loop: the prompt once, two copies of its cache, two passes in
               sequence for every token;
``cad``        ``generate(guidance_scale=...)``, transformers' own contrast with a second prompt.

``--compiled`` measures the first four once more, with static caches and steps that ``generate()``
compiles, and other heads in every round.

Every user has heads of its own: 4 % of all, drawn at random, so that a batch forks in one of the
lowest layers, which is the dearest case.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, DynamicCache, StoppingCriteria, StoppingCriteriaList

from benchmarks.cells import shared_by_cells
from benchmarks.results import Cell
from benchmarks.subject import Subject
from prefheads import steer
from prefheads.interventions.cache import LEAST_ROOM, ROOM
from prefheads.interventions.intercept import head_layout
from prefheads.types import Mode

COMPILED = ("plain", "off", "amplify", "contrast")
WAYS = (*COMPILED, "authors", "cad")
SHARE, GAMMA = 0.04, 0.5


def cells(args: argparse.Namespace) -> list[Cell]:
    """What the command line asks for, but for batches of too many tokens."""
    common = shared_by_cells("decoding", args)
    result: list[Cell] = []
    for prompt in args.prompts:
        for batch in args.batches:
            if prompt * batch > args.most:
                continue
            shape = {"prompt": prompt, "batch": batch, "new": args.new}
            result.append(common | {"what": "time"} | shape | {"rounds": args.rounds})
            for way in WAYS:
                result.append(common | {"what": "memory", "way": way} | shape)
            result.append(common | {"what": "held"} | shape)
            if args.compiled:
                result.append(common | {"what": "compiled"} | shape | {"rounds": args.rounds})
    return result


def measure(subject: Subject, cell: Cell) -> Cell:
    """The result of one cell."""
    ways = _Ways(subject, cell)
    if cell["what"] == "memory":
        return subject.peak_of(lambda: ways.run(cell["way"]))
    if cell["what"] == "held":
        return ways.held()
    if cell["what"] == "compiled":
        return ways.compare_compiled(cell["rounds"])
    return ways.compare(cell["rounds"])


class _Clock(StoppingCriteria):
    """Notes when each token is there; stops nothing."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.ticks: list[float] = []
        self.tick()

    def tick(self) -> None:
        self.subject.wait()
        self.ticks.append(time.perf_counter())

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    @property
    def times(self) -> tuple[float, float]:
        """Seconds to the first token, and from one token to the next."""
        start, first, *_, last = self.ticks
        return first - start, (last - first) / (len(self.ticks) - 2)


class _Ways:
    def __init__(self, subject: Subject, cell: Cell) -> None:
        self.subject, self.model, self.new = subject, subject.model, cell["new"]
        self.ids = subject.prompts(cell["prompt"], cell["batch"])
        self.layout = head_layout(self.model)
        self.weights = self._maps(0)
        self.fork = int(self.weights.amax((0, 2)).nonzero()[0])  # first layer with anyone's head

    def _maps(self, round_: int) -> Tensor:
        n = len(self.ids)
        return torch.stack([self._map(round_ * n + user) for user in range(n)])

    def _map(self, user: int) -> Tensor:
        n = self.layout.shape[0] * self.layout.shape[1]
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(user))
        weights = torch.zeros(n)
        weights[drawn[: max(1, round(SHARE * n))]] = 1
        return weights.reshape(self.layout.shape)

    def compare(self, rounds: int) -> Cell:
        """All ways in turn, ``rounds`` times after one to warm up."""
        texts, times = self._in_turn(WAYS, rounds)
        same = (texts["contrast"] == texts["authors"]).float().mean().item()
        return times | {
            "fork": self.fork,
            "same_tokens": same,  # share of tokens on which ours and the authors' loop agree
            "off_is_plain": bool((texts["off"] == texts["plain"]).all()),
        }

    def compare_compiled(self, rounds: int) -> Cell:
        """The same of steps that are compiled while it warms up; every round has other heads."""
        graphs = torch._dynamo.utils.counters["stats"]
        config = CompileConfig()
        if self.subject.device.type == "cpu":
            config = CompileConfig(mode="default")
            config._compile_all_devices = True  # generate() compiles for GPUs alone otherwise
        options = {"cache_implementation": "static", "compile_config": config}
        made = []

        def begin(round_: int) -> None:
            self.weights = self._maps(round_)
            made.append(graphs["unique_graphs"])

        times = self._in_turn(COMPILED, rounds, begin, **options)[1]
        return times | {"fork": 0, "graphs": graphs["unique_graphs"], "graphs_at_first": made[1]}

    def _in_turn(
        self,
        ways: Sequence[str],
        rounds: int,
        begin: Callable[[int], None] = lambda round_: None,
        **options: Any,
    ) -> tuple[dict[str, Tensor], Cell]:
        """The texts of the last round; seconds to the first token and for each after it, which is
        one of every text of the batch."""
        first: dict[str, list[float]] = {way: [] for way in ways}
        each: dict[str, list[float]] = {way: [] for way in ways}
        texts: dict[str, Tensor] = {}
        for round_ in range(rounds + 1):
            begin(round_)
            for way in ways:
                texts[way], (to_first, per_token) = self.run(way, **options)
                if round_:
                    first[way].append(to_first)
                    each[way].append(per_token)
        return texts, {"first": first, "each": each}

    def run(self, way: str, **options: Any) -> tuple[Tensor, tuple[float, float]]:
        """New tokens ``(batch, new)`` and their :attr:`_Clock.times`; options of ``generate()``."""
        if way == "authors":
            return self._authors()
        with self._context(way):
            clock = _Clock(self.subject)
            out = self.model.generate(  # type: ignore[operator]
                input_ids=self.ids,
                attention_mask=torch.ones_like(self.ids),
                max_new_tokens=self.new,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([clock]),
                **options,
                **(self._guidance() if way == "cad" else {}),
            )
        return out[:, self.ids.shape[1] :], clock.times

    def _context(self, way: str) -> Any:
        if way in ("plain", "cad"):
            return nullcontext()
        gamma = 0.0 if way == "off" else GAMMA
        mode: Mode = "amplify" if way == "amplify" else "contrast"
        return steer(self.model, self.weights, gamma, mode=mode)

    def _guidance(self) -> dict[str, Any]:
        bare = self.ids[:, -max(1, self.ids.shape[1] // 4) :]  # three quarters are the profile
        return {
            "guidance_scale": 1 + GAMMA,
            "negative_prompt_ids": bare,
            "negative_prompt_attention_mask": torch.ones_like(bare),
        }

    @torch.no_grad()
    def _authors(self) -> tuple[Tensor, tuple[float, float]]:
        clock = _Clock(self.subject)
        prompt, token = self.ids[:, :-1], self.ids[:, -1:]
        cache = DynamicCache(config=self.model.config)
        self.model(input_ids=prompt, past_key_values=cache, logits_to_keep=1)
        caches = copy.deepcopy(cache), copy.deepcopy(cache)
        new = []
        for _ in range(self.new):
            own = self.model(input_ids=token, past_key_values=caches[0]).logits[:, -1].float()
            with self._ablated():
                other = self.model(input_ids=token, past_key_values=caches[1]).logits[:, -1]
            token = ((1 + GAMMA) * own - GAMMA * other.float()).argmax(-1, keepdim=True)
            new.append(token)
            clock.tick()
        return torch.cat(new, 1), clock.times

    @contextmanager
    def _ablated(self) -> Iterator[None]:
        """Each user's heads zeroed before the output projection."""

        def zero(layer: int) -> Callable[..., Any]:
            kept = (1 - self.weights[:, layer]).to(self.subject.device, self.model.dtype)

            def hook(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
                x = args[0].unflatten(-1, (self.layout.n_heads, -1))
                return ((x * kept[:, None, :, None]).flatten(-2),)

            return hook

        handles = [
            self.model.get_submodule(
                f"model.layers.{layer}.self_attn.o_proj"
            ).register_forward_pre_hook(zero(layer))
            for layer in self.weights.amax((0, 2)).nonzero()[:, 0].tolist()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def held(self) -> Cell:
        """Bytes of the keys and values of plain decoding and of a contrast when both are done, and
        by the formula of docs/performance.md what a contrast holds beyond plain decoding."""
        held = {}
        for way in ("plain", "contrast"):
            cache = DynamicCache(config=self.model.config)
            self.run(way, past_key_values=cache)
            tensors = [x for layer in cache.layers for x in vars(layer).values()]
            stores = [x.untyped_storage() for x in tensors if isinstance(x, Tensor)]
            held[way] = sum({store.data_ptr(): store.nbytes() for store in stores}.values())
        n_layers, (batch, n_prompt) = self.layout.shape[0], self.ids.shape
        # The last token is written, not read: its keys and values are not computed.
        of_token = held["plain"] // (n_layers * batch * (n_prompt + self.new - 1))
        doubled = (n_layers - self.fork) * batch * of_token
        return {
            "held": held,
            "formula": doubled * self.new,  # with the prompt's last token
            # At most, for the tokens to come of both branches.
            "room": 2 * doubled * min(ROOM, max(LEAST_ROOM, self.new)),
        }
