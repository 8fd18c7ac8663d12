"""The package's parts import only what stands below them, and the house that they form is small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tools import architecture

ROOT = Path(__file__).parents[1]


def test_imports_point_inward() -> None:
    """In a process of its own: the linter keeps hold of the standard output that it finds."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_of_a_package_import_each_other_in_no_circle() -> None:
    # Types alone may: two modules of one package can name each other's classes.
    graph = grimp.build_graph("prefheads", exclude_type_checking_imports=True, cache_dir=None)
    packages = [name for name in graph.modules if graph.find_children(name)]
    assert not {p: found for p in packages if (found := graph.nominate_cycle_breakers(p))}


def test_the_house_has_few_rooms_and_floors() -> None:
    imports = architecture.read()
    floors = architecture.floors(imports)
    assert {"steering", "users", "errors"} < floors.keys() == imports.keys()
    assert len(floors) <= 30 and max(floors.values()) <= 14
    assert all(floors[a] > floors[b] for a, below in imports.items() for b in below)


SQUARE = {
    "top": {"left", "right", "cellar"},
    "left": {"cellar"},
    "right": {"left"},
    "cellar": set(),
}


def test_rooms_stand_above_what_they_import() -> None:
    assert architecture.floors(SQUARE) == {"cellar": 1, "left": 2, "right": 3, "top": 4}
    assert architecture.arrows(SQUARE) == [("top", "right"), ("left", "cellar"), ("right", "left")]
    with pytest.raises(ValueError, match="cycle"):
        architecture.floors(SQUARE | {"cellar": {"top"}})


@pytest.mark.parametrize("name", ["house.svg", "house.png"])
def test_a_figure_is_drawn_the_same_each_time(name: str, tmp_path: Path) -> None:
    imports = {"cli": {"steerer"}, "steerer": {"errors"}, "errors": set()}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        architecture.draw(imports, tmp_path / folder / name)
    first, second = ((tmp_path / folder / name).read_bytes() for folder in ("a", "b"))
    assert first == second and len(first) > 3000
