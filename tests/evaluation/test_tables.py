"""Tables: values, intervals and tests of a task's methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.compared import record

from prefheads.calibration.validate import Validation
from prefheads.evaluation.methods import Method
from prefheads.evaluation.records import Record
from prefheads.evaluation.run import Measured
from prefheads.evaluation.tables import cells
from prefheads.report.page import paper
from prefheads.report.statistics.evaluated import Evaluation
from prefheads.steering.setting import PLAIN


def test_cells_are_the_metrics_with_tests() -> None:
    golds = [f"the {word} is here" for word in "abcdefghijklmnop"]
    good = [record(str(i), "plain", prediction=g, reference=g) for i, g in enumerate(golds)]
    bad = [replace(r, method="cad", prediction="nothing of it") for r in good]
    same = [replace(r, method="dps") for r in good]
    measured = Measured("LaMP-7", {"plain": good, "cad": bad, "dps": same}, None, {}, 1)
    found = {(c.method, c.metric): c for c in cells(measured)}
    worse = found["cad", "rouge-1"]
    assert worse.p < 0.01 and worse.mark == "-"
    assert worse.value == worse.official == 0 and np.isnan([worse.low, worse.high]).all()
    assert found["dps", "rouge-1"].p == 1 and found["dps", "rouge-1"].mark == ""
    assert np.isnan(found["plain", "rouge-1"].p) and found["plain", "rouge-1"].value == 1
    assert {m for _, m in found} == {"rouge-1", "rouge-L", "meteor"}


def test_strict_and_extracted_stand_apart() -> None:
    texts = {"1": "The score is 4.", "2": "5", "3": "none"}
    records = [
        replace(record(k), task="LaMP-3", prediction=t, reference="4") for k, t in texts.items()
    ]
    measured = Measured("LaMP-3", {"plain": records}, None, {}, 1)
    found = {(c.table, c.metric): c.value for c in cells(measured, extracted=True)}
    assert found["texts", "mae"] == pytest.approx((3 + 1 + 3) / 3)
    assert found["extracted answers", "mae"] == pytest.approx((0 + 1 + 3) / 3)


def test_each_table_is_a_family_of_its_own() -> None:
    texts = {"plain": "nothing", "cad": "4", "dps": "5"}
    records = {
        m: [
            replace(record(str(i), m), task="LaMP-3", prediction=t, reference="4") for i in range(9)
        ]
        for m, t in texts.items()
    }
    measured = Measured("LaMP-3", records, None, {}, 1)
    alone = {(c.method, c.metric): c.p for c in cells(measured) if c.table == "texts"}
    both = cells(measured, extracted=True)
    assert {(c.method, c.metric): c.p for c in both if c.table == "texts"} == pytest.approx(
        alone, nan_ok=True
    )


def ratings(method: str, texts: list[str], users: list[str]) -> list[Record]:
    """Records of ratings whose gold is 4."""
    rated = {"task": "LaMP-3", "reference": "4"}
    return [
        record(str(i), method, prediction=text, user_id=user, **rated)
        for i, (text, user) in enumerate(zip(texts, users, strict=True))
    ]


def test_users_not_samples_are_drawn_and_swapped() -> None:
    """Twenty samples of each of three users are no more certain than three."""
    users = [f"u{i // 20}" for i in range(60)]
    texts = {"plain": ["1"] * 60, "dps": ["4"] * 40 + ["1"] * 20}
    records = {m: ratings(m, t, users) for m, t in texts.items()}
    nll = np.zeros((60, 3, 2))
    nll[:40, 0, 1] = -1
    found = Validation(PLAIN, tuple(texts), nll, tuple(r.id for r in records["dps"]), tuple(users))
    made = cells(Measured("LaMP-3", records, found, {}, 1), extracted=True)
    tested = {(c.table, c.metric): c for c in made if not np.isnan(c.p)}
    assert len(tested) == 6
    assert all(c.p >= 2 * 2 / 8 for c in tested.values())  # all swaps of 3 users; Holm over two
    mae, change = tested["texts", "mae"], tested["likelihood", "change of NLL"]
    reach = 4.303 / 3  # t of 2 degrees; standard deviation of -1, -1, 0 over the root of 3
    assert (mae.low, mae.value, mae.high) == pytest.approx((0, 1, 1 + 3 * reach), rel=1e-3)
    ends = (-2 / 3 - reach, -2 / 3 + reach)
    assert (change.low, change.high) == pytest.approx(ends, rel=1e-3)


@pytest.mark.parametrize("turned", [False, True])
def test_better_is_lower_for_errors_and_higher_for_specificity(turned: bool) -> None:
    users = [f"u{i}" for i in range(16)]
    texts = {"plain": ["1"] * 16, "dps": ["4"] * 16}
    nll = np.zeros((16, 3, 2))
    nll[:, :2, 1] = -2, -1  # likelier with the own profile than with another's
    if turned:
        texts, nll = {"plain": texts["dps"], "dps": texts["plain"]}, nll[:, :, ::-1]
    records = {m: ratings(m, t, users) for m, t in texts.items()}
    found = Validation(PLAIN, tuple(texts), nll, tuple(users), tuple(users))
    made = cells(Measured("LaMP-3", records, found, {}, 1))
    marks = {c.metric: c.mark for c in made if c.method == "dps"}
    mark = "-" if turned else "+"
    untested = dict.fromkeys(("NLL", "perplexity", "specificity"), "")
    assert marks == untested | dict.fromkeys(("mae", "rmse", "change of NLL", "its change"), mark)


def test_p_values_are_corrected_by_holm() -> None:
    users = [f"u{i}" for i in range(12)]
    texts = {"plain": ["1"] * 12, "dps": ["4"] * 6 + ["1"] * 6, "cad": ["4"] * 4 + ["1"] * 8}
    records = {m: ratings(m, t, users) for m, t in texts.items()}
    made = [c for c in cells(Measured("LaMP-3", records, None, {}, 1)) if not np.isnan(c.p)]
    # Where n of the users differ, all of them must be swapped alike: 2 / 2^n; four tests, two each.
    assert [c.p for c in made if c.method == "dps"] == pytest.approx([4 * 2 / 2**6] * 2)
    assert [c.p for c in made if c.method == "cad"] == pytest.approx([2 * 2 / 2**4] * 2)


def test_a_method_without_likelihood_is_shown_untested() -> None:
    nll = np.random.default_rng(0).random((9, 3, 3))
    nll[0, :, 1] = np.inf  # rules out what one user wrote
    nll[:, :, 2] = np.nan  # has none at all
    ids = tuple(str(i) for i in range(9))
    found = Validation(PLAIN, ("plain", "dps", "dola"), nll, ids, ids)
    made = {(c.method, c.metric): c for c in cells(Measured("LaMP-7", {}, found, {}, 1))}
    assert str(made["dps", "NLL"]) == str(made["dps", "change of NLL"]) == "inf"
    assert not made["dps", "change of NLL"].better and made["dps", "change of NLL"].mark == ""
    assert str(made["dps", "specificity"]) == str(made["dola", "NLL"]) == "n/a"
    assert made["plain", "NLL"].low < made["plain", "NLL"].value

    nll[:, :, 0] = np.inf
    first = cells(Measured("LaMP-7", {}, found, {}, 1))
    assert all(np.isnan(c.p) for c in first)


@pytest.mark.parametrize(
    ("task", "table"),
    [("LaMP-7", "Table 1"), ("LaMP-2", "Table 2"), ("LongLaMP-2", ""), ("LaMP-6", "")],
)
def test_a_task_is_of_its_own_table_of_the_paper(task: str, table: str, tmp_path) -> None:
    methods = tuple(map(Method.parse, ("plain", "dps")))
    texts = {m: [replace(record(str(i), m), task=task) for i in range(3)] for m in ("plain", "dps")}
    if task == "LaMP-2":
        texts = {m: [replace(r, prediction="comedy", reference="action") for r in rs]
                 for m, rs in texts.items()}  # fmt: skip
    found = tuple(cells(Measured(task, texts, None, {}, 1), extracted=True))
    named = {e.title: e.paper for e in paper.results(Evaluation(tmp_path, found, methods))}
    assert named == {
        f"{task}: all methods, texts": table,
        f"{task}: all methods, extracted answers": "",
    }
