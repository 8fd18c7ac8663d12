"""Options, profiles and prompts that are wrong: one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import assert_one_error, rows, write_rows
from support.saved import CONTEXT


@pytest.mark.parametrize("gamma", ["-1", "nan", "inf", "much"])
def test_bad_gamma(
    cli, gamma: str, tiny_folder: Path, discovered: Path, profile_file: Path
) -> None:
    ask = ("generate", "--model", tiny_folder, "--run", discovered, "--profile", profile_file)
    assert_one_error(cli(*ask, "--prompt", "Go", f"--gamma={gamma}"), "gamma")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--clusters", "0"), "clusters"),
        (("--clusters", "many"), "clusters"),
        (("--clusters", "7"), "7 clusters"),
        (("--split", "0.5,0.5"), "--split"),
        (("--split", "1,2,3"), "sum to 1"),
        (("--split", "x"), "--split"),
        (("--clusters", "2", "--min-samples", "50"), "50"),
        (("--calibration", "1"), "calibration"),
        (("--no-such-option",), "No such option"),
        (("--scope", "nowhere"), "scope"),
        (("--device", "abacus"), "abacus"),
        (("--encoder", "no/such/encoder"), "encoder"),
    ],
)
def test_bad_options_of_fit(
    cli, options, part: str, tiny_folder: Path, people_file: Path, tmp_path
) -> None:
    out = tmp_path / "run"
    where = ("--model", tiny_folder, "--data", people_file, "--out", out, "--quiet")
    assert_one_error(cli("fit", *where, *options), part)
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_too_few_users(cli, tiny_folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "few.jsonl", rows(3))
    result = cli("fit", "--model", tiny_folder, "--data", data, "--out", tmp_path / "run")
    assert_one_error(result, "at least two users")


def test_nobody_left_to_validate(
    cli, tiny_folder: Path, people_file: Path, fitted: Path, tmp_path: Path
) -> None:
    seen = json.loads((fitted / "steerer.json").read_text())["users"]["discovery"]
    known = write_rows(tmp_path / "seen.jsonl", [r for r in rows() if r["user_id"] in seen])
    result = cli("validate", "--model", tiny_folder, "--run", fitted, "--data", known)
    assert_one_error(result, "took part in fitting")


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("p.json", "[", "not JSON"),
        ("p.jsonl", '"a"\n{"text": }\n', "p.jsonl:2"),
        ("p.jsonl", '{"title": "a"}\n', "text"),
        ("p.json", "[3]", "profile[0]"),
        ("p.json", '{"text": "a"}', "list"),
        ("p.txt", "\n \n", "empty"),
        ("p.txt", None, "no such file"),
    ],
)
def test_bad_profiles(
    cli, name: str, text: str | None, part: str, tiny_folder: Path, discovered: Path, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    ask = ("generate", "--model", tiny_folder, "--run", discovered, "--profile", tmp_path / name)
    assert_one_error(cli(*ask, "--prompt", "Go", "--gamma", 1), part, name)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--prompt", " "), "--prompt"),
        (("--prompt", "long " * CONTEXT), "input alone"),
        (("--prompt", "Go", "--max-new-tokens", CONTEXT), "max_new_tokens"),
        (("--prompt", "Go", "--mode", "shout"), "mode"),
    ],
)
def test_bad_requests(
    cli, more, part: str, tiny_folder: Path, discovered: Path, profile_file: Path
) -> None:
    ask = ("generate", "--model", tiny_folder, "--run", discovered, "--profile", profile_file)
    assert_one_error(cli(*ask, *more, "--gamma", 1), part)
