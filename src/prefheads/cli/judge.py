"""`prefheads judge`: people, or a language model, compare what two methods wrote."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.table import Table
from typer import Option, Typer

from prefheads.cli import options
from prefheads.cli.listening import listen
from prefheads.cli.output import emit, percent, table
from prefheads.errors import DataError
from prefheads.optional import needs
from prefheads.progress import track
from prefheads.report.wording import interval, known
from prefheads.stats import INTERVALS, Estimate
from prefheads.storage import write_atomic

if TYPE_CHECKING:  # these need the extra `judge`, or torch
    from prefheads.judge.endpoint import Usage
    from prefheads.judge.llm import Ratings
    from prefheads.judge.pairs import Study
    from prefheads.judge.results import HumanResults, Rating

MILLION = 1e6

app = Typer(
    name="judge", no_args_is_help=True, help="Have people or a language model compare two methods."
)

Run = Annotated[Path, Option(help="Folder that `eval` wrote.")]
Methods = Annotated[str, Option(help="The two methods to compare, as cad,dps; blinded.")]
Task = Annotated[str | None, Option(help="Task of the run; may be absent if it has only one.")]
N = Annotated[int, Option(min=1, help="Samples to compare, at most.")]
Csv = Annotated[Path | None, Option(help="Also write all judgements to this file.")]


@app.command()
def serve(
    run: Run,
    methods: Methods,
    db: Annotated[Path, Option(help="SQLite file of the votes; goes on with it.")],
    task: Task = None,
    n: N = 100,
    seed: options.Seed = 0,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
) -> None:
    """Serve a page for blinded pairwise annotation until interrupted."""
    with needs("judge"):
        from prefheads.judge import serve as web
        from prefheads.judge.store import Votes
    study = _study(run, methods, task, n, seed)
    if not study.differing:
        raise DataError(f"{methods}: all {len(study.pairs)} pairs have the same text twice")
    same = len(study.pairs) - len(study.differing)
    alike = f", {same} more have the same text twice and count as ties" if same else ""
    votes = Votes(db, study)
    with listen(host, port) as listening:
        address = f"[{host}]" if ":" in host else host
        print(f"{study.task}: {len(study.differing)} pairs to judge{alike}; votes go to {db}")
        print(f"http://{address}:{listening.getsockname()[1]}/", flush=True)
        web.serve(study, votes, listening)


@app.command()
def results(
    db: Annotated[Path, Option(help="SQLite file that `serve` wrote.")],
    csv: Csv = None,
    seed: options.Seed = 0,  # every command takes it; nothing is drawn at random here
    as_json: options.Json = False,
) -> None:
    """Win rates by majority vote, with intervals, and how far annotators agree."""
    with needs("judge"):
        from prefheads.judge.results import human_results, votes_csv
        from prefheads.judge.store import Votes
    votes = Votes(db)
    found = human_results(votes)
    if csv is not None:
        write_atomic(csv, votes_csv(votes).encode())
    emit(as_json, asdict(found), _human(found))


@app.command()
def llm(
    run: Run,
    methods: Methods,
    base_url: Annotated[str, Option(help="OpenAI-compatible endpoint, up to its /v1.")],
    model: Annotated[str, Option(help="Name of the judge at the endpoint.")],
    task: Task = None,
    n: N = 100,
    key_env: Annotated[
        str, Option(help="Environment variable that holds the key, if any.")
    ] = "OPENAI_API_KEY",
    cache: Annotated[
        Path | None, Option(help="File of answers; judge-answers.jsonl in RUN.")
    ] = None,
    form: Annotated[
        Literal["json_schema", "json_object", "text"],
        Option("--format", help="How to ask for JSON; not every endpoint takes a schema."),
    ] = "json_schema",
    temperature: Annotated[
        float | None, Option(min=0, help="The endpoint's own if absent.")
    ] = None,
    price: Annotated[
        str | None, Option(help="Price of a million prompt and completion tokens, as 1.25,10.")
    ] = None,
    timeout: Annotated[float, Option(min=0.1, help="Seconds to wait for an answer.")] = 120,
    workers: Annotated[int, Option(min=1, help="Requests at once.")] = 4,
    csv: Csv = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Have a language model rate the same blinded pairs, in both orders."""
    with needs("judge"):
        from prefheads.judge.endpoint import Endpoint
        from prefheads.judge.llm import ORDERS, rate
        from prefheads.judge.results import rating_rows, ratings_csv
        from prefheads.judge.store import Answers
    prices = _prices(price)
    endpoint = Endpoint(base_url, os.environ.get(key_env, "").strip(), timeout=timeout)
    study = _study(run, methods, task, n, seed)
    answers = Answers(cache or run / "judge-answers.jsonl")
    total = len(ORDERS) * len(study.differing)
    with track(total=total, desc="judging", unit="rating", disable=quiet) as bar:
        ratings = rate(
            study,
            endpoint,
            answers,
            model,
            form=form,
            temperature=temperature,
            workers=workers,
            advance=lambda done: bar.update(done - bar.n),
        )
    rows = rating_rows(ratings)
    if csv is not None:
        write_atomic(csv, ratings_csv(ratings).encode())
    data = {
        "task": study.task,
        "methods": study.methods,
        "judge": model,
        "pairs": len(study.pairs),
        "same": len(study.pairs) - len(study.differing),
        "rated": len(ratings.pairs),
        "problems": ratings.problems,
        "table": [asdict(row) for row in rows],
        "tokens": _tokens(ratings, prices),
        "this_run": {"requests": endpoint.usage.requests, **_tokens(endpoint.usage, prices)},
    }
    emit(as_json, data, _rated(data, ratings, rows))


def _study(run: Path, methods: str, task: str | None, n: int, seed: int) -> Study:
    from prefheads.judge.pairs import load_study

    return load_study(run, [m.strip() for m in methods.split(",") if m.strip()], task, n, seed)


def _human(found: HumanResults) -> list[Table | str]:
    judged = found.pairs - found.open
    shown = table(f"{found.task}: wins by majority vote, {judged} pairs", "", "% of pairs")
    for name, share in found.wins.items():
        shown.add_row(name, percent(share))
    a, b = found.methods
    shown.add_row(f"{b} less {a}", percent(found.difference, "+"))
    alpha = known(f"{found.alpha:.2f}")
    told = ", ".join(f"{name} {count}" for name, count in found.votes.items())
    return [
        shown,
        f"Krippendorff's alpha {alpha} (1: the annotators agree; 0: as by chance). "
        f"Of votes but ties, {percent(found.first_wins)} % went to the text shown first.",
        f"Votes: {told}. {found.same} pairs have the same text twice and count as ties; "
        f"{found.open} have no vote yet and are left out. Brackets: {INTERVALS}.",
    ]


def _rated(data: dict[str, Any], ratings: Ratings, rows: list[Rating]) -> list[Table | str]:
    a, b = ratings.study.methods
    title = f"{data['task']}: ratings by {data['judge']}, {data['rated']} pairs in both orders"
    shown = table(title, "", a, b, f"{b} less {a}", "for standing first")
    for row in rows:
        bias = "" if row.bias is None else _score(row.bias, "+")
        show = _score if row.bias is not None else percent
        name = row.name.replace("_", " ") + (" (%)" if row.bias is None else "")
        shown.add_row(name, *map(show, row.means), show(row.difference, "+"), bias)
    notes = [
        f"Scores from 1 to 5, means of both orders; {data['same']} pairs with the same text twice "
        f"were not asked for and count as ties. Brackets: {INTERVALS}.",
        f"Tokens of these answers: {_spent(data['tokens'])}. This run: "
        f"{data['this_run']['requests']} requests, {_spent(data['this_run'])}.",
    ]
    if ratings.problems:
        count, why = len(ratings.problems), next(iter(ratings.problems.values()))
        notes.append(f"{count} pairs are left out, as no answer could be used: {why}")
    return [shown, *notes]


def _score(e: Estimate, sign: str = "") -> str:
    return interval(e, f"{sign}z.2f")


def _prices(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        sent, written = (float(part) for part in text.split(","))
    except ValueError:
        raise DataError("--price: give two numbers, as 1.25,10") from None
    return sent, written


def _tokens(of: Ratings | Usage, prices: tuple[float, float] | None) -> dict[str, Any]:
    sent, written = of.prompt_tokens, of.completion_tokens
    cost = None if prices is None else (sent * prices[0] + written * prices[1]) / MILLION
    return {"prompt": sent, "completion": written, "cost": cost}


def _spent(tokens: dict[str, Any]) -> str:
    cost = "" if tokens["cost"] is None else f", cost {tokens['cost']:.4f}"
    return f"{tokens['prompt']:,} prompt and {tokens['completion']:,} completion tokens{cost}"
