"""The analyses of what steering is worth: calibration, validation, and evaluation of methods."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.validate import Validation
from prefheads.evaluation.methods import Method
from prefheads.report.figures import steering as figures
from prefheads.report.page.entry import Entry
from prefheads.report.statistics import evaluated, sweeps
from prefheads.report.statistics.evaluated import Evaluation
from prefheads.report.statistics.findings import findings
from prefheads.report.statistics.paper_form import PAPER_FORM, paper_form, told
from prefheads.report.wording import columns, named, show, slug
from prefheads.stats import INTERVALS, Estimate

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
    change = dict(sweeps.changes(c)).get(best, Estimate(0.0, 0.0, 0.0))
    lowest = show(change, 3, sign=True)
    said = (
        f"{len(c.settings) - 1} settings on {c.n_examples} samples of {c.n_users} users who took "
        f"no part in discovery; bars are 95 % intervals over users. Chosen: {c.setting}. "
        f"Lowest: {best}, {lowest} nats a token; the best of so many looks better than it is, "
        f"which is what validation is for. Plain decoding (0) is the control; its NLL is "
        f"{c.plain_nll:.3f}."
    )
    return [
        *paper_form_entries(c, name),
        Entry(
            named(name, "gamma"),
            f"{where}Quality against gamma, suppression, mode and target",
            "6.5, gamma",
            shows=said,
            figure=figures.calibration_curves(c),
            tables={"": sweeps.calibration_rows(c)},
        ),
        Entry(
            named(name, "sizes"),
            f"{where}Quality against the number of heads, calibration",
            "Fig. 6",
            shows="The same settings, side by side for each head set; bars as above.",
            missing=f"more sizes than calibration tries, and {OTHER_RUNS}",
            figure=figures.size_figure(c, f"{where}Change of NLL by size of the head set"),
        ),
    ]


def paper_form_entries(calibration: Calibration, name: str = "") -> list[Entry]:
    """The paper's own form of steering; none where it was not tried."""
    points, where = paper_form(calibration), f"{name}: " if name else ""
    if not points:
        return []
    title = f"{where}The paper's own form, over the number of heads and the strength"
    figure = figures.paper_form_figure(points, f"{where}{PAPER_FORM}")
    rows, said = [p.row() for p in points], told(points, calibration)
    name = named(name, "paper-form")
    return [Entry(name, title, "Fig. 6, 6.5, gamma", said, figure=figure, tables={"": rows})]


def validation_entries(validation: Validation | None, name: str, command: str) -> list[Entry]:
    """Steering beside random heads and masks on test users.

    Args:
        command: What validates.
    """
    head = named(name, "validation"), "Steering beside random heads and masks on test users"
    paper = "Fig. 5, 6.4, quality"
    if validation is None:
        return [Entry(*head, paper, missing=f"`{command}`.")]
    rows = [
        {
            "method": row.method,
            "nll": row.nll,
            **columns(row.change, "change"),
            **columns(row.specificity_change, "specificity_change", "specificity_"),
            **columns(row.own_wins, "own_wins", "own_wins_"),
        }
        for row in validation.rows()
    ]
    found = findings(validation)
    claims = [
        {"claim": f.claim, "verdict": f.verdict, "against": f.against}
        | columns(f.estimate, "difference")
        for f in found
    ]
    said = (
        f"{len(validation.example_ids)} samples of {len(set(validation.user_ids))} test users, "
        f"paired by sample, {INTERVALS}."
    )
    if not found:
        said += " Calibration chose plain decoding, so no steering was tested."
        return [Entry(*head, paper, shows=said, tables={"": rows})]
    return [
        Entry(
            *head,
            paper,
            shows=said,
            findings=found,
            figure=figures.validation_plot(validation),
            tables={"": rows, "findings": claims},
        )
    ]


def evaluation_entries(found: Evaluation | None, command: str) -> list[Entry]:
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
    analyses = (_sweeps, _controls, _routing)
    return [entry for analysis in analyses for entry in analysis(found, command)]


def _sweeps(found: Evaluation, command: str) -> list[Entry]:
    all_of_them = [s for s in sweeps.find_sweeps(found.methods) if s.option != "routing"]
    entries = [
        Entry(
            named("eval", slug(sweep.name)),
            f"Quality against {sweep.option} ({sweep.kind})",
            "Fig. 6" if sweep.option == "fraction" else "6.5",
            shows=(
                f"{', '.join(m.name for m in sweep.methods)}, on {', '.join(found.tasks)}: value "
                "with 95 % interval over users; dotted: "
                f"{found.methods[0].name}; grey: random heads or masks under the same options. "
                "p of each value against the baseline, corrected by Holm, is in the table."
            ),
            missing=_uncontrolled(found, sweep.methods),
            figure=figures.sweep_figure(found, sweep, f"Quality against {sweep.option}"),
            tables={"": sweeps.sweep_rows(found, sweep)},
        )
        for sweep in all_of_them
    ]
    wanted = ("fraction", "gamma", "suppression", "target", "scope")
    lacking = [option for option in wanted if option not in {s.option for s in all_of_them}]
    if lacking:
        why = (
            f"methods that differ in {', '.join(lacking)} only: `{command}`. Besides, {OTHER_RUNS}"
        )
        title = "Quality of texts against further options"
        entries.append(Entry("eval-sweeps", title, "Fig. 6, 6.5", missing=why))
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


def _controls(found: Evaluation, command: str) -> list[Entry]:
    pairs = [
        (method.name, control.name)
        for method in found.methods
        if not method.is_control
        for control in found.controls(method)
    ]
    title, paper = "Quality beside random heads and masks", "Fig. 5, 6.4, quality"
    if not pairs:
        missing = f"random controls of a method: `{command}`."
        return [Entry("eval-controls", title, paper, missing=missing)]
    return [
        _difference_entry(
            named("eval-controls", slug(method)),
            f"{title}: {method}",
            paper,
            evaluated.differences(found, [pair for pair in pairs if pair[0] == method]),
            (f"{method} against random controls", "better than control by →"),
        )
        for method in dict.fromkeys(first for first, _ in pairs)
    ]


def _difference_entry(
    name: str,
    title: str,
    paper: str,
    found: Sequence[evaluated.Difference],
    titles: tuple[str, str],
    also: str = "",
) -> Entry:
    """Differences of pairs of methods; ``titles`` are those of the figure and of its axis."""
    figure = figures.difference_figure(found, *titles)
    rows = [d.row() for d in found]
    return Entry(name, title, paper, _told(found) + also, figure=figure, tables={"": rows})


def _routing(found: Evaluation, command: str) -> list[Entry]:
    pairs = []
    for sweep in sweeps.find_sweeps(found.methods):
        by_value = dict(zip(sweep.values, sweep.methods, strict=True))
        if sweep.option == "routing" and {"hard", "soft"} <= by_value.keys():
            pairs.append((by_value["hard"].name, by_value["soft"].name))
    title = "Hard against soft routing"
    if not pairs:
        missing = f"one method with either routing: `{command}`."
        return [Entry("eval-routing", title, "Fig. 8", missing=missing)]
    differences = evaluated.differences(found, pairs)
    same = all(abs(d.paired.mean) < evaluated.NOTHING for d in differences)
    also = " With a single cluster both are the same." if same else ""
    titles = "Hard - soft routing", "hard routing better by →"
    return [_difference_entry("eval-routing", title, "Fig. 8", differences, titles, also)]


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
