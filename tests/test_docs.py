"""What README and the documentation show works: code runs, commands parse, links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.models import tiny
from support.pages import (
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    command_lines,
    links,
    name_of,
)
from support.saved import byte_tokenizer

import prefheads
from prefheads.data.task import TASKS
from prefheads.evaluation.methods import METHODS

sys.path.append(str(ROOT / "docs" / "_ext"))
from command_reference import commands, value_of

COMMANDS = dict(commands())
TOP = {words.split()[1] for words in COMMANDS}
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
SHELL = [b for page in PAGES for b in blocks(page, "sh")]
PLACES = ("src", "tests", "docs", "benchmarks")


def run_page(page: Path) -> dict[str, Any]:
    """Run the Python of a page, block after block, in one namespace.

    What must not run has to compile, and what it imports of this package has to exist.
    """
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        # Lines of the page are what a traceback names.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        exec(code if block.info == "python" else imports_of(block), namespace)
    return namespace


def imports_of(block: Block) -> str:
    """What a block that must not run imports of this package."""
    found = [n for n in ast.walk(ast.parse(block.code)) if isinstance(n, ast.ImportFrom)]
    return "\n".join(ast.unparse(n) for n in found if str(n.module).startswith("prefheads"))


@pytest.fixture
def tiny_bundled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Makes "bundled" a tiny random model, samples few and short, and a new folder the current."""

    def load(name: object = "bundled", **options: object) -> tuple[Any, Any]:
        assert name == "bundled"
        model = tiny(vocab_size=259, max_position_embeddings=4096)
        return model, byte_tokenizer()

    examples = prefheads.load_examples

    def shorter(source: Any, **options: Any) -> list[Any]:
        return [e.with_profile(e.profile[:2]) for e in examples(source, **options)]

    steerer = prefheads.PreferenceSteerer
    fit, validate = steerer.fit, steerer.validate
    few = {"discovery_limit": 4, "calibration_limit": 2, "progress": False}
    monkeypatch.setattr(steerer, "fit", lambda *a, **options: fit(*a, **options | few))
    monkeypatch.setattr(steerer, "validate", lambda self, e: validate(self, self.unseen(e)[::20]))
    for registry in (TASKS, METHODS):
        monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(prefheads, "load_model", load)
    monkeypatch.setattr(prefheads, "load_examples", shorter)
    monkeypatch.chdir(tmp_path)
    return load


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_runs(page: Path, tiny_bundled: object, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few heads of a random model have positive scores
        run_page(page)


@pytest.mark.bundled
def test_readme_runs_on_the_bundled_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = prefheads.load_examples
    monkeypatch.setattr(prefheads, "load_examples", lambda source: load(source)[::4])  # for time
    namespace = run_page(ROOT / "README.md")
    assert len(namespace["people"]) == 2
    assert namespace["heads"].n_active == 11
    assert capsys.readouterr().out


@pytest.mark.parametrize("block", SHELL, ids=lambda b: f"{name_of(b.page)}:{b.line}")
def test_commands_parse(block: Block) -> None:
    for words in command_lines(block):
        program = Path(words[0]).name
        if words[:3] == ["python", "-m", "prefheads"]:
            program, words = "prefheads", words[2:]
        if program == "prefheads":
            require_command(words[1:])
        elif program == "make":
            require_targets(words[1:])
        elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks"):
            assert words[2] in BENCHMARKS or (words[2] == "benchmarks" and words[3] in SUBJECTS)
        for word in words:
            if word.split("/")[0] in PLACES and "." in word:
                assert (ROOT / word).exists(), word


BENCHMARKS = {f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")}
SUBJECTS = re.findall(r'"(\w+)"', (ROOT / "benchmarks" / "__main__.py").read_text())


def require_targets(targets: list[str]) -> None:
    """They are in the Makefile."""
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {t for t in targets if "=" not in t} <= set(known)


def require_command(words: list[str]) -> None:
    """A command of the app with options that it has, values it can have, and all that it needs."""
    if words[:1] and words[0].startswith("-"):
        assert words in (["--help"], ["--version"])
        return
    name = next(n for n in (2, 1) if " ".join(["prefheads", *words[:n]]) in COMMANDS)
    command = COMMANDS[" ".join(["prefheads", *words[:name]])]
    options = {opt: p for p in command.params for opt in p.opts if opt.startswith("--")}
    given, rest, arguments = set[str](), iter(words[name:]), 0
    for word in rest:
        if not word.startswith("--"):
            arguments += 1
            continue
        option = options[word]
        given.add(option.name)
        choices = value_of(option)
        if choices:
            value = next(rest)
            assert " or " not in choices or value in choices.split(" or "), f"{word} {value}"
    needed = {p.name for p in options.values() if p.required}
    assert needed <= given or "..." in words
    positional = [p for p in command.params if not p.opts[0].startswith("-")]
    assert bool(arguments) == bool(positional) or not any(p.required for p in positional)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        assert path.exists(), path
        if anchor:
            assert anchor in anchors(path), f"{name_of(path)}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+\.\w+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_blocks_say_their_language(page: Path) -> None:
    """Else nobody checks them."""
    assert [b.line for b in blocks(page, "")] == []


def test_reference_has_the_whole_public_interface() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    documented = re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)$", page, re.M)
    assert sorted(documented) == sorted(prefheads.__all__)


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = re.findall(r"^([\w-]+)$", index, re.M)
    assert sorted([*listed, "index"]) == sorted(p.stem for p in (ROOT / "docs").glob("*.md"))


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == prefheads.__version__
    assert citation["license"] == "Apache-2.0"


def test_commands_of_the_reference_are_those_of_the_app() -> None:
    assert {"check", "discover", "fit", "eval", "serve", "judge", "data", "keys"} <= TOP


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The documentation, built without a warning."""
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(out)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    yield out


def test_documentation_builds_without_a_warning(built: Path) -> None:
    assert 'id="prefheads.discover"' in (built / "api.html").read_text()
    commands_page = re.sub(r"<[^>]*>", "", (built / "cli.html").read_text())
    for words, command in COMMANDS.items():
        assert words in commands_page
        assert all(p.opts[0] in commands_page for p in command.params if p.opts[0][0] == "-")
