"""Draw the package as a house: rooms are its parts, and each stands above what it imports.

    python -m tools.architecture docs/figures/architecture.svg

A room is a package or a module of the root, without the two doors: ``__init__``, which names what
is public, and ``__main__``. Its area grows with its lines. It stands one floor above the highest
room that it imports. Arrows point to what is imported; what a longer way implies is left out.
"""

from __future__ import annotations

import sys
from graphlib import TopologicalSorter
from itertools import chain, pairwise
from pathlib import Path

import grimp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path as Curve
from scipy.optimize import isotonic_regression

PACKAGE = "prefheads"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE
CORE, SINGLE, AROUND = "#cfe3f5", "#e8e8e4", "#fbe3c6"
LEGEND = {"the core": CORE, "single modules": SINGLE, "around the core": AROUND}
INK, LINE = "#22303c", "#7d8b98"
GAP, STOREY = 0.3, 0.5  # inches between rooms, and between floors

Imports = dict[str, set[str]]
Rows = list[list[str]]


def read() -> Imports:
    """All rooms, and what each imports directly, as the code is now."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms = graph.find_children(PACKAGE) - {f"{PACKAGE}.__main__"}
    for room in rooms:
        graph.squash_module(room)
    below = {room: graph.find_modules_directly_imported_by(room) & rooms for room in sorted(rooms)}
    name = {room: room.removeprefix(f"{PACKAGE}.") for room in rooms}
    return {name[a]: {name[b] for b in below[a] - {a}} for a in below}


def floors(imports: Imports) -> dict[str, int]:
    """The floor of each room, from 1, lowest rooms first.

    Raises:
        graphlib.CycleError: Rooms import each other in a circle.
    """
    found: dict[str, int] = {}
    for room in TopologicalSorter(imports).static_order():
        found[room] = 1 + max((found[below] for below in imports[room]), default=0)
    return found


def reached(imports: Imports) -> Imports:
    """All that each room imports, also by way of others."""
    found: Imports = {}
    for room in floors(imports):
        found[room] = imports[room].union(*(found[below] for below in imports[room]))
    return found


def arrows(imports: Imports) -> list[tuple[str, str]]:
    """The imports that no longer way implies."""
    far = reached(imports)
    pairs = ((a, b) for a in imports for b in sorted(imports[a]))
    return [(a, b) for a, b in pairs if not any(b in far[other] for other in imports[a])]


def lines(room: str) -> int:
    """Lines of a room's code."""
    files = [*(SOURCE / room).rglob("*.py")] or [SOURCE / f"{room}.py"]
    return sum(len(file.read_text().splitlines()) for file in files)


def columns(
    rows: list[list[str]], ways: list[list[str]], width: dict[str, float]
) -> dict[str, float]:
    """Order each floor, and return where its nodes stand: near neighbours, beside each other."""
    near: dict[str, dict[str, float]] = {node: {} for node in width}
    for a, b in chain.from_iterable(map(pairwise, ways)):
        near[a][b] = near[b][a] = 6.0 if width[a] + width[b] == 0 else 1.0  # long ways are straight
    x = {node: float(i) for row in rows for i, node in enumerate(row)}
    for sweep in range(300):
        for row in rows if sweep % 2 else rows[::-1]:
            # Weakly drawn to the middle, too, so that the house does not lean.
            pulls = {n: ([*(x[m] for m in near[n]), 0.0], [*near[n].values(), 0.4]) for n in row}
            want = {n: np.average(at, weights=weights) for n, (at, weights) in pulls.items()}
            row.sort(key=want.__getitem__)
            apart = [(width[a] + width[b]) / 2 + GAP for a, b in pairwise(row)]
            offset = np.cumsum([0.0, *apart])
            fitted = isotonic_regression([want[n] for n in row] - offset).x
            x.update(zip(row, fitted + offset, strict=True))
    return x


def draw(imports: Imports, path: Path) -> None:
    """Draw the house into a file."""
    floor, core = floors(imports), reached(imports)["steerer"] | {"steerer"}
    rows: Rows = [[] for _ in range(max(floor.values()))]
    for room in imports:
        rows[floor[room] - 1].append(room)
    ways = []  # arrows as the nodes that they pass, one a floor
    for a, b in arrows(imports):
        passed = {f"{a} {b} {level}": level for level in range(floor[a] - 1, floor[b], -1)}
        for node, level in passed.items():
            rows[level - 1].append(node)
        ways.append([a, *passed, b])
    side = {room: np.sqrt(lines(room) / 1200) for room in imports}
    width = dict.fromkeys(chain(*rows), 0.0)
    width |= {n: max(1.7 * side[n], 0.35 + 0.105 * max(len(n), 9)) for n in imports}
    height = {n: max(0.8 * side[n], 0.5) for n in imports}
    x = columns(rows, ways, width)
    tall = [max(height.get(n, 0.5) for n in row) for row in rows]
    level = np.cumsum([h + STOREY for h in tall]) - np.array(tall) / 2
    where = {n: (level[i], tall[i] / 2) for i, row in enumerate(rows) for n in row}

    left = min(x[n] - width[n] / 2 for n in x) - 0.8
    right = max(x[n] + width[n] / 2 for n in x) + 0.3
    top = level[-1] + (tall[-1] + STOREY) / 2
    figure = plt.figure(figsize=(right - left, top - STOREY / 2))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(STOREY / 2, top))
    axes.axis("off")
    for i, (middle, h) in enumerate(zip(level, tall, strict=True)):
        reach = (h + STOREY) / 2
        axes.axhspan(middle - reach, middle + reach, color=("#f6f8fa", "white")[i % 2], zorder=0)
        axes.text(left + 0.35, middle, str(i + 1), color=LINE, size=12, ha="center", va="center")
    for way in ways:
        points = [(x[n], y + up * half) for n in way for y, half in [where[n]] for up in (1, -1)]
        for end, then, up in ((0, 1, -1), (-1, -2, 1)):  # arrows of one room stand side by side
            beside = sorted((w for w in ways if w[end] == way[end]), key=lambda w: x[w[then]])
            share = (beside.index(way) + 1) / (len(beside) + 1) - 0.5
            at = x[way[end]] + 0.8 * share * width[way[end]]
            y, half = where[way[end]]
            points[end] = (at, y + up * height[way[end]] / 2)
            points[then] = (at, y + up * half)
        points = list(dict.fromkeys(points))  # the tallest room of a floor reaches its edge
        ends = ((*a, *b, (a[1] + b[1]) / 2) for a, b in pairwise(points))
        bends = [((x0, mid), (x1, mid), (x1, y1)) for x0, _, x1, y1, mid in ends]
        codes = [Curve.MOVETO] + [Curve.CURVE4] * 3 * len(bends)
        curve = Curve([points[0], *chain(*bends)], codes)
        style = {"arrowstyle": "-|>", "mutation_scale": 10, "linewidth": 1.1, "color": LINE}
        axes.add_patch(FancyArrowPatch(path=curve, zorder=1, **style))
    for n in imports:
        colour = (CORE if n in core else AROUND) if (SOURCE / n).is_dir() else SINGLE
        y, w, h = where[n][0], width[n], height[n]
        style = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": colour}
        axes.add_patch(FancyBboxPatch((x[n] - w / 2, y - h / 2), w, h, edgecolor=INK, **style))
        text = {"ha": "center", "va": "center", "color": INK}
        axes.text(x[n], y + 0.09, n, size=11, weight="bold", **text)
        axes.text(x[n], y - 0.13, f"{lines(n):,} lines", size=8, **text)
    patches = [Patch(facecolor=c, edgecolor=LINE, label=name) for name, c in LEGEND.items()]
    corner = {"loc": "upper left", "bbox_to_anchor": (0.8 / (right - left), 1)}
    axes.legend(handles=patches, frameon=False, fontsize=10, **corner)
    with plt.rc_context({"svg.hashsalt": PACKAGE}):  # the same house gives the same file
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    house, target = read(), Path(sys.argv[1])
    draw(house, target)
    n_floors = max(floors(house).values())
    print(f"{target}: {len(house)} rooms on {n_floors} floors, {len(arrows(house))} arrows")
