"""`prefheads demo`: the whole of it on the bundled model and people, with a report at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer import Option

from prefheads.calibration.validate import Validation
from prefheads.cli import options, session
from prefheads.cli.output import emit
from prefheads.data.example import Example, load_examples, spread
from prefheads.models.bundled import people_path
from prefheads.models.loading import load_config
from prefheads.report.measure.comparison import Comparison, compare, kind
from prefheads.report.measure.readings import side_by_side
from prefheads.report.measure.tokens import PromptTexts, Readings
from prefheads.report.statistics.findings import VERDICTS, Claim, agreement, findings
from prefheads.stats import INTERVALS
from prefheads.steerer.core import PreferenceSteerer
from prefheads.storage import plain, writable_dir, write_json
from prefheads.users.embed import require_extra

STYLES = {
    "shown": "green",
    "not shown": "yellow",
    "contradicted": "red",
    "too few to tell": "yellow",
}


@dataclass(frozen=True)
class Size:
    """How many samples go into each part, and how many people's texts are compared."""

    discovery: int
    calibration: int
    test: int
    people: int


# Discovery is what takes time: about a quarter of a minute a sample and target on two cores.
FULL = Size(discovery=8, calibration=12, test=16, people=6)
QUICK = Size(discovery=4, calibration=6, test=8, people=2)
SHARES = (1 / 3, 1 / 3, 1 / 3)  # of 24 people: eight to test on, the fewest with a verdict


@dataclass(frozen=True)
class Result:
    """What the demo leaves; `out` is also a run's folder for the other commands."""

    steerer: PreferenceSteerer
    validation: Validation
    texts: list[Comparison]
    report: Path


def demo(
    out: options.Out = Path("demo"),
    quick: Annotated[
        bool, Option("--quick", help="About half the samples: faster, but shows less.")
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Find heads, calibrate, validate and compare texts on the bundled model and people.

    Takes several minutes on two cores. Ctrl-C loses nothing: the same command goes on from there.
    """
    import prefheads.report.page.demo  # noqa: F401  a missing extra is told before the work

    require_extra()
    config = load_config("bundled")
    chosen = {"quick": quick, "seed": seed, "dtype": dtype}
    record = session.open_run(out, "demo", "bundled", config, chosen)
    model, tokenizer = session.load("bundled", device, dtype, seed)
    session.begin(out, record)
    result = run(
        model,
        tokenizer,
        load_examples(people_path()),
        out,
        QUICK if quick else FULL,
        seed=seed,
        command=f"prefheads demo --seed {seed}{' --quick' if quick else ''}",
        progress=not quiet,
        console=Console(stderr=True, quiet=quiet),
    )
    emit(as_json, as_data(result), summary(result))


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    out: Path,
    size: Size = FULL,
    *,
    seed: int = 0,
    max_new_tokens: int = 40,
    command: str = "prefheads demo",
    progress: bool = False,
    console: Console | None = None,
) -> Result:
    """Fit, validate, compare and report; what an earlier run in the same folder did is reused.

    The kind of a person is the part of the ``user_id`` before the dash; fitting does not see it.
    """
    from prefheads.report.page.demo import write_report  # needs the extra `plots`

    say = (console or Console(quiet=True)).print
    out, began = writable_dir(out), time.monotonic()
    say("1/4  Finding heads and groups of people, and how to steer")
    steerer = PreferenceSteerer.fit(
        model,
        tokenizer,
        examples,
        fractions=SHARES,
        discovery_limit=size.discovery,
        calibration_limit=size.calibration,
        min_samples=2,
        run=out,
        seed=seed,
        progress=progress,
    )
    steerer.save(out)
    say("2/4  Validating on people that nothing has seen, with controls")
    unseen = steerer.unseen(examples)
    validation = steerer.validate(
        spread(unseen, size.test, seed), checkpoint=out / "test.jsonl", progress=progress
    )
    write_json(out / "validation.json", plain(validation.to_dict()))
    say("3/4  Writing texts, plain and steered")
    texts = compare(steerer, unseen, size.people, out / "texts.jsonl", max_new_tokens)
    say("4/4  Writing the report")
    report = write_report(
        out,
        steerer,
        validation,
        _side_by_side(steerer, texts),
        kinds=_kinds(steerer),
        notes={"command": command, "time": f"{(time.monotonic() - began) / 60:.1f} minutes"},
        title="Preference heads of a small model",
    )
    return Result(steerer, validation, texts, report)


def as_data(result: Result) -> dict[str, Any]:
    """The result for programs."""
    steerer = result.steerer
    return {
        "report": result.report,
        "setting": steerer.setting.to_dict(),
        "clusters": steerer.clusters.assignment,
        "adjusted_rand_index": agreement(steerer.clusters, _kinds(steerer)).rand,
        "validation": result.validation.to_dict(),
        "findings": [asdict(f) for f in findings(result.validation)],
        "texts": [asdict(text) for text in result.texts],
    }


def summary(result: Result) -> list[RenderableType]:
    """What was found, what it is worth and what is not shown, for a terminal."""
    steerer, validation = result.steerer, result.validation
    lines: list[RenderableType] = [Text("What was found", "bold")]
    for target, scores in steerer.scores.items():
        top = ", ".join(f"{la}.{h} {mean:+z.3f}" for la, h, mean, _ in scores.ranked()[:5])
        what = "whole heads cut" if target == "head" else "reading of the profile cut"
        lines.append(f"Top heads, {what} (layer.head, nats a token): {top}")
    match = agreement(steerer.clusters, _kinds(steerer))
    groups = "; ".join(
        ", ".join(f"{n} {name}" for name, n in counts.items()) for counts in match.counts
    )
    lines.append(f"Groups of people: {groups}. Adjusted Rand index with kinds: {match.rand:.2f}")
    tried = len(steerer.calibration.settings) - 1
    lines.append(f"Chosen of {tried} settings: {steerer.setting}")
    if steerer.setting.plain:
        lines.append(
            Text("Steering did not help held-out people; the report has the curves.", "red")
        )
    lines += ["", Text("What it is worth", "bold"), _table(validation)]
    lines.append(
        f"{len(validation.example_ids)} samples of {len(set(validation.user_ids))} test people; "
        f"changes against plain with {INTERVALS}; a change of NLL below 0 helps."
    )
    if claims := findings(validation):
        lines += [*map(_line, claims), VERDICTS]
    if result.texts:
        differing = sum(text.differs for text in result.texts)
        lines.append(f"{differing} of {len(result.texts)} texts differ from plain decoding's.")
        if result.steerer.setting.plain:
            best = result.steerer.calibration.best_tried
            lines.append(f"They are for illustration, with the best setting tried: {best}")
        for text in result.texts:
            lines += ["", Text(text.user_id, "bold"), f"  plain:   {text.plain}"]
            lines.append(f"  steered: {text.steered}")
    return [*lines, "", Text(f"Report: {result.report}", "bold")]


def _side_by_side(steerer: PreferenceSteerer, texts: Sequence[Comparison]) -> Readings | None:
    """As they were written: to read each token with and without steering takes minutes."""
    shown = [
        PromptTexts(t.user_id, t.prompt, {n: x for n, x in t.texts.items() if x is not None})
        for t in texts
    ]
    return side_by_side(steerer, shown) if shown else None


def _kinds(steerer: PreferenceSteerer) -> dict[str, str]:
    return {user: kind(user) for user in steerer.clusters.assignment}


def _line(found: Claim) -> Text:
    return Text.assemble((f"{found.verdict.upper():<16}", STYLES[found.verdict]), found.claim)


def _table(validation: Validation) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    for name in ("NLL", "change", "change of specificity"):
        table.add_column(name, justify="right")
    for row in validation.rows():
        cells = [row.method, f"{row.nll:.3f}", str(row.change), str(row.specificity_change)]
        # Text, as the brackets of an interval are markup to rich.
        table.add_row(*map(Text, cells), style="bold" if row.method == "steered" else None)
    return table
