"""docs/ and README.md: what can be made from the code is, links lead somewhere, code blocks run.

A block of Python that has ``asyncio.run(``, or ``# runs`` as its first line, is a program: it is
run, with an echo server at ws://127.0.0.1:9001/. Any other is a part of a program, and compiles.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import picows
import pytest

import picows_fast.cli
from picows_fast import WSCloseCode, WSMsgType
from picows_fast.states import TRANSITIONS, WSState

from .commands import Commands, commands_fixture  # noqa: F401
from .conftest import ROOT
from .support import Echo, Recorder, free_port, serving

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
EXAMPLES = ROOT / "examples"
PORT = "9001"

# The event loop that matters is the program's.
on_one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])


class Block(NamedTuple):
    page: Path
    line: int
    text: str

    @property
    def is_program(self) -> bool:
        return "asyncio.run(" in self.text or self.text.startswith("# runs\n")

    @property
    def is_server(self) -> bool:
        return self.is_program and "ws_create_server(" in self.text


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            found.append(Block(page, text.count("\n", 0, match.start()) + 1, match[1]))
    return found


def name(block: Block) -> str:
    return f"{block.page.name}:{block.line}"


PYTHON = blocks("python")


def between(page: Path, marker: str) -> str:
    text = page.read_text(encoding="utf-8")
    match = re.search(rf"<!-- {marker}: begin -->\n(.*?)<!-- {marker}: end -->", text, re.DOTALL)
    assert match is not None
    return match[1]


# Names of other libraries


def test_every_name_of_picows_is_in_its_page() -> None:
    page = (ROOT / "docs" / "coming-from-picows.md").read_text(encoding="utf-8")
    names = set(picows.__all__)
    for cls in (
        picows.WSListener,
        picows.WSTransport,
        picows.WSFrame,
        picows.WSUpgradeRequest,
        picows.WSUpgradeResponse,
        picows.WSParsedURL,
        picows.picows.WSCloseHandshake,
        picows.picows.WSCloseInfo,
    ):
        names |= {name for name in vars(cls) if not name.startswith("_")}
    names |= picows.WSParsedURL.__annotations__.keys()
    for function in (picows.ws_connect, picows.ws_create_server):
        names |= {
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind == parameter.KEYWORD_ONLY
        }
    in_tables = "\n".join(re.findall(r"^\|.*$", page, re.MULTILINE))
    missing = {name for name in names if not re.search(rf"\b{name}\b", in_tables)}
    assert not missing


# What is made from the code, and what names all of it


def test_the_map_of_the_architecture_has_every_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = re.search(r"```\npicows_fast/\n(.*?)```", page, re.DOTALL)
    assert house is not None
    package = ROOT / "picows_fast"
    files = {
        path
        for path in package.rglob("*")
        if path.suffix in (".py", ".pyx", ".h")
        # What C headers are for is said with their folder, and the command line is used as a whole.
        and path.parent.name not in ("wire", "cli")
        and not path.stem.startswith("_")
    }
    assert package / "core.pyx" in files
    missing = {
        path.relative_to(package).as_posix()
        for path in files
        if not re.search(rf"\b{path.stem}\b", house[1])
    }
    assert not missing


def test_the_api_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert not {name for name in picows_fast.__all__ if not re.search(rf"\b{name}\b", page)}


def states_diagram() -> str:
    """The table of states as a Mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {WSState.CONNECTING.name}"]
    for state, event, next_state in TRANSITIONS:
        # Mermaid ends the text of an arrow at a second colon.
        lines.append(f"    {state.name} --> {next_state.name}: {event.replace(':', ' -')}")
    lines += [f"    {WSState.CLOSED.name} --> [*]", "```", ""]
    return "\n".join(lines)


def causes_table() -> str:
    """The causes of an end with their documentation, which stands below each in the source."""
    module = ast.parse(Path(picows_fast.states.__file__).read_text(encoding="utf-8"))
    (members,) = (
        node.body
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == "WSDisconnectCause"
    )
    lines = ["| cause | |", "|---|---|"]
    for member, documentation in itertools.pairwise(members):
        if isinstance(member, ast.Assign):
            assert isinstance(member.targets[0], ast.Name)
            assert isinstance(documentation, ast.Expr)
            assert isinstance(documentation.value, ast.Constant)
            text = re.sub(r"(?::\w+:)?`+([^`]*)`+", r"`\1`", str(documentation.value.value))
            lines.append(f"| `{member.targets[0].id}` | {text} |")
    return "\n".join([*lines, ""])


def test_states_diagram() -> None:
    assert between(ROOT / "docs" / "architecture.md", "states") == states_diagram()


def test_causes() -> None:
    table = causes_table()
    assert len(table.splitlines()) == 2 + len(picows_fast.WSDisconnectCause)
    assert between(ROOT / "docs" / "closing.md", "causes") == table


def test_settings() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))
    made = maker["render"]()
    assert maker["TARGET"].read_text(encoding="utf-8") == made, "run docs/make_settings.py"
    for setting in picows_fast.ClientOptions.__dataclass_fields__:
        assert f"| `{setting}` |" in made
    for setting in picows_fast.ServerOptions.__dataclass_fields__:
        assert f"| `{setting}` |" in made


def test_exception_tree() -> None:
    documentation = picows_fast.exceptions.__doc__ or ""
    tree = re.search(r"^    Exception\n(?:      +.*\n)+", documentation, re.MULTILINE)
    assert tree is not None
    page = (ROOT / "docs" / "exceptions.md").read_text(encoding="utf-8")
    assert re.sub(r" +RFC.*", "", tree[0]) in page


# Links


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_index_has_every_page_and_example() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.parent.name == "docs" and page.name != "index.md":
            assert f"{page.name})" in index
            assert f"\n{page.stem}\n" in index  # in the tree of contents, too
    for example in EXAMPLES.iterdir():
        if example.suffix == ".py":
            assert f"(../examples/{example.name})" in index


# Examples, beyond what test_examples.py runs


def test_every_example_is_run() -> None:
    tests = (ROOT / "tests" / "test_examples.py").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests, f"no test runs {path.name}"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_say_how_they_are_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert re.search(r"python \S*" + re.escape(path.name), text)
    assert len(text.splitlines()) <= 60


# Code blocks


def test_there_are_programs() -> None:
    servers = {block.page.name for block in PYTHON if block.is_server}
    assert servers >= {"README.md", "guide.md", "tutorial.md"}
    assert {block.page.name for block in PYTHON if block.is_program} >= {"README.md", "codec.md"}


@pytest.mark.parametrize("block", PYTHON, ids=name)
def test_python_compiles(block: Block) -> None:
    compile(block.text, name(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@on_one_loop
@pytest.mark.parametrize(
    "block", [block for block in PYTHON if block.is_program and not block.is_server], ids=name
)
async def test_programs_run(commands: Commands, block: Block) -> None:
    async with serving(lambda request: Echo()) as url:
        assert block.text.startswith("# runs") or f"ws://127.0.0.1:{PORT}" in block.text
        port = str(picows_fast.parse_url(url).port)
        result = await commands.run(program=block.text.replace(PORT, port))
    assert (result.code, result.err) == (0, "")


@on_one_loop
@pytest.mark.parametrize("block", [block for block in PYTHON if block.is_server], ids=name)
async def test_servers_run(commands: Commands, block: Block) -> None:
    port = str(free_port())
    assert PORT in block.text
    command = await commands.start(program=block.text.replace(PORT, port))
    transport, client = await connected(f"ws://127.0.0.1:{port}/")
    if "Echo" in block.text:
        transport.send(WSMsgType.TEXT, "hello")
        assert await client.frame() == (WSMsgType.TEXT, b"hello", True)
    command.interrupt()
    await client.closed()
    codes = {WSCloseCode.SERVICE_RESTART if "code=1012" in block.text else WSCloseCode.GOING_AWAY}
    if sys.version_info < (3, 11):
        # asyncio.run() does not handle Ctrl-C: it is raised wherever the program is, the callback
        # that has just sent the answer among it.
        codes.add(WSCloseCode.INTERNAL_ERROR)
    assert transport.close_handshake.recv.code in codes
    await asyncio.wait_for(command.process.communicate(), 20)


async def connected(url: str) -> tuple[picows_fast.WSTransport, Recorder]:
    """Connect as soon as the server listens."""
    client = Recorder()
    for _ in range(1000):
        try:
            transport, _listener = await picows_fast.ws_connect(
                lambda: client, url, enable_auto_close=True
            )
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
        else:
            return transport, client
    raise AssertionError("the server does not listen")


def test_commands_parse() -> None:
    parser = picows_fast.cli._parser()
    seen = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command in re.findall(r"^    .*python -m picows_fast ([^#>|\n]*)", text, re.MULTILINE):
            seen.add(parser.parse_args(shlex.split(command)).command)
    assert seen == {"demo", "connect", "record", "replay"}


CIMPORTS = """\
from libc.stdio cimport snprintf
from picows_fast.core cimport WSFrame, WSListener, WSMsgType, WSTransport
"""


def cython_sources() -> Iterator[str]:
    for block in blocks("cython"):
        yield block.text if "cimport" in block.text else CIMPORTS + block.text


def test_cython_translates(tmp_path: Path) -> None:
    """To C, at least; test_examples.py and test_cython.py build and run such modules."""
    sources = []
    for number, text in enumerate(cython_sources()):
        sources.append(tmp_path / f"block_{number}.pyx")
        sources[-1].write_text(text, encoding="utf-8")
    assert sources
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "cython",
            "-3",
            "-Werror",
            "-I",
            Path(picows_fast.__file__).parent.parent,
            *sources,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_names_in_the_text_exist() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for attribute in re.findall(r"`transport\.(\w+)", text):
            assert hasattr(picows_fast.WSTransport, attribute), (page.name, attribute)
