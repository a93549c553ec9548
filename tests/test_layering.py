"""The folders are layers, and the arrows between them point one way.

vocabulary <- protocol, net <- transport <- core <- client, server <- layers <- cli

Proved from the text of every module, declaration file and stub of the package. What the C headers
of protocol/wire/ may use is in test_wire.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "picows_fast"

# The words that everybody uses: modules beside core.
VOCABULARY = {"_version", "exceptions", "options", "states", "stats", "typed_settings"}

# What each layer may import of the others, besides itself.
ALLOWED: dict[str, set[str]] = {
    "vocabulary": {"protocol"},  # options: the syntax of what is set
    "protocol": {"vocabulary"},
    "net": set(),
    "transport": {"vocabulary", "protocol", "net"},
    "core": {"vocabulary", "protocol", "net", "transport"},
    "client": {"vocabulary", "protocol", "net", "transport", "core"},
    "server": {"vocabulary", "protocol", "net", "transport", "core"},
    # What follows somebody else's opening handshake.
    "attaching": {"vocabulary", "protocol", "net", "transport", "core"},
    # Beside them: an event loop that calls streams in C.
    "loop": {"net"},
    # Optional: nothing above imports them.
    "layers": {"vocabulary", "protocol", "net", "transport", "core", "server"},
}
# What is not below anybody: the package's front door and the command line.
TOP = {"", "__main__", "cli"}

# These do no I/O: bytes and a clock are handed to them.
SANS_IO = {"vocabulary", "protocol"}
# They name the types of sockets and TLS that a setting takes.
NAMES_TYPES = {"options", "typed_settings"}
IO_MODULES = {
    "asyncio",
    "socket",
    "ssl",
    "selectors",
    "select",
    "threading",
    "uvloop",
    "subprocess",
}

IMPORT = re.compile(
    r"""^[ \t]*(?:
        from[ \t]+(?P<module>[.\w]+)[ \t]+c?import[ \t]+(?P<names>\([^)]*\)|[^\n]*)
        |c?import[ \t]+(?P<modules>[^\n]+)
        |cdef[ \t]+extern[ \t]+from[ \t]+"(?P<header>[^"<]+)"
    )""",
    re.MULTILINE | re.VERBOSE,
)


def without_strings(text: str) -> str:
    """Docstrings and verbatim C hold lines that look like imports."""
    return re.sub(r'""".*?"""', '""', text, flags=re.DOTALL)


def imported_by_cython(text: str) -> Iterator[tuple[str, list[str]]]:
    """(module as written, names) of each import and cimport; a C header counts as its folder."""
    for match in IMPORT.finditer(without_strings(text)):
        if match["module"]:
            names = re.sub(r"#[^\n]*", "", match["names"]).strip("() \t\n")
            yield match["module"], [name.split()[0] for name in names.split(",") if name.strip()]
        elif match["modules"]:
            for name in match["modules"].split("#")[0].split(","):
                yield name.split()[0], []
        elif (PACKAGE / match["header"]).is_file():
            yield f"picows_fast.{match['header'].split('/')[0]}", []


def imported_by_python(text: str) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


def name_of(path: Path) -> str:
    """The module of a file, without the package's name."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name: str) -> str:
    """Which layer a module belongs to."""
    return "vocabulary" if name in VOCABULARY else name.split(".")[0]


FILES = sorted(
    path
    for path in PACKAGE.rglob("*")
    if path.suffix in (".py", ".pyi", ".pyx", ".pxd") and "__pycache__" not in path.parts
)
MODULES = {name_of(path) for path in FILES}


def imports(path: Path, *, run: bool = False) -> tuple[set[str], set[str]]:
    """What a file imports: (of the package, from elsewhere). `run`: not what is for type checkers
    only."""
    text = path.read_text()
    if run:
        checked = r"^if TYPE_CHECKING:\n(?:(?: .*)?\n)+"
        text = re.sub(checked, "if TYPE_CHECKING:\n    pass\n\n", text, flags=re.MULTILINE)
    found = (
        imported_by_cython(text) if path.suffix in (".pyx", ".pxd") else imported_by_python(text)
    )
    home = path.relative_to(PACKAGE.parent).parent.parts
    inside = set()
    outside = set()
    for written, names in found:
        dots = len(written) - len(written.lstrip("."))
        if dots:
            base = ".".join((*home[: len(home) - dots + 1], written[dots:])).rstrip(".")
        else:
            base = written
        if base.split(".")[0] != "picows_fast":
            outside.add(base.split(".")[0])
            continue
        base = base.removeprefix("picows_fast").lstrip(".")
        # `from . import codec` imports a module, `from .codec import WSFrame` does not.
        submodules = {f"{base}.{name}".lstrip(".") for name in names} & MODULES
        inside |= submodules or {base}
    return inside, outside


def test_imports_are_found():
    text = '''
"""from .docstring import nothing"""
import os, re
from libc.string cimport memcpy
from .codec cimport (
    WSFrame,    # a comment
    WSMsgType,
)
    from . import client
cimport cython
cdef extern from "protocol/wire/mask.h" nogil:
    pass
cdef extern from "Python.h":
    pass
'''
    assert list(imported_by_cython(text)) == [
        ("os", []),
        ("re", []),
        ("libc.string", ["memcpy"]),
        (".codec", ["WSFrame", "WSMsgType"]),
        (".", ["client"]),
        ("cython", []),
        ("picows_fast.protocol", []),
    ]
    core = imports(PACKAGE / "core.pyx")
    assert core[0] >= {"protocol.codec", "net.stream", "protocol.wire", "exceptions"}
    assert "asyncio" in core[1]
    assert imports(PACKAGE / "net" / "open.py")[0] >= {"net.tcp", "net.loop_transport"}
    assert imports(PACKAGE / "client" / "connect.py")[0] >= {"core", "options", "net.open"}


def test_every_module_has_its_place():
    assert {layer(name) for name in MODULES} == {*ALLOWED, *TOP}


def test_no_module_is_below_itself():
    """What is only for type checkers is no arrow: it is not imported when the program runs."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if path.suffix != ".pyi":
            graph.setdefault(name_of(path), set()).update(imports(path, run=True)[0])

    def below(name: str, above: tuple[str, ...] = ()) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        for lower in graph.get(name, set()) - {name}:
            below(lower, (*above, name))

    for name in graph:
        below(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_what_is_below(path):
    name = name_of(path)
    above = {layer(module) for module in imports(path)[0]} - {layer(name)}
    if layer(name) in TOP:
        if name == "":
            assert not above & TOP
        return
    assert above <= ALLOWED[layer(name)]


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if layer(name_of(path)) in SANS_IO and name_of(path) not in NAMES_TYPES
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_protocol_without_io(path):
    _, outside = imports(path)
    assert not outside & IO_MODULES


def test_no_include_of_cython_files():
    for path in FILES:
        if path.suffix in (".pyx", ".pxd"):
            assert not re.search(r"^\s*include\s", without_strings(path.read_text()), re.MULTILINE)


def test_declarations_need_no_header():
    """What users cimport must not make them need an include path."""
    for name in (
        "core.pxd",
        "transport/dispatch.pxd",
        "transport/sender.pxd",
        "transport/counters.pxd",
        "protocol/codec.pxd",
        "net/stream.pxd",
        "protocol/messages.pxd",
        "layers/messages.pxd",
        "layers/broadcast.pxd",
        "layers/histogram.pxd",
    ):
        assert "cdef extern" not in (PACKAGE / name).read_text()
        assert "protocol.wire" not in imports(PACKAGE / name)[0]
