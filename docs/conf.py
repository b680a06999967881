"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import dataclasses
import os
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
# Signatures are read from the source, where native shortcuts would hide their types.
os.environ["LONGSHORE_REACTOR"] = "portable"

project = "Longshore"
author = "the Longshore contributors"
copyright = "the Longshore contributors, Apache License 2.0"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Longshore {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Docstrings write `name` for code, as a terminal reader expects; without this it would come out in italics.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False

# A reference to a public name of ours must resolve. Names of Python and of other packages need their inventories
# from the network; names with an underscore and the reactor's own are not for users.
nitpick_ignore_regex = [
    ("py:.*", r"(?!longshore\.).*"),
    ("py:.*", r"longshore\.(.*\.)?_.*"),
    ("py:.*", r"longshore\.(admission|reactor)\..*"),
]


def describe_options(app, what, name, obj, options, lines):
    """Show each option with the one sentence that every other surface shows for it, and its default."""
    if what == "class" and dataclasses.is_dataclass(obj):
        fields = [item for item in dataclasses.fields(obj) if "help" in item.metadata]
        lines.append("")
        lines += [f":param {item.name}: {item.metadata['help']} (default: ``{item.default!r}``)" for item in fields]


def setup(app):
    app.connect("autodoc-process-docstring", describe_options)
