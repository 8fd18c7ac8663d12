"""Quality against one option at a time (Fig. 6, Fig. 8): from calibration, and from evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.headsets import HeadSet
from prefheads.evaluation.methods import Method
from prefheads.report.statistics.evaluated import Evaluation, estimate
from prefheads.report.wording import columns
from prefheads.stats import Estimate
from prefheads.steering.setting import Setting

UNKNOWN = Estimate(math.nan, math.nan, math.nan)
Form = tuple[str, str, float, str, float | None]


def form_of(s: Setting) -> Form:
    """All of a setting but its heads and gamma."""
    return s.mode, s.target, s.suppression, s.schedule, s.cap


def form_name(form: Form) -> str:
    """For titles: "contrast (0.1), head", "contrast x entropy to 1, head"."""
    mode, target, suppression, schedule, cap = form
    faint = f" ({suppression:g})" if mode == "contrast" and suppression != 1 else ""
    entropy = " x entropy" if schedule == "entropy" else ""
    bound = "" if cap is None else f" to {cap:g}"
    return f"{mode}{faint}{entropy}{bound}, {target}"


def changes(calibration: Calibration) -> list[tuple[Setting, Estimate]]:
    """The settings that steer, with the change of NLL of each and its 95 % interval (t)."""
    reach = stdtrit(calibration.n_users - 1, 0.975)
    values = zip(calibration.settings, calibration.change, calibration.stderr, strict=True)
    return [
        (s, Estimate(change, change - float(reach * stderr), change + float(reach * stderr)))
        for s, change, stderr in values
        if not s.plain
    ]


def head_set(name: str) -> tuple[str, float]:
    """How heads of a calibrated set were ranked, and their share: of "top 4% by head PCS"."""
    found = HeadSet.parse(name)
    return (name, math.nan) if found is None else (found.target, found.share)


def calibration_rows(calibration: Calibration) -> list[dict[str, Any]]:
    """A line a setting that calibration tried; changes of NLL with standard errors over users."""
    specific = calibration.specificity
    rows = []
    for i, s in enumerate(calibration.settings):
        ranked, share = head_set(s.heads)
        rows.append(
            {
                "heads": s.heads,
                "ranked_by": ranked,
                "share_of_heads": share,
                "mode": s.mode,
                "target": s.target,
                "gamma": s.gamma,
                "suppression": s.suppression,
                "strength": s.schedule,
                "cap": s.cap,
                "change_of_nll": calibration.change[i],
                "stderr": calibration.stderr[i],
                "divergence": calibration.divergence[i],
                "specificity": math.nan if specific is None else specific[i],
                "chosen": i == calibration.chosen,
                "users": calibration.n_users,
            }
        )
    return rows


@dataclass(frozen=True)
class Sweep:
    """Methods that differ in one option only.

    Attributes:
        kind: Of the methods.
        option: What they differ in.
        fixed: The other options that are not the usual ones, as typed.
        values: Of the option, in order.
        methods: One a value.
    """

    kind: str
    option: str
    fixed: str
    values: tuple[Any, ...]
    methods: tuple[Method, ...]

    @property
    def name(self) -> str:
        """For titles and files."""
        return f"{self.kind}{f' ({self.fixed})' if self.fixed else ''}: {self.option}"


def find_sweeps(methods: Sequence[Method]) -> list[Sweep]:
    """All sets of methods of one kind that differ in one option only."""
    groups: dict[tuple[str, str, str], dict[Any, Method]] = {}
    for method in methods:
        if method.is_control:
            continue
        for option in method.options:
            rest = [f"{k}={v}" for k, v in sorted(method.options.items()) if k != option]
            key = (method.kind, option, " ".join(rest))
            groups.setdefault(key, {})[method.options[option]] = method
    found = []
    for (kind, option, _), by_value in groups.items():
        if len(by_value) < 2:
            continue
        numeric = all(isinstance(v, int | float) for v in by_value)
        values = sorted(by_value) if numeric else list(by_value)
        usual = Method.parse(kind).options
        some = by_value[values[0]].options
        fixed = " ".join(f"{k}={v}" for k, v in some.items() if k != option and v != usual.get(k))
        chosen = tuple(by_value[v] for v in values)
        found.append(Sweep(kind, option, fixed, tuple(values), chosen))
    return found


def sweep_rows(found: Evaluation, sweep: Sweep) -> list[dict[str, Any]]:
    """A line a task, metric and value; the control is the mean of random heads, if there are."""
    rows = []
    for task in found.tasks:
        for metric in found.metrics(task):
            for value, method in zip(sweep.values, sweep.methods, strict=True):
                cell = found.cell(task, method.name, metric)
                if cell is None:
                    continue
                random = control(found, method, task, metric)
                plain = found.cell(task, found.methods[0].name, metric)
                rows.append(
                    {
                        "task": task,
                        "metric": metric,
                        "method": method.name,
                        "option": sweep.option,
                        "option_value": value,
                        **columns(estimate(cell)),
                        "p_against_baseline": cell.p,
                        "baseline": math.nan if plain is None else plain.value,
                        **columns(random or UNKNOWN, "random_control", "random_"),
                        "samples": cell.n,
                    }
                )
    return rows


def control(found: Evaluation, method: Method, task: str, metric: str) -> Estimate | None:
    """Mean over the random controls of a method, and the mean of their intervals' ends."""
    cells = [found.cell(task, m.name, metric) for m in found.controls(method)]
    ends = [(c.value, c.low, c.high) for c in cells if c is not None]
    return Estimate(*np.mean(ends, axis=0).tolist()) if ends else None
