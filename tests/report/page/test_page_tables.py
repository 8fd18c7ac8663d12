"""Tables of the page: an interval stands under its figure, names at the left, long ones are cut."""

from __future__ import annotations

from pathlib import Path

from prefheads.report.page.entry import Entry, write
from prefheads.report.page.page import MAX_ROWS, SHORT, write_page

NAN = float("nan")


def page_of(folder: Path, rows: list[dict[str, object]], about: str = "") -> str:
    entries = [Entry("x", "An entry", shows="It shows.", tables={"": rows})]
    return write_page(folder, "Title", write(folder, entries, about), {}, {}).read_text()


def test_an_interval_stands_under_its_figure(tmp_path: Path) -> None:
    text = page_of(tmp_path, [
        {"head": "2.1", "pcs": -0.51234, "low": -0.6, "high": -0.4, "told": "+0.2 [+0.1, +0.3]"},
        {"head": "4.3", "pcs": 2.0, "low": NAN, "high": NAN, "told": "n/a"},
    ], "about")  # fmt: skip
    assert '<td class="n">\u22120.512<small>[\u22120.6, \u22120.4]</small></td>' in text
    assert '<td class="n">2</td>' in text  # whose interval is not known
    assert '<td class="n">+0.2<small>[+0.1, +0.3]</small></td>' in text
    assert "<td>2.1</td>" in text and '<td class="n">n/a</td>' in text
    assert "<th>low" not in text and "nan" not in text


def test_a_long_table_is_cut_where_its_file_has_all_of_it(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"user": f"u{i}"} for i in range(SHORT + 1)]
    assert page_of(tmp_path, rows).count("<td>u") == len(rows)
    assert not (tmp_path / "tables").exists() and not (tmp_path / "index.md").exists()
    text = page_of(tmp_path, rows, "about")
    assert text.count("<td>u") == MAX_ROWS and f"{MAX_ROWS} of {len(rows)} rows" in text


def test_words_between_the_parts_are_escaped_before_they_are_set_off(tmp_path: Path) -> None:
    written = write(tmp_path, [Entry("x", "An entry", shows="**It** shows `a`.", section="S")])
    path = write_page(
        tmp_path, "T", written, {}, {}, lead="One.\n\n**Two** <b>.", leads={"S": "Of S."}
    )
    text = path.read_text()
    assert "<p>One.</p>\n<p><strong>Two</strong> &lt;b&gt;.</p>" in text
    assert "<p>**It** shows <code>a</code>.</p>" in text  # tokens of a text may be asterisks
    assert "<h2>S</h2>" in text and "<p>Of S.</p>" in text
