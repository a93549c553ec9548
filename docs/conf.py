"""Sphinx' settings: `dev.py docs` builds with warnings as errors, and runs the doctests.

The API reference is made from the docstrings of the package that is imported, which must be built.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import picows_fast  # noqa: E402

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
