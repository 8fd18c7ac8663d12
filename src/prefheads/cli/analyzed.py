"""What `prefheads analyze` finds in a run, of `fit` (or `discover`, `demo`) and of `eval`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from prefheads.cli.commands import Commands
from prefheads.cli.inspect import Contents, read
from prefheads.data.example import Example, load_examples
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.records import SAMPLES, read_samples
from prefheads.heads.scores import HeadScores
from prefheads.models.bundled import NAME
from prefheads.report import chapters, paper_tables, quality, readings
from prefheads.report.chapter import Part, named, set_size
from prefheads.report.evaluated import Evaluation
from prefheads.report.index import Entry
from prefheads.report.measuring import Measuring
from prefheads.report.page import Texts
from prefheads.report.traces import Readings
from prefheads.steerer.core import PreferenceSteerer
from prefheads.storage import read_json
from prefheads.tasks.statistics import task_statistics

RESULTS, COSTS = "What steering is worth", "Cost, judgements and data"
Found = tuple[list[Entry], list[Texts]]


def analyzed(
    run: Path, about: dict[str, Any], measuring: Measuring, data: Path | None, seed: int
) -> Found:
    """All analyses of a run, in the order of the page, and its texts.

    Args:
        about: Its ``run.json``.
        data: Where the data is; where the run found it if None.
    """
    work = _Analysis(run, about, measuring, data, seed)
    entries, texts = work.evaluation() if about.get("command") == "eval" else work.fit()
    return sorted(entries, key=lambda e: not e.shows), texts  # what there is comes first


class _Analysis:
    """One run, and what it is analysed with."""

    def __init__(
        self, run: Path, about: dict[str, Any], measuring: Measuring, data: Path | None, seed: int
    ) -> None:
        self.run, self.about, self.measuring, self.seed = run, about, measuring, seed
        self.options: dict[str, Any] = about["options"]
        self.data = data
        self.command = Commands(run, about, data)

    def fit(self) -> Found:
        """Of a run that found heads."""
        contents = read(self.run)
        where = self._data_path()

        @cache
        def examples() -> list[Example]:
            chosen = {k: self.options[k] for k in ("items", "retrieval", "limit", "seed")
                      if self.options.get(k) is not None}  # fmt: skip
            return load_examples(where, **chosen)

        source = [str(where), [self.options.get(k) for k in ("items", "retrieval", "limit")]]
        results = [
            *quality.validation_entries(
                contents.validation, "", self.command.validate(), self.seed
            ),
            *quality.calibration_entries(contents.calibration, "", self.command.fit()),
            *quality.evaluation_entries(None, self.command.evaluate(), self.seed),
        ]
        entries = _in(RESULTS, results)
        entries += _in("Heads", self._part("", contents, None, source, examples))
        texts = self._texts("", source, partial(self._read_fit, examples))
        return [*entries, *self._tables(contents)], [texts]

    def evaluation(self) -> Found:
        """Of a run that compared methods on tasks."""
        copying = None
        if (self.run / "retrieval-heads.safetensors").is_file():
            copying = HeadScores.load(self.run / "retrieval-heads.safetensors")
        found = Evaluation.read(self.run) if (self.run / "results.json").is_file() else None
        fits, missing = self._fits()
        if not fits and found is None:
            raise ArtifactError(
                f"{self.run}: nothing has been finished there; run `prefheads eval` again"
            )
        results = quality.evaluation_entries(found, self.command.evaluate(), self.seed)
        if found is not None:
            results = [*paper_tables.results(found), *results]
        entries = _in(RESULTS, results)
        contents: Contents | None = None
        for name, task, folder in fits:
            contents = read(folder)
            source, examples = self._samples(task)
            part = self._part(name, contents, copying, source, examples)
            entries += _in(f"Heads of {name}", part)
            tried = quality.calibration_entries(contents.calibration, name, self.command.fit())
            entries += _in(f"Calibration of {name}", tried)
        entries += _in("Heads of other runs", missing)
        records = Evaluation(self.run, (), ())
        texts = [
            self._texts(
                task,
                task,
                partial(self._read_task, records, task, [f for _, t, f in fits if t == task]),
            )
            for task in sorted(p.parent.name for p in self.run.glob("*/records.jsonl"))
        ]
        return [*entries, *self._tables(contents)], texts

    def _fits(self) -> tuple[list[tuple[str, str, Path]], list[Entry]]:
        """Name, task and folder of each fit, and entries for those that are no longer there."""
        found, missing = [], []
        for folder in sorted(path.parent for path in self.run.glob("*/fit-*/steerer.json")):
            task = folder.parent.name
            several = len(list(folder.parent.glob("fit-*/steerer.json"))) > 1
            found.append((named(task, folder.name if several else ""), task, folder))
        for fitted in map(Path, self.options.get("fitted") or ()):
            if (fitted / "steerer.json").is_file():
                task = str(read_json(fitted / "steerer.json").get("task"))
                found.append((task, task, fitted))
                continue
            why = f"they were found in another run: `prefheads analyze {shlex.quote(str(fitted))}`."
            title, paper = f"Heads of {fitted}", "Fig. 3, Fig. 4, Fig. 5, Fig. 7"
            missing.append(Entry(named("heads", fitted.name), title, paper, missing=why))
        return sorted(found), missing

    def _part(
        self,
        name: str,
        contents: Contents,
        copying: HeadScores | None,
        source: Any,
        examples: Callable[[], Sequence[Example]],
    ) -> list[Entry]:
        """Analyses of one discovery."""
        roles, unmeasured = None, self.command.measure()
        try:
            if contents.scores:
                roles = self.measuring.roles(name, contents.scores, source, examples)
        except DataError as error:
            unmeasured = f"{error}."
        part = Part(
            name, contents.scores, contents.clusters, self.command.fit(), roles, unmeasured, copying
        )
        return chapters.entries(part, self.seed)

    def _samples(self, task: str) -> tuple[Any, Callable[[], Sequence[Example]]]:
        """The samples of an evaluated task."""

        def samples() -> Sequence[Example]:
            if not (self.run / task / SAMPLES).is_file():
                raise DataError(f"the samples of {task}: run the same `prefheads eval` to its end")
            return read_samples(self.run / task)

        return task, cache(samples)

    def _texts(self, name: str, source: Any, make: Callable[[], Readings]) -> Texts:
        try:
            found = self.measuring.texts(name, source, make)
        except DataError as error:
            return Texts(name, None, f"{error}.")
        return Texts(name, found, "" if found else self.command.measure())

    def _read_fit(self, examples: Callable[[], list[Example]]) -> Readings:
        if not (self.run / "steerer.json").is_file():
            raise DataError(f"a way to steer: `{self.command.fit()}`")
        steerer = PreferenceSteerer.load(self.run, *self.measuring.model)
        cache = self.measuring.folder / "texts.jsonl"
        return readings.of_steerer(steerer, examples(), cache, self.measuring.n_texts)

    def _read_task(self, records: Evaluation, task: str, fits: list[Path]) -> Readings:
        if not fits:
            raise DataError("no heads were found for it, or they are no longer where they were")
        self._samples(task)[1]()
        return readings.of_evaluation(
            self.measuring.model,
            self.run / task,
            records.records(task),
            [PreferenceSteerer.load(folder, *self.measuring.model) for folder in fits],
            self.options.get("max_new_tokens"),
            self.measuring.n_texts,
            int(self.options.get("seed") or 0),
        )

    def _tables(self, contents: Contents | None) -> list[Entry]:
        """Tables 3 to 5."""
        config, fork = self.measuring.config, _first_layer(contents)
        rows = self.measuring.of_model(
            "flops", [fork], lambda: paper_tables.cost_rows(_known(config), fork)
        )
        if self.data is None:
            counted = self.measuring.kept("data")
        else:
            where = self.data if self.data == Path(NAME) else self.data.resolve()
            counted = self.measuring.kept(
                "data", str(where), lambda: paper_tables.statistics_rows(task_statistics([where]))
            )
        tables = [
            paper_tables.cost(rows, self.command.with_model()),
            *paper_tables.judged(self.run),
            paper_tables.data(counted, self.command.with_data()),
        ]
        return _in(COSTS, tables)

    def _data_path(self) -> Path:
        if self.data is None and self.about.get("command") == "demo":
            return Path(NAME)
        return self.data or Path(str(self.options.get("data") or "DATA"))


def _in(section: str, entries: Sequence[Entry]) -> list[Entry]:
    return [replace(entry, section=section) for entry in entries]


def _known(config: Any) -> Any:
    assert config is not None  # what depends on the model is made with one only
    return config


def _first_layer(contents: Contents | None) -> int:
    """The first layer that holds one of the top heads."""
    if contents is None or not contents.scores:
        return 0
    scores = contents.scores.get("head") or next(iter(contents.scores.values()))
    return min(layer for layer, _ in scores.top(k=set_size(scores), signed=True).heads)
