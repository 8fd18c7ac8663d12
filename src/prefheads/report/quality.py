"""The analyses of what steering is worth: calibration, validation, and evaluation of methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.validate import Validation
from prefheads.evaluation.methods import Method
from prefheads.report import evaluated, paper_form, plots, sweeps
from prefheads.report.chapter import named, show
from prefheads.report.evaluated import Evaluation
from prefheads.report.findings import findings
from prefheads.report.index import Entry
from prefheads.stats import INTERVALS, Estimate

METHODS = (
    "plain,dps:fraction=0.01,dps:fraction=0.02,dps,dps:fraction=0.08,dps:fraction=0.16,"
    "dps:gamma=0.1,dps:gamma=0.5,dps:suppression=0.1,dps:target=profile,dps:scope=all,"
    "dps-cluster,dps-cluster:routing=hard,random-heads,random-mask"
)
OTHER_RUNS = (
    "the number of clusters, the reference and the number of discovery samples belong to a fit, so "
    "each value is a run of its own (`prefheads fit --clusters C`, `--reference R`, "
    "`--discovery N`, then `prefheads validate`)."
)


def calibration_entries(calibration: Calibration | None, name: str, command: str) -> list[Entry]:
    """Quality against gamma, suppression, target, mode and head set.

    Args:
        name: Of the part of the run; empty if it is all of it.
        command: What calibrates.
    """
    if calibration is None:
        title = "Quality against gamma, suppression, target and number of heads"
        return [Entry(named(name, "calibration"), title, "Fig. 6, 6.5", missing=f"`{command}`.")]
    where = f"{name}: " if name else ""
    c, best = calibration, calibration.best_tried
    i = c.settings.index(best)
    half = plots.half_intervals(c)[i]
    lowest = show(Estimate(c.change[i], c.change[i] - half, c.change[i] + half), 3, sign=True)
    said = (
        f"{len(c.settings) - 1} settings on {c.n_examples} samples of {c.n_users} users who took "
        f"no part in discovery; bars are 95 % intervals over users. Chosen: {c.setting}. "
        f"Lowest: {best}, {lowest} nats a token; the best of so many looks better than it is, "
        f"which is what validation is for. Plain decoding (0) is the control; its NLL is "
        f"{c.plain_nll:.3f}."
    )
    return [
        *_paper_form(c, name, where),
        Entry(
            named(name, "gamma"),
            f"{where}Quality against gamma, suppression, mode and target",
            "6.5, gamma",
            shows=said,
            figure=plots.calibration_curves(c),
            tables={"": sweeps.calibration_rows(c)},
        ),
        Entry(
            named(name, "sizes"),
            f"{where}Quality against the number of heads, calibration",
            "Fig. 6",
            shows="The same settings, side by side for each head set; bars as above.",
            missing=f"more sizes than calibration tries, and {OTHER_RUNS}",
            figure=sweeps.size_figure(c, f"{where}Change of NLL by size of the head set"),
        ),
    ]


def _paper_form(calibration: Calibration, name: str, where: str) -> list[Entry]:
    points = paper_form.paper_form(calibration)
    if not points:
        return []
    return [
        Entry(
            named(name, "paper-form"),
            f"{where}The paper's own form, over the number of heads and the strength",
            "Fig. 6, 6.5, gamma",
            shows=paper_form.told(points, calibration),
            figure=paper_form.paper_form_figure(points, f"{where}{paper_form.PAPER_FORM}"),
            tables={"": [p.row() for p in points]},
        )
    ]


def validation_entries(
    validation: Validation | None, name: str, command: str, seed: int = 0
) -> list[Entry]:
    """Steering beside random heads and masks on test users.

    Args:
        command: What validates.
    """
    title = "Steering beside random heads and masks on test users"
    paper = "Fig. 5, 6.4, quality"
    if validation is None:
        return [Entry(named(name, "validation"), title, paper, missing=f"`{command}`.")]
    rows = [
        {"method": row.method, "nll": row.nll, "change": row.change.mean, "low": row.change.low,
         "high": row.change.high, "specificity_change": row.specificity_change.mean,
         "specificity_low": row.specificity_change.low,
         "specificity_high": row.specificity_change.high, "own_wins": row.own_wins.mean,
         "own_wins_low": row.own_wins.low, "own_wins_high": row.own_wins.high}
        for row in validation.rows()
    ]  # fmt: skip
    found = findings(validation)
    claims = [
        {"claim": f.claim, "verdict": f.verdict, "against": f.against,
         "difference": f.estimate.mean, "low": f.estimate.low, "high": f.estimate.high}
        for f in found
    ]  # fmt: skip
    n = f"{len(validation.example_ids)} samples of {len(set(validation.user_ids))} test users"
    said = f"{n}, paired by sample, {INTERVALS}. "
    if not found:
        return [
            Entry(
                named(name, "validation"), title, paper,
                shows=said + "Calibration chose plain decoding, so no steering was tested.",
                tables={"": rows},
            )
        ]  # fmt: skip
    return [
        Entry(
            named(name, "validation"),
            title,
            paper,
            shows=said,
            findings=found,
            figure=plots.validation_plot(validation),
            tables={"": rows, "findings": claims},
        )
    ]


def evaluation_entries(found: Evaluation | None, command: str, seed: int = 0) -> list[Entry]:
    """True against random heads, one option at a time, hard against soft routing.

    Args:
        found: None where no evaluation has ended.
        command: What evaluates the methods that the analyses need.
    """
    if found is None:
        missing = f"an evaluation that has ended: `{command}`, then `prefheads analyze` its folder."
        title = (
            "Quality of texts: by number of heads, gamma, target and scope; beside random heads "
            "and masks; hard against soft routing"
        )
        return [Entry("eval", title, "Fig. 5, Fig. 6, Fig. 8, 6.4, 6.5", missing=missing)]
    return [*_sweeps(found, command), *_controls(found, command, seed),
            *_routing(found, command, seed)]  # fmt: skip


def _sweeps(found: Evaluation, command: str) -> list[Entry]:
    all_of_them = [s for s in sweeps.find_sweeps(found.methods) if s.option != "routing"]
    entries = [
        Entry(
            named("eval", _slug(sweep.name)),
            f"Quality against {sweep.option} ({sweep.kind})",
            "Fig. 6" if sweep.option == "fraction" else "6.5",
            shows=(
                f"{', '.join(m.name for m in sweep.methods)}, on {', '.join(found.tasks)}: value "
                "with 95 % interval over users; dotted: "
                f"{found.methods[0].name}; grey: random heads or masks under the same options. "
                "p of each value against the baseline, corrected by Holm, is in the table."
            ),
            missing=_uncontrolled(found, sweep.methods),
            figure=sweeps.sweep_figure(found, sweep, f"Quality against {sweep.option}"),
            tables={"": sweeps.sweep_rows(found, sweep)},
        )
        for sweep in all_of_them
    ]
    lacking = [o for o in ("fraction", "gamma", "suppression", "target", "scope")
               if o not in {s.option for s in all_of_them}]  # fmt: skip
    if lacking:
        missing = (
            f"methods that differ in {', '.join(lacking)} only: `{command}`. Besides, {OTHER_RUNS}"
        )
        entries.append(
            Entry("eval-sweeps", "Quality of texts against further options", "Fig. 6, 6.5",
                  missing=missing)
        )  # fmt: skip
    return entries


def _uncontrolled(found: Evaluation, methods: Sequence[Method]) -> str:
    alone = [m.name for m in methods if not found.controls(m)]
    if not alone:
        return ""
    wanted = []
    for method in alone:
        kind, *options = method.split(":")
        of = [] if kind == "dps" else [f"of={kind}"]
        wanted.append(":".join(["random-heads", *of, *options]))
    return f"random heads under the options of {', '.join(alone)}: add {','.join(wanted)}."


def _controls(found: Evaluation, command: str, seed: int) -> list[Entry]:
    pairs = [
        (method.name, control.name)
        for method in found.methods
        if not method.is_control
        for control in found.controls(method)
    ]
    title, paper = "Quality beside random heads and masks", "Fig. 5, 6.4, quality"
    if not pairs:
        return [Entry("eval-controls", title, paper,
                      missing=f"random controls of a method: `{command}`.")]  # fmt: skip
    entries = []
    for method in dict.fromkeys(first for first, _ in pairs):
        own = [pair for pair in pairs if pair[0] == method]
        differences = evaluated.differences(found, own, seed)
        entries.append(
            Entry(
                named("eval-controls", _slug(method)),
                f"{title}: {method}",
                paper,
                shows=_told(differences),
                figure=sweeps.difference_figure(
                    differences, f"{method} against random controls", "better than control by →"
                ),
                tables={"": [d.row() for d in differences]},
            )
        )  # fmt: skip
    return entries


def _routing(found: Evaluation, command: str, seed: int) -> list[Entry]:
    pairs = []
    for sweep in sweeps.find_sweeps(found.methods):
        by_value = dict(zip(sweep.values, sweep.methods, strict=True))
        if sweep.option == "routing" and {"hard", "soft"} <= by_value.keys():
            pairs.append((by_value["hard"].name, by_value["soft"].name))
    title = "Hard against soft routing"
    if not pairs:
        missing = f"one method with either routing: `{command}`."
        return [Entry("eval-routing", title, "Fig. 8", missing=missing)]
    differences = evaluated.differences(found, pairs, seed)
    plain = (
        " With a single cluster both are the same."
        if all(abs(d.paired.mean) < evaluated.NOTHING for d in differences)
        else ""
    )
    return [
        Entry(
            "eval-routing",
            title,
            "Fig. 8",
            shows=_told(differences) + plain,
            figure=sweeps.difference_figure(
                differences, "Hard - soft routing", "hard routing better by →"
            ),
            tables={"": [d.row() for d in differences]},
        )
    ]


def _told(found: Sequence[evaluated.Difference]) -> str:
    told = [
        f"{task}, {' - '.join(names)}: "
        + ", ".join(f"{d.metric} {show(d.paired, 3, sign=True)}" for d in group)
        for (task, names), group in groupby(found, key=lambda d: (d.task, d.names))
    ]
    return (
        "Differences on the same samples, of texts and of likelihood, with 95 % intervals over "
        f"users, not corrected for their number. {'; '.join(told)}."
    )


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", text).strip("-")
