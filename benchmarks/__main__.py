"""``python -m benchmarks discovery | decoding | gpu | report``: speed and memory, side by side;
``python -m benchmarks coverage``: how often the intervals that are printed hold;
``python -m benchmarks startup``: how long commands take before they do anything.

Results go to a file, line by line; what is in it is not measured again, so a run that was stopped
goes on with the same command. ``report`` renders tables and plots from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.cells import measure_cell, run_cells
from benchmarks.results import Cell, Results
from benchmarks.tables import show, tables

RESULTS = Path("benchmarks/results.jsonl")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.add_argument("--results", type=Path, default=RESULTS, help="file of JSON lines")
        return sub

    for name, help in (
        ("discovery", "PCS of all heads: the authors' way, naive, exact, screened"),
        ("decoding", "plain, off, amplify, contrast, the authors' loop, CAD"),
        ("gpu", "both on a GPU with a randomly initialised LLaMA-3-8B in bfloat16"),
    ):
        sub = command(name, help)
        gpu = name == "gpu"
        sub.add_argument("--model", default="llama-3-8b" if gpu else "bundled")
        sub.add_argument("--device", default="cuda" if gpu else "cpu")
        sub.add_argument("--threads", type=int, default=2, help="of the CPU")
        sub.add_argument("--rounds", type=int, default=5, help="in which the ways take turns")
        sub.add_argument("--prompts", type=_numbers, default=[128, 512, 2048], help="tokens")
        sub.add_argument("--quick", action="store_true", help="one round, one short shape")
        if name != "decoding":
            sub.add_argument("--responses", type=_numbers, default=[8, 12, 32], help="tokens")
            sub.add_argument("--examples", type=_numbers, default=[1, 8], help="numbers of them")
            sub.add_argument("--scopes", type=_words, default=["response"], help="response,all")
            sub.add_argument("--targets", type=_words, default=["head"], help="head,profile")
            sub.add_argument("--heads", type=int, default=4, help="that full passes are timed on")
            sub.add_argument("--tokens-per-pass", type=int, default=4096 if gpu else 1024)
        if name != "discovery":
            sub.add_argument("--batches", type=_numbers, default=[1, 8, 32])
            sub.add_argument("--new", type=int, default=32, help="tokens to generate, at least 3")
            help = "static caches and compiled steps too"
            sub.add_argument("--compiled", action="store_true", default=gpu, help=help)
            most = 10**6 if gpu else 20_000
            sub.add_argument("--most", type=int, default=most, help="prompt tokens in a batch")
    report = command("report", "tables and plots from a file of results")
    report.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    simulated = commands.add_parser("coverage", help="how often intervals hold, by simulation")
    simulated.add_argument("--draws", type=int, default=4000)
    simulated.add_argument("--seed", type=int, default=0)
    startup = commands.add_parser("startup", help="seconds until a command's help is there")
    startup.add_argument("--rounds", type=int, default=10)
    cell = commands.add_parser("cell")  # what run_cells starts
    cell.add_argument("cell", type=json.loads)
    return parser


def main() -> None:
    """Run a command line."""
    args = _parser().parse_args()
    if args.command == "cell":
        print(json.dumps(measure_cell(args.cell)))
        return
    if args.command == "coverage":
        from benchmarks.coverage import table

        table(args.draws, args.seed)
        return
    if args.command == "startup":
        from benchmarks import startup

        startup.table(args.rounds)
        return
    if args.command == "report":
        from benchmarks.report import report

        report(Results(args.results), args.page)
        return
    if args.quick:
        quick = {"rounds": 1, "prompts": [64], "responses": [4], "examples": [1]}
        vars(args).update(quick | {"batches": [1, 2], "new": 6, "heads": 2})

    from benchmarks import decoding, discovery

    cells = []
    if args.command != "decoding":
        cells += discovery.cells(args)
    if args.command != "discovery":
        cells += decoding.cells(args)
    results = Results(args.results)
    measure: Callable[[Cell], Cell] | None = None
    if args.device != "cpu":  # a GPU tells each cell's memory by itself: load the model once
        from benchmarks.subject import Subject

        subject = Subject(args.model, args.device, args.threads)
        measure = partial(measure_cell, subject=subject)
    run_cells(cells, results, measure)
    show(tables([results[cell] for cell in cells]))


if __name__ == "__main__":
    main()
