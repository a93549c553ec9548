"""Sphinx' settings: `dev.py docs` builds with warnings as errors, and runs the doctests.

The API reference is made from the docstrings of the package that is imported, which must be built.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import picows_fast  # noqa: E402
from picows_fast import FrameParser  # noqa: E402
from picows_fast.layers.broadcast import Channel  # noqa: E402
from picows_fast.layers.messages import MessageAssembler, WSMessageListener  # noqa: E402

# Autodoc would read the stubs of modules that have not been imported, and find no docstring there.
for path in (ROOT / "picows_fast").rglob("*.pyi"):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    importlib.import_module(name)

project = "picows_fast"
author = "the picows_fast authors"
copyright = author  # noqa: A001
version = release = picows_fast.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["_build", "make_settings.py"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
# One `>` of a quotation, as in Markdown; no typographic replacement in code-like text.
smartquotes = False

html_theme = "furo"
html_title = f"picows_fast {release}"
html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "undoc-members": False}
python_use_unqualified_type_names = True

nitpicky = False
doctest_global_setup = "import picows_fast\nfrom picows_fast import *"
doctest_test_doctest_blocks = ""

# Other projects' names are linked where their inventories can be fetched.
intersphinx_mapping = (
    {"python": ("https://docs.python.org/3", None)} if os.environ.get("DOCS_ONLINE") else {}
)


def stub_signature(owner: type, function_name: str) -> str | None:
    """The arguments of a method as its module's stub has them; None if there is no stub."""
    stub = (ROOT / owner.__module__.replace(".", "/")).with_suffix(".pyi")
    if not stub.exists():
        return None
    for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == owner.__name__:
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name == function_name:
                    arguments = function.args
                    arguments.args = arguments.args[1:]  # self
                    for argument in [*arguments.args, *arguments.kwonlyargs]:
                        argument.annotation = None
                    return f"({ast.unparse(arguments)})"
    return None


def class_signatures(app: Any, page: str, content: list[str]) -> None:
    """Of the classes in Cython that users make: none of them tells it."""
    if page == "api":
        for owner in (FrameParser, MessageAssembler, WSMessageListener, Channel):
            line = f".. autoclass:: {owner.__name__}\n"
            signed = line.rstrip() + f"{stub_signature(owner, '__init__')}\n"
            content[0] = content[0].replace(line, signed)


def setup(app: Any) -> None:
    app.connect("source-read", class_signatures)
