"""What `prefheads analyze` finds in a run, of `fit` (or `discover`, `demo`) and of `eval`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from prefheads.data.example import Example, load_examples
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.records import SAMPLES, read_samples
from prefheads.heads.scores import HeadScores
from prefheads.models.bundled import NAME
from prefheads.report import run as runs
from prefheads.report.hints import Hints
from prefheads.report.measure import readings
from prefheads.report.measure.kept import Measurements
from prefheads.report.measure.tokens import Readings
from prefheads.report.page import heads, paper, steering
from prefheads.report.page.discovery import Discovery, set_size
from prefheads.report.page.entry import Entry
from prefheads.report.run import Contents
from prefheads.report.statistics.evaluated import Evaluation
from prefheads.report.wording import named
from prefheads.steerer.core import PreferenceSteerer
from prefheads.storage import read_json
from prefheads.tasks.statistics import task_statistics

RESULTS, COSTS = "What steering is worth", "Cost, judgements and data"
Samples = Callable[[], Sequence[Example]]


def collect(
    run: Path, about: dict[str, Any], measurements: Measurements, data: Path | None, seed: int
) -> tuple[list[Entry], dict[str, Readings]]:
    """All analyses of a run, in the order of the page, and its texts by their task.

    Args:
        about: Its ``run.json``.
        data: Where the data is; where the run found it if None.

    Raises:
        ArtifactError: Nothing has been finished there, or something is damaged.
    """
    work = _Collector(run, about, measurements, data, seed)
    entries = work.evaluation() if about.get("command") == "eval" else work.fit()
    return sorted(entries, key=lambda e: not e.shows), work.texts  # what there is comes first


class _Collector:
    """One run, and what it is analysed with."""

    def __init__(
        self,
        run: Path,
        about: dict[str, Any],
        measurements: Measurements,
        data: Path | None,
        seed: int,
    ) -> None:
        self.run, self.about, self.measurements, self.seed = run, about, measurements, seed
        self.options: dict[str, Any] = about["options"]
        self.data = data
        self.hints = Hints(run, about, data)
        self.texts: dict[str, Readings] = {}

    def fit(self) -> list[Entry]:
        """Of a run that found heads."""
        contents = runs.read(self.run)
        where = self._data_path()

        @cache
        def examples() -> list[Example]:
            chosen = {k: self.options[k] for k in ("items", "retrieval", "limit", "seed")
                      if self.options.get(k) is not None}  # fmt: skip
            return load_examples(where, **chosen)

        source = [str(where), [self.options.get(k) for k in ("items", "retrieval", "limit")]]
        results = [
            *steering.validation_entries(contents.validation, "", self.hints.validate()),
            *steering.calibration_entries(contents.calibration, "", self.hints.fit()),
            *steering.evaluation_entries(None, self.hints.evaluate()),
        ]
        return [
            *_in(RESULTS, results),
            *_in("Heads", self._heads("", contents, None, source, examples)),
            *self._tables(contents),
            *self._read("", source, partial(self._read_fit, examples)),
        ]

    def evaluation(self) -> list[Entry]:
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
        results = steering.evaluation_entries(found, self.hints.evaluate())
        if found is not None:
            results = [*paper.results(found), *results]
        entries = _in(RESULTS, results)
        contents: Contents | None = None
        for name, task, folder in fits:
            contents = runs.read(folder)
            own = self._heads(name, contents, copying, task, self._samples(task))
            entries += _in(f"Heads of {name}", own)
            tried = steering.calibration_entries(contents.calibration, name, self.hints.fit())
            entries += _in(f"Calibration of {name}", tried)
        entries += [*_in("Heads of other runs", missing), *self._tables(contents)]
        for task in sorted(p.parent.name for p in self.run.glob("*/records.jsonl")):
            own_fits = [f for _, t, f in fits if t == task]
            entries += self._read(task, task, partial(self._read_task, task, own_fits))
        return entries

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
            title, figures = f"Heads of {fitted}", "Fig. 3, Fig. 4, Fig. 5, Fig. 7"
            missing.append(Entry(named("heads", fitted.name), title, figures, missing=why))
        return sorted(found), missing

    def _heads(
        self,
        name: str,
        contents: Contents,
        copying: HeadScores | None,
        source: Any,
        examples: Samples,
    ) -> list[Entry]:
        """Analyses of one discovery."""
        roles, unmeasured = None, self.hints.measure()
        try:
            if contents.scores:
                roles = self.measurements.roles(name, contents.scores, source, examples)
        except DataError as error:
            unmeasured = f"{error}."
        fit = self.hints.fit()
        discovery = Discovery(
            name, contents.scores, contents.clusters, fit, roles, unmeasured, copying
        )
        return heads.entries(discovery, self.seed)

    def _samples(self, task: str) -> Samples:
        """The samples of an evaluated task."""

        def samples() -> Sequence[Example]:
            if not (self.run / task / SAMPLES).is_file():
                raise DataError(f"the samples of {task}: run the same `prefheads eval` to its end")
            return read_samples(self.run / task)

        return cache(samples)

    def _read(self, name: str, source: Any, make: Callable[[], Readings]) -> list[Entry]:
        """Read texts, or say in an entry what is missing."""
        missing = self.hints.measure()
        try:
            if found := self.measurements.texts(name, source, make):
                self.texts[name] = found
                return []
        except DataError as error:
            missing = f"{error}."
        title = "Texts side by side" + (f" ({name})" if name else "")
        return [Entry(named("texts", name), title, missing=missing)]

    def _read_fit(self, examples: Samples) -> Readings:
        if not (self.run / "steerer.json").is_file():
            raise DataError(f"a way to steer: `{self.hints.fit()}`")
        steerer = PreferenceSteerer.load(self.run, *self.measurements.model)
        cache = self.measurements.folder / "texts.jsonl"
        return readings.of_steerer(steerer, examples(), cache, self.measurements.n_texts)

    def _read_task(self, task: str, fits: list[Path]) -> Readings:
        if not fits:
            raise DataError("no heads were found for it, or they are no longer where they were")
        self._samples(task)()
        return readings.of_evaluation(
            self.measurements.model,
            self.run / task,
            Evaluation(self.run, (), ()).records(task),
            [PreferenceSteerer.load(folder, *self.measurements.model) for folder in fits],
            self.options.get("max_new_tokens"),
            self.measurements.n_texts,
            int(self.options.get("seed") or 0),
        )

    def _tables(self, contents: Contents | None) -> list[Entry]:
        """Tables 3 to 5."""
        config, layer = self.measurements.config, _first_layer(contents)
        rows = self.measurements.of_model(
            "flops", [layer], lambda: [] if config is None else paper.cost_rows(config, layer)
        )
        if self.data is None:
            counted = self.measurements.kept("data")
        else:
            where = self.data if self.data == Path(NAME) else self.data.resolve()
            counted = self.measurements.kept(
                "data", str(where), lambda: paper.statistics_rows(task_statistics([where]))
            )
        tables = [
            paper.cost(rows, self.hints.with_model()),
            *paper.judged(self.run),
            paper.data(counted, self.hints.with_data()),
        ]
        return _in(COSTS, tables)

    def _data_path(self) -> Path:
        if self.data is None and self.about.get("command") == "demo":
            return Path(NAME)
        return self.data or Path(str(self.options.get("data") or "DATA"))


def _in(section: str, entries: Sequence[Entry]) -> list[Entry]:
    return [replace(entry, section=section) for entry in entries]


def _first_layer(contents: Contents | None) -> int:
    """The first layer that holds one of the top heads."""
    if contents is None or not contents.scores:
        return 0
    scores = contents.scores.get("head") or next(iter(contents.scores.values()))
    return min(layer for layer, _ in scores.top(k=set_size(scores), signed=True).heads)
