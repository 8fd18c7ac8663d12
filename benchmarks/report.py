"""Tables and plots of docs/performance.md, from a file of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results import Cell, Results
from benchmarks.tables import place, show, tables

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def report(results: Results, page: Path) -> None:
    """Write all tables and plots between the marks of a page."""
    lines = results.lines()
    found = tables(lines)
    show(found)
    if not found:
        raise SystemExit(f"{results.path}: no results yet")
    figures = page.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    parts = [table.markdown() for table in found]
    for name, title, draw in (
        ("discovery", "Discovery", _draw_discovery),
        ("decoding", "Decoding", _draw_decoding),
    ):
        for i, where in enumerate(dict.fromkeys(map(place, lines))):
            here = [
                line
                for line in lines
                if place(line) == where
                and line["cell"]["bench"] == name
                and line["cell"]["what"] == "time"
            ]
            if here:
                file = figures / f"{name}-{i}.png"
                _figure(file, draw, here, where)
                parts.append(f"![{title}: {where}](figures/{file.name})")
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{page}: no lines {BEGIN} and {END} to write between")
    body = "\n\n".join(parts)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


def _figure(path: Path, draw: Any, lines: list[Cell], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    draw(axes, lines)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_discovery(axes: Any, lines: list[Cell]) -> None:
    """Time for a head by prompt length, and by response length at one prompt length."""
    first = {name: lines[0]["cell"][name] for name in ("examples", "scope", "target")}
    lines = [x for x in lines if first.items() <= x["cell"].items()]
    for axis, along, fixed in (
        (axes[0], "prompt", "response"),
        (axes[1], "response", "prompt"),
    ):
        at = _commonest([x["cell"][fixed] for x in lines])
        here = sorted((x for x in lines if x["cell"][fixed] == at), key=lambda x: x["cell"][along])
        for way in ("authors", "naive", "exact", "screened"):
            _line(axis, [(x["cell"][along], x["result"]["seconds"].get(way)) for x in here], way)
        axis.set(yscale="log", xlabel=f"{along} tokens ({fixed} {at})")
        _by_doubling(axis, [x["cell"][along] for x in here])
    axes[0].set_ylabel("seconds for one head")
    axes[0].legend()


def _draw_decoding(axes: Any, lines: list[Cell]) -> None:
    """Time of a step by prompt length at the smallest batch, and tokens a second by batch."""
    smallest = min(x["cell"]["batch"] for x in lines)
    at = _commonest([x["cell"]["prompt"] for x in lines])
    for way in lines[0]["result"]["each"]:
        by_prompt = sorted(
            (x["cell"]["prompt"], x["result"]["each"][way])
            for x in lines
            if x["cell"]["batch"] == smallest
        )
        _line(axes[0], by_prompt, way)
        by_batch = sorted(
            (x["cell"]["batch"], [x["cell"]["batch"] / t for t in x["result"]["each"][way]])
            for x in lines
            if x["cell"]["prompt"] == at
        )
        _line(axes[1], by_batch, way)
    axes[0].set(xlabel=f"prompt tokens (batch {smallest})", ylabel="seconds a step")
    axes[0].set_ylim(bottom=0)
    axes[1].set(xlabel=f"batch (prompt {at})", ylabel="tokens a second")
    _by_doubling(axes[0], [x["cell"]["prompt"] for x in lines if x["cell"]["batch"] == smallest])
    _by_doubling(axes[1], [x["cell"]["batch"] for x in lines if x["cell"]["prompt"] == at])
    axes[1].legend()


def _line(axis: Any, points: Sequence[tuple[int, list[float] | None]], label: str) -> None:
    """Medians, with the range of the rounds."""
    known = [(x, values) for x, values in points if values]
    if not known:
        return
    middle = [median(values) for _, values in known]
    low = [m - min(values) for m, (_, values) in zip(middle, known, strict=True)]
    high = [max(values) - m for m, (_, values) in zip(middle, known, strict=True)]
    axis.errorbar([x for x, _ in known], middle, (low, high), label=label, marker="o", capsize=3)


def _by_doubling(axis: Any, values: list[int]) -> None:
    """A logarithmic axis with a mark at each value."""
    axis.set_xscale("log", base=2)
    known = sorted(set(values))
    axis.set_xticks(known, [str(value) for value in known])


def _commonest(values: list[int]) -> int:
    """The value that most lines have; of several, the middle one."""
    most = max(values.count(value) for value in values)
    common = sorted({value for value in values if values.count(value) == most})
    return common[(len(common) - 1) // 2]
