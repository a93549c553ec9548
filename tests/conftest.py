"""Fixtures that every test module may use: event loops, certificates, recorded feeds."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import runpy
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
import trustme

import picows_fast

from .cython_build import build, load, user_sources
from .peers import Contexts, connected
from .support import nothing_left_behind
from .thoroughness import left_out_of_part

try:
    import uvloop
except ImportError:
    uvloop = None

# What is run on picows_fast's own loop as well: where it matters who calls the streams, and when.
ON_OUR_LOOP = {
    "adversity",
    "test_attaching",
    "test_auto_ping",
    "test_backpressure",
    "test_callback_errors",
    "test_closing",
    "test_core",
    "test_direct_tls",
    "test_feeds",
    "test_lifetime",
    "test_open",
    "test_proxied",
    "test_stats",
    "test_streams",
    "test_timestamps",
}

ROOT = Path(__file__).resolve().parent.parent

# What --transport may name besides the default: the folder beside this file whose sitecustomize.py
# sets it up, and the markers of the tests that cannot be run then.
TRANSPORTS = {
    "loop": ("loop_transport", {"native", "direct_tls"}),
    "tls-bio": ("tls_bio", {"direct_tls"}),
}

# What a shell starts in the background ignores Ctrl-C, and so do the programs that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport",
        choices=["default", *TRANSPORTS],
        default="default",
        help="loop: every connection goes over a transport of the event loop's, as on Windows;"
        " tls-bio: TLS goes through Python's ssl objects, as where OpenSSL cannot be called from C",
    )
    parser.addoption(
        "--thorough",
        action="store_true",
        help="all combinations of parameters and all that is generated, of which a part is enough"
        " for a change: see tests/thoroughness.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "native: about connections that own their descriptor")
    config.addinivalue_line("markers", "direct_tls: about TLS that calls OpenSSL from C")
    hypothesis.settings.load_profile("thorough" if config.getoption("--thorough") else "part")
    if (transport := config.getoption("--transport")) in TRANSPORTS:
        folder = Path(__file__).parent / TRANSPORTS[transport][0]
        sys.path.insert(0, str(folder))
        paths = (str(folder), os.environ.get("PYTHONPATH"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        runpy.run_path(str(folder / "sitecustomize.py"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (transport := config.getoption("--transport")) in TRANSPORTS:
        skip = pytest.mark.skip(reason=f"about what --transport={transport} replaces")
        for item in items:
            if any(item.get_closest_marker(name) for name in TRANSPORTS[transport][1]):
                item.add_marker(skip)
    # A test that is named with its parameters is run.
    if not config.getoption("--thorough") and not any("[" in name for name in config.args):
        left_out = left_out_of_part(items)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every asynchronous test on each event loop."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.new_event_loop
    }
    if uvloop is not None:
        factories["uvloop"] = uvloop.new_event_loop
    if sys.platform == "linux" and ON_OUR_LOOP & {item.path.stem, item.path.parent.name}:
        factories["picows_fast"] = picows_fast.new_event_loop
    return factories


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """What is there before a module's tests is left out of their garbage collections: thousands of
    collected tests, and whatever other modules' have left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=[False, True], ids=["native", "loop-transport"])
def io_options(request: pytest.FixtureRequest) -> dict[str, bool]:
    """Keyword arguments that choose how bytes move: by descriptor or by the loop's transport."""
    if request.config.getoption("--transport") == "loop" and not request.param:
        pytest.skip("there are none by descriptor")
    return {"use_loop_transport": request.param}


@pytest.fixture
async def leaves_nothing() -> AsyncIterator[None]:
    """Fails the test if it leaves a task, a timer or a socket behind."""
    async with nothing_left_behind():
        yield


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The certificate authority that `server_tls` and `client_tls` have in common."""
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's context for localhost, 127.0.0.1 and ::1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts `authority`."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(params=["client", "server"])
def side(request: pytest.FixtureRequest) -> str:
    """Which side of a `link` is ours."""
    return str(request.param)


@pytest.fixture(scope="session")
def tls_contexts(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> Contexts:
    return Contexts(server_tls, client_tls)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def contexts(
    request: pytest.FixtureRequest, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> Contexts | None:
    """What a `link` uses for TLS, or None."""
    return Contexts(server_tls, client_tls) if request.param else None


@pytest.fixture(params=["plain", "tls", "loop-transport", "tls-loop-transport"])
def link(
    request: pytest.FixtureRequest,
    side: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> Callable[..., Any]:
    """`peers.connected` for either side: with TLS, without, and over a transport of the loop's."""
    if request.config.getoption("--transport") == "loop" and "loop-transport" not in request.param:
        pytest.skip("there are none by descriptor")
    return functools.partial(
        connected,
        side,
        contexts=Contexts(server_tls, client_tls) if "tls" in request.param else None,
        use_loop_transport="loop-transport" in request.param,
    )


@pytest.fixture(scope="session")
def feeds() -> Path:
    """The folder of recorded exchange sessions, which is not part of the project."""
    folder = Path(os.environ.get("PICOWS_FAST_FEEDS", ROOT.parent / "shared" / "feeds"))
    if not folder.is_dir():
        pytest.skip(f"no recorded feeds in {folder}; set PICOWS_FAST_FEEDS to a folder of them")
    return folder


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether a test that has numbers to choose is to choose the large ones."""
    return bool(request.config.getoption("--thorough"))


@pytest.fixture(scope="session")
def cython_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside of the project in which the modules of tests/cython_user are built.

    Of the processes that share the tests (pytest-xdist), the first that asks for it builds.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, output = shared / "third_party", shared / "third_party.txt"
    try:
        folder.mkdir()
    except FileExistsError:
        while not output.exists():
            time.sleep(0.1)
        assert output.read_text() == "", "what another process has built"
    else:
        result = build(folder, user_sources())
        said = result.stdout if result.returncode else ""
        (shared / "third_party.new").write_text(said)
        (shared / "third_party.new").rename(output)
        assert said == ""
    return folder


@pytest.fixture(scope="session")
def listeners(cython_folder: Path) -> ModuleType:
    """tests/cython_user/listeners.pyx, built and imported."""
    return load(cython_folder, "listeners")
