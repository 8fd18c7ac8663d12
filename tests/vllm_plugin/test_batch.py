"""Which tokens a step steers, against a loop over requests and positions."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from prefheads.steering.setting import Setting
from prefheads.vllm.batch import Batch, Heads
from prefheads.vllm.request import RequestSteering

SHAPE = (3, 4)
ROWS, TOKENS = 6, 64


def steering(seed: int) -> RequestSteering | None:
    if seed % 3 == 0:
        return None
    mode = "contrast" if seed % 3 == 1 else "amplify"
    setting = Setting("", mode, "head", 0.1 * (seed % 17 + 1), 0.5)
    return RequestSteering(setting, (seed % 12,), (1.0,))


def batch(static: bool = False, first: int = 0, count: int = 4) -> Batch:
    return Batch(ROWS, TOKENS, Heads(SHAPE, first, count, 0, static), "cpu", torch.float32)


def common(lengths: list[int], queries: list[int]) -> SimpleNamespace:
    starts = torch.tensor([0, *queries]).cumsum(0).int()
    return SimpleNamespace(
        num_reqs=len(queries),
        num_actual_tokens=sum(queries),
        query_start_loc_cpu=starts,
        seq_lens_cpu_upper_bound=torch.tensor(lengths).int(),
    )


@pytest.mark.parametrize("static", [False, True])
def test_any_sequence_of_rows_and_steps(static: bool) -> None:
    chance = random.Random(0)
    ours = batch(static)
    rows: dict[int, tuple[RequestSteering | None, int]] = {}
    for number in range(300):
        ours.advance()
        for _ in range(chance.randrange(4)):
            change(chance, ours, rows, number)
        n = max(rows, default=-1) + 1
        queries = [chance.choice([1, 1, 1, 3, 9]) for _ in range(n)]
        lengths = [q + chance.randrange(12) for q in queries]
        if n:
            plan = ours.plan(common(lengths, queries))
            assert plan is ours.plan(common(lengths, queries))
            check(ours, plan, rows, lengths, queries)


def change(chance, ours, rows, number) -> None:
    kind, row, other = chance.randrange(4), chance.randrange(ROWS), chance.randrange(ROWS)
    if kind == 0:
        rows[row] = (steering(number), chance.randrange(1, 15))
        ours.add(row, *rows[row])
    elif kind == 1:
        rows.pop(row, None)
        ours.remove(row)
    elif row != other:
        swap = kind == 2
        a, b = rows.pop(row, None), rows.pop(other, None)
        rows |= {other: a} if a else {}
        rows |= {row: b} if b and swap else {}
        ours.move(row, other, swap)


def check(ours, plan, rows, lengths, queries) -> None:
    """Every token has the gains of its request if it predicts the response, else none."""
    token, second, gammas = 0, [], []
    static = ours.heads.static
    for row, (length, query) in enumerate(zip(lengths, queries, strict=True)):
        how, n_prompt = rows.get(row, (None, 1))
        for position in range(length - query, length):
            steered = how is not None and position >= n_prompt - 1
            own = how.gains(SHAPE) if steered and not how.contrasts else torch.ones(SHAPE)
            slots = ours.own if static else plan.slots
            found = ours.table[:, slots[token]] if len(slots) else torch.ones(SHAPE)
            assert torch.equal(found, own)
            if steered and how.contrasts:
                second.append((token, how))
                gammas.append(how.setting.gamma)
            elif static:
                assert ours.branch[token] == 0
            token += 1
    wanted = [how.gains(SHAPE) for _, how in second]
    if static:
        assert (ours.branch > 0).nonzero().flatten().tolist() == [t for t, _ in second]
        found = [ours.table[:, ours.branch[t]] for t, _ in second]
        gammas_found = [float(ours.gammas[t]) for t, _ in second]
    else:
        assert plan.rows.tolist() == [t for t, _ in second]
        found = [ours.table[:, s] for s in plan.slots[token:]]
        gammas_found = plan.gammas.flatten().tolist()
        assert plan.counts.sum() == len(second)
        assert plan.mirrors == any(how and how.contrasts for how, _ in here(rows, queries))
    assert len(found) == len(wanted) and all(map(torch.equal, found, wanted))
    assert gammas_found == pytest.approx(gammas)


def here(rows, queries):
    return [v for row, v in rows.items() if row < len(queries)]


def test_a_rank_has_its_own_heads() -> None:
    ours = batch(first=2, count=2)
    how = RequestSteering(Setting(gamma=1.0), (3,), (0.5,))
    ours.add(0, how, 1)
    plan = ours.plan(common([1], [1]))
    assert ours.table[0, plan.slots[0]].tolist() == [1.0, 1.5]
