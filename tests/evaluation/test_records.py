"""Records of texts, kept in a file that a killed run leaves usable."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.compared import record

from prefheads.errors import ArtifactError
from prefheads.evaluation.records import Records


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    first = Records(path)
    first.add([record("1"), record("2")])
    first.add([record("2", prediction="later"), record("3")])
    again = Records(path)
    assert [r.id for r in again.of("plain", ["3", "1", "2"])] == ["3", "1", "2"]
    assert again.done == first.done and again.done["plain", "2"].prediction == "é\u2028x"
    assert len(path.read_text().split("\n")) == 4


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    Records(path).add([record("1"), record("2")])
    path.write_bytes(path.read_bytes()[:-5])
    records = Records(path)
    assert [key for _, key in records.done] == ["1"]
    records.add([record("2")])
    assert len(Records(path).done) == 2


@pytest.mark.parametrize("text", ["hello\n", "{}\n", '{"id": "1"}\n', "[]\n", "\xff\n"])
def test_foreign_records_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"records.jsonl:1"):
        Records(path)


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.add([record("1")])
    assert records.finished("plain", ["1"], ["h"], ["s"])
    assert not records.finished("plain", ["1", "2"], ["h", "h"], ["s", "s"])
    with pytest.raises(ArtifactError, match="another prompt"):
        records.finished("plain", ["1"], ["other"], ["s"])
    with pytest.raises(ArtifactError, match="other heads"):
        records.finished("plain", ["1"], ["h"], ["other"])
