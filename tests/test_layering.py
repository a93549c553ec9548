"""The arrows point one way: wire -> codec -> net -> core -> client, server -> layers, cli.

Proved from the text of every module, declaration file and stub of the package. What the C headers
of wire/ may use is in test_wire.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "picows_fast"

# What each module may import of the package. What is not listed is forbidden, so a new module is
# put into its place here first.
BASE = {"callables", "exceptions", "states", "keepalive", "options", "describe", "logs"} | {
    "_version",
    "typed_settings",
}
HANDSHAKE = {"url", "origins", "subprotocols", "http_messages", "upgrade_request", "handshake"}
NET = {"net", "net.stream", "net.poller", "net.tcp", "net.tls", "net.direct_tls", "net.foreign"} | {
    "net.overdue",
    "net.open",
    "net.tuning",
}
CONNECTIONS = {"connecting", "listening", "connections", "serving"}
ALLOWED: dict[str, set[str]] = {
    "_version": set(),
    "exceptions": {"states"},
    "states": set(),
    "stats": set(),
    "traffic": {"stats"},
    "keepalive": set(),
    "logs": set(),
    "origins": set(),
    "proxy_protocol": set(),
    "options": {"http_messages", "origins", "subprotocols", "proxy_protocol"},
    "url": {"exceptions"},
    "http_messages": {"_version", "exceptions"},
    "subprotocols": {"http_messages"},
    "upgrade_request": set(),
    "handshake": {"exceptions", "url", "origins", "subprotocols", "http_messages"}
    | {"upgrade_request"},
    "wire": set(),
    "codec": {"wire", "exceptions"},
    "net": set(),
    "net.stream": set(),
    "net.tuning": set(),
    "net.poller": {"net", "net.stream"},
    "net.tcp": {"net", "net.stream", "net.poller"},
    "net.overdue": set(),
    "net.tls": {"net", "net.stream", "net.overdue"},
    "net.direct_tls": {"net", "net.stream", "net.poller", "net.tcp", "net.tls"} | {"net.overdue"},
    "net.foreign": {"net", "net.stream"},
    "net.open": NET,
    "callbacks": {"codec", "exceptions"},
    "sending": {"wire", "codec", "net.stream", "traffic"},
    "describe": {"codec", "exceptions", "states", "url"},
    "callables": set(),
    "typed_settings": set(),
    "core": {"wire", "codec", "net", "net.stream", "net.overdue", "keepalive", "describe"}
    | {"exceptions", "states", "http_messages", "stats", "traffic", "callbacks", "sending"}
    | {"handshake"}
    | {"callables"},
    "connecting": {"exceptions", "http_messages", "url", "net", "net.overdue"},
    "listening": set(),
    "connections": {"states", "stats"},
    "serving": {"codec", "states", "handshake", "connections", "listening", "traffic"},
    "proxied": {"connections", "handshake", "proxy_protocol", "serving", "states"},
    "attaching": {"core", *BASE, *HANDSHAKE, *NET},
    "client": {"core", "codec", *BASE, *HANDSHAKE, *NET, *CONNECTIONS},
    "admission": {"proxied", "proxy_protocol", "core", *BASE, *HANDSHAKE, *NET, *CONNECTIONS},
    "server": {"admission", "core", "codec", *BASE, *HANDSHAKE, *NET, *CONNECTIONS},
    # Beside them: an event loop that calls streams in C.
    "loop": {"loop.selector"},
    "loop.selector": {"net", "net.stream", "net.poller"},
    # Optional: nothing above imports them.
    "layers": set(),
    "layers.routing": {"callables", "core", "http_messages"},
    "layers.metrics": {"connections", "http_messages"},
    "layers.hdr_encoding": set(),
    "layers.histogram": {"layers.hdr_encoding"},
    "layers.broadcast": {"codec", "net", "net.stream", "states", "sending", "core"},
    "protocol": set(),
    "protocol.messages": {"protocol", "wire", "codec", "exceptions"},
    "protocol.connection": {"protocol", "protocol.messages", "wire", "codec", "exceptions"}
    | {"keepalive", "states"},
    "layers.messages": {"protocol", "protocol.messages"}
    | {"wire", "codec", "net", "net.stream", "callbacks", "core", "exceptions"},
}
# What is not below anybody: the package's front door and the command line.
TOP = {"", "__main__", "cli"}

# These do no I/O: bytes and a clock are handed to them.
SANS_IO = {
    "protocol.messages",
    "protocol.connection",
    "codec",
    "handshake",
    "http_messages",
    "origins",
    "url",
    "keepalive",
    "states",
} | {
    "subprotocols",
    "connections",
    "proxy_protocol",
    "protocol.connection",
    "protocol.messages",
    "exceptions",
    "upgrade_request",
}
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
        elif "/" in match["header"]:
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


KNOWN = {*ALLOWED, *TOP}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """What a file imports: (of the package, from elsewhere)."""
    text = path.read_text()
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
        submodules = {f"{base}.{name}".lstrip(".") for name in names} & KNOWN
        inside |= submodules or {base}
    return inside, outside


FILES = sorted(
    path
    for path in PACKAGE.rglob("*")
    if path.suffix in (".py", ".pyi", ".pyx", ".pxd") and "__pycache__" not in path.parts
)


def layer(name: str) -> str:
    return "cli" if name.startswith("cli.") else name


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
cdef extern from "wire/mask.h" nogil:
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
        ("picows_fast.wire", []),
    ]
    assert imports(PACKAGE / "core.pyx")[0] >= {"codec", "net.stream", "wire", "exceptions"}
    assert "asyncio" in imports(PACKAGE / "core.pyx")[1]
    assert imports(PACKAGE / "core.pxd")[0] == {"callbacks", "codec", "sending"}
    assert imports(PACKAGE / "net" / "open.py")[0] >= {"net.tcp", "net.foreign"}
    assert imports(PACKAGE / "client.py")[0] >= {"core", "options", "net.open"}


def test_every_module_has_its_place():
    assert {layer(name_of(path)) for path in FILES} == KNOWN


def test_the_arrows_form_no_circle():
    def below(name: str, above: tuple[str, ...] = ()) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        for lower in ALLOWED[name] - {name}:
            below(lower, (*above, name))

    for name in ALLOWED:
        below(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_what_is_below(path):
    name = layer(name_of(path))
    inside, _ = imports(path)
    if name in TOP:
        if name == "":
            assert not any(layer(module) in TOP for module in inside)
        return
    assert inside - {name} <= ALLOWED[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_imports_the_command_line(path):
    inside, _ = imports(path)
    if layer(name_of(path)) not in ("cli", "__main__"):
        assert not any(layer(module) in ("cli", "__main__") for module in inside)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if name_of(path) in SANS_IO],
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
        "callbacks.pxd",
        "codec.pxd",
        "sending.pxd",
        "traffic.pxd",
        "net/stream.pxd",
        "protocol/messages.pxd",
        "layers/messages.pxd",
        "layers/broadcast.pxd",
        "layers/histogram.pxd",
    ):
        assert "cdef extern" not in (PACKAGE / name).read_text()
        assert "wire" not in imports(PACKAGE / name)[0]
