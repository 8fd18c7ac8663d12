"""How Sphinx builds these pages; `make docs` runs it, and no warning is allowed."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import prefheads  # noqa: E402

project = "prefheads"
author = "the prefheads authors"
copyright = author
release = version = prefheads.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_reference",
    "table_text",
]
exclude_patterns = ["_build", "_ext"]
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4

# What a page shows of an object is its docstring; where it takes arrays, the docstring has shapes.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"prefheads {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1f5f99",
        "color-brand-content": "#1f5f99",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7db7ea",
        "color-brand-content": "#7db7ea",
    },
}

# Pages that lie in the repository's root, where people look for them.
OF_ROOT = {name: f"{name.upper()}.md" for name in ("architecture", "changelog", "contributing")}


def _show_root(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the text of a file of the root in the place of the line that points to it."""
    if page in OF_ROOT:
        text = (HERE.parent / OF_ROOT[page]).read_text()
        text = text.replace("](docs/", "](")
        for name, file in OF_ROOT.items():
            text = text.replace(f"]({file}", f"]({name}.md")
        source[0] = re.sub(r"\]\(README\.md.*?\)", "](index.md)", text)


def setup(app: Sphinx) -> None:
    """Connect it."""
    app.connect("source-read", _show_root)
