"""Results as tables: on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.results import Cell

Shape = tuple[object, ...]


@dataclass(frozen=True)
class Table:
    """A title, columns, and rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in Markdown, with its title as a line above it."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(found: Sequence[Table]) -> None:
    """Print tables; plainly where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        for table in found:
            print(f"\n{table.markdown()}")
        return
    for table in found:
        rich = RichTable(title=table.title, title_justify="left")
        for i, column in enumerate(table.columns):
            rich.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in table.rows:
            rich.add_row(*row)
        Console().print(rich)


def tables(lines: Sequence[Cell]) -> list[Table]:
    """All tables that the lines of a results file have something for, one set a machine."""
    places = list(dict.fromkeys(map(place, lines)))
    found = []
    for where in places:
        here = [line for line in lines if place(line) == where]
        for make in (_discovery, _discovery_memory, _decoding, _decoding_memory, _decoding_held):
            found += make(where, here)
    return found


def place(line: Cell) -> str:
    """What was measured where."""
    cell, result, machine = line["cell"], line["result"], line["machine"]
    device = result["device"]
    if device == "cpu":
        cpu = f"{machine['cpu']} ({machine['simd']})"
        device = f"{cell['threads']} threads of {machine['cores']} x {cpu}"
    return f"{cell['model']}, {result['dtype']}, {device}, torch {result['torch']}"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Median of the ratios of paired rounds, and their range."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    text = _digits(median(ratios))
    if len(ratios) > 1:
        text += f" ({_digits(min(ratios))} to {_digits(max(ratios))})"
    return text


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def seconds(value: float) -> str:
    """A time with three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _of(lines: Iterable[Cell], bench: str, what: str) -> list[Cell]:
    found = [x for x in lines if x["cell"]["bench"] == bench and x["cell"]["what"] == what]
    return sorted(found, key=_shape)


def _shape(line: Cell) -> tuple[object, ...]:
    named = ("scope", "target", "prompt", "response", "batch", "examples")
    return tuple(line["cell"].get(name, -1) for name in named)


def _discovery(where: str, lines: Sequence[Cell]) -> list[Table]:
    rows = []
    for line in _of(lines, "discovery", "time"):
        cell, result = line["cell"], line["result"]
        took = result["seconds"]
        shape = f"{cell['prompt']} + {cell['response']}, {cell['examples']}"
        if (kind := (cell["scope"], cell["target"])) != ("response", "head"):
            shape += f" ({', '.join(kind)})"
        for way in took:
            gap = result["difference"] if way == "exact" else None
            rows.append(
                [
                    shape,
                    way,
                    seconds(median(took[way])),
                    *(
                        ratio(took[slow], took[way]) if slow in took and slow != way else ""
                        for slow in ("naive", "authors")
                    ),
                    "" if gap is None else f"{gap:.0e}",
                    f"{result['recall']:.2f}" if way == "screened" else "",
                ]
            )
    columns = [
        "prompt + response, examples", "way", "time", "naive / this", "authors / this",
        "difference (nats)", "recall",
    ]  # fmt: skip
    title = f"Discovery, time for one head on one example: {where}"
    return [Table(title, columns, rows)] if rows else []


def _discovery_memory(where: str, lines: Sequence[Cell]) -> list[Table]:
    return _memory(
        f"Discovery, peak memory beyond the model's: {where}",
        [
            (
                f"{line['cell']['prompt']} + {line['cell']['response']}, {line['cell']['scope']}",
                line,
            )
            for line in _of(lines, "discovery", "memory")
        ],
    )


def _decoding(where: str, lines: Sequence[Cell]) -> list[Table]:
    return [
        *_steps(f"Decoding: {where}", _of(lines, "decoding", "time")),
        *_steps(
            f"Decoding, static caches and compiled steps: {where}",
            _of(lines, "decoding", "compiled"),
        ),
    ]


def _steps(title: str, lines: Sequence[Cell]) -> list[Table]:
    rows = []
    for line in lines:
        cell, result = line["cell"], line["result"]
        first, each = result["first"], result["each"]
        for way in each:
            rows.append(
                [
                    f"{cell['prompt']} x {cell['batch']}",
                    way,
                    seconds(median(first[way])),
                    seconds(median(each[way])),
                    f"{cell['batch'] / median(each[way]):.1f}",
                    "" if way == "plain" else ratio(each[way], each["plain"]),
                    "" if way == "plain" else ratio(each["plain"], each[way]),
                    str(result["fork"]) if way == "contrast" else "",
                ]
            )
    columns = [
        "prompt x batch", "way", "first token", "a step", "tokens/s", "step / plain's",
        "tokens/s / plain's", "fork",
    ]  # fmt: skip
    return [Table(title, columns, rows)] if rows else []


def _decoding_memory(where: str, lines: Sequence[Cell]) -> list[Table]:
    cells = _of(lines, "decoding", "memory")
    named = [(f"{x['cell']['prompt']} x {x['cell']['batch']}", x) for x in cells]
    return _memory(f"Decoding, peak memory beyond the model's: {where}", named)


def _decoding_held(where: str, lines: Sequence[Cell]) -> list[Table]:
    rows = []
    for line in _of(lines, "decoding", "held"):
        cell, result = line["cell"], line["result"]
        held, formula, room = (result[name] for name in ("held", "formula", "room"))
        rows.append(
            [
                f"{cell['prompt']} x {cell['batch']}",
                _megabytes(held["plain"]),
                _megabytes(held["contrast"]),
                _megabytes(held["contrast"] - held["plain"]),
                f"{_megabytes(formula)} to {_megabytes(formula + room)}",
            ]
        )
    columns = ["prompt x batch", "plain", "contrast", "beyond plain", "by the formula"]
    return [Table(f"Keys and values held: {where}", columns, rows)] if rows else []


def _memory(title: str, named: Sequence[tuple[str, Cell]]) -> list[Table]:
    """One row a shape, one column a way."""
    ways = list(dict.fromkeys(line["cell"]["way"] for _, line in named))
    held: dict[str, dict[str, str]] = {}
    for shape, line in named:
        extra = line["result"]["peak"] - line["result"]["rest"]
        held.setdefault(shape, {})[line["cell"]["way"]] = _megabytes(extra)
    rows = [[shape, *(by_way.get(way, "") for way in ways)] for shape, by_way in held.items()]
    return [Table(title, ["shape", *ways], rows)] if rows else []


def _megabytes(n: int) -> str:
    return f"{n / 2**20:.0f} MiB" if n >= 10 * 2**20 else f"{n / 2**20:.1f} MiB"
