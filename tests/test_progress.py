"""Progress where standard error is no terminal: whole lines, few of them, and none in the way."""

from __future__ import annotations

import io
import re
import time

import pytest

from prefheads import progress


@pytest.fixture(autouse=True)
def by_the_clock(monkeypatch: pytest.MonkeyPatch, no_lines_by_the_clock: None) -> None:
    monkeypatch.setattr(progress, "FIRST", 3.0)


def steps(*, n: int, done: int = 0) -> None:
    for _ in progress.track(range(done, n), "PCS", n, unit="example", initial=done):
        pass


def test_lines_come_more_and_more_rarely(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 200 steps of a second."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    for _ in progress.track(range(200), "PCS", unit="example"):
        now[0] += 1
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err
    first, *middle, last = err.splitlines()
    assert first == "PCS: 200 examples to do"
    assert last == "PCS: 200 of 200 examples in 03:20"
    form = r"PCS: (\d+) of 200 examples \(\d+ %\) after 0\d:\d\d, (0\d:\d\d) to go, ends about .+"
    found = [match.groups() for line in middle if (match := re.fullmatch(form, line))]
    expected = [("3", "03:17"), ("9", "03:11"), ("21", "02:59"), ("45", "02:35"), ("93", "01:47")]
    assert found == [*expected, ("153", "00:47")] and len(found) == len(middle)


def test_expected_end_is_the_average_of_what_was_done_now(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = progress.track(total=12, desc="PCS", unit="example", initial=2)
    assert capsys.readouterr().err == "PCS: 2 of 12 examples done before\n"
    monkeypatch.setattr(bar, "start_t", bar.start_t - 240)
    monkeypatch.setattr(bar, "last_print_t", bar.start_t)
    bar.update(4)
    assert "PCS: 6 of 12 examples (50 %) after 04:00, 06:00 to go" in capsys.readouterr().err


def test_work_that_is_done_already_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    steps(n=7, done=7)
    assert capsys.readouterr().err == "PCS: 7 of 7 examples done before\n"


def test_bytes_with_and_without_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    for total in (2_000_000, None):
        with progress.track(desc="file", total=total, unit="B", unit_scale=True) as bar:
            bar.update(2_000_000)
    first, ended, unknown, unbound = capsys.readouterr().err.splitlines()
    assert (first, ended) == ("file: 2.00M to do", "file: 2.00M of 2.00M in 00:00")
    assert (unknown, unbound) == ("file: ? to do", "file: 2.00M after 00:00")


def test_silence_when_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(range(3), "PCS", disable=True)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_the_bar_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    bar = progress.track(range(3), "PCS")
    assert not isinstance(bar, progress.Lines) and list(bar) == [0, 1, 2]
    assert "\r" in bar.fp.getvalue()


def test_a_stage_speaks_only_if_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.2)
    for shown, seconds in ((True, 0.0), (False, 0.7), (True, 0.7)):
        with progress.stage("reading", shown):
            time.sleep(seconds)
    time.sleep(0.3)
    assert capsys.readouterr().err.splitlines() == ["reading: 00:00 so far"] * 2
