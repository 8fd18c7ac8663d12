"""Results as tables, for every command that prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from rich.table import Table

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.paper import is_paper, whose
from prefheads.calibration.validate import Row
from prefheads.cli.output import table
from prefheads.heads.scores import HeadScores
from prefheads.report.statistics.findings import VERDICTS, Claim, Verdict, validation_cells
from prefheads.report.wording import known
from prefheads.stats import INTERVALS
from prefheads.users import Clusters


def head_rows(scores: HeadScores, n: int, zero: HeadScores | None = None) -> list[dict[str, Any]]:
    """The ``n`` heads of highest PCS with standard errors and 95 % intervals, and PCS by zero
    ablation where that was measured beside."""
    beside = None if zero is None else zero.values.mean(0)
    low, high = scores.interval()
    return [
        {
            "layer": layer,
            "head": head,
            "pcs": mean,
            "stderr": stderr,
            "low": low[layer, head].item(),
            "high": high[layer, head].item(),
        }
        | ({} if beside is None else {"zero": beside[layer, head].item()})
        for layer, head, mean, stderr in scores.ranked()[:n]
    ]


def head_table(scores: HeadScores, n: int, zero: HeadScores | None = None) -> Table:
    """The strongest heads; PCS in thousandths of a nat a token, where most of them lie."""
    users = len(set(scores.user_ids))
    title = (
        f"Heads of highest PCS, target {scores.info.target}: {scores.n_examples} examples, "
        f"{users} users, NLL {scores.nll.mean():.3f} nats a token"
    )
    if zero is not None:
        title = title.replace("PCS", "PCS by mean ablation")
    columns = [] if zero is None else ["by zero ablation"]
    shown = table(title, "layer.head", "PCS / 1000", "std. error", "95 % interval", *columns)
    for row in head_rows(scores, n, zero):
        pcs, error, low, high = (1000 * row[k] for k in ("pcs", "stderr", "low", "high"))
        shown.add_row(
            f"{row['layer']}.{row['head']}",
            f"{pcs:+z.2f}",
            known(f"{error:.2f}"),
            known(f"[{low:+z.2f}, {high:+z.2f}]"),
            *([f"{1000 * row['zero']:+z.2f}"] if zero is not None else []),
        )
    return shown


def cluster_table(clusters: Clusters, active: Sequence[int]) -> Table:
    """Sizes of the clusters, and how many heads each steers."""
    shown = table("Clusters of users", "cluster", "users", "heads", "for example")
    for i, (size, heads) in enumerate(zip(clusters.sizes, active, strict=True)):
        some = ", ".join(sorted(clusters.members(i))[:3])
        shown.add_row(str(i), str(size), str(heads), some)
    return shown


def calibration_table(calibration: Calibration, n: int = 8) -> Table:
    """Plain decoding, then by NLL: the chosen setting, the best others, and of the paper's form the
    best and those with the numbers of its authors' code and of ours."""
    title = (
        f"Calibration: {calibration.n_examples} samples of {calibration.n_users} users, "
        f"plain NLL {calibration.plain_nll:.3f} nats a token"
    )
    specific = calibration.specificity
    columns = ["setting", "change of NLL", "std. error", "divergence"]
    shown = table(title, *columns, *(["specificity"] if specific else []), "")
    best = sorted(range(len(calibration.settings)), key=calibration.change.__getitem__)
    papers = [i for i in best if is_paper(calibration.settings[i])]
    marks = {i: whose(calibration.settings[i]) for i in papers}
    marks |= {papers[0]: f"the paper's form, best of {len(papers)}"} if papers else {}
    wanted = {calibration.chosen, *best[:n], *(i for i, mark in marks.items() if mark)}
    for i in dict.fromkeys([0, *(i for i in best if i in wanted)]):
        chosen = ["chosen"] if i == calibration.chosen else []
        shown.add_row(
            str(calibration.settings[i]),
            f"{calibration.change[i]:+z.4f}",
            known(f"{calibration.stderr[i]:.4f}"),
            f"{calibration.divergence[i]:.4f}",
            *([known(f"{specific[i]:+z.4f}")] if specific else []),
            ", ".join([*chosen, marks.get(i, "")]).strip(", "),
        )
    return shown


def validation_table(rows: Sequence[Row], n_examples: int) -> Table:
    """Every method with its controls."""
    cells = validation_cells(rows)
    title = f"Validation on {n_examples} samples; changes against plain, {INTERVALS}"
    shown = table(title, *cells[0])
    for row in cells:
        shown.add_row(*row.values())
    return shown


def verdict(found: Sequence[Claim]) -> str:
    """What holds and what does not, in one sentence."""
    if not found:
        return "Calibration chose plain decoding: no steering helped there, so none is tested."
    claims = {v: [f.claim for f in found if f.verdict == v] for v in get_args(Verdict)}
    said = " ".join(f"{v.capitalize()}: {'; '.join(c)}." for v, c in claims.items() if c)
    return f"{said} {VERDICTS}"
