"""--plot of `connect` and `demo`, and the figures that are told at the end."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from picows_fast.cli import _parser
from picows_fast.cli.plot import check_plot, draw_latency
from picows_fast.cli.runtime import CommandError
from picows_fast.layers.histogram import LatencyHistogram

from . import needs
from .commands import Commands, commands_fixture, echo, one_line, server  # noqa: F401

# The event loop that matters is the command's, chosen by --loop.
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.mark.native
@needs.arrival_times
async def test_connect_tells_its_figures(commands: Commands) -> None:
    async with server(echo) as url:
        result = await commands.run("connect", url, stdin=b"a\nbc\n" * 50)
    assert result.code == 0
    found = re.search(r"^\* received (\d+) frames, (\d+) B; sent (\d+) frames", result.err, re.M)
    assert found
    # 100 messages and CLOSE each way.
    assert [int(number) for number in found.groups()] == [101, 152, 101]
    assert re.search(r"^\* from the kernel to this program: p50 .* p99 .* max ", result.err, re.M)


async def test_connect_draws(
    commands: Commands, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "latency.svg"
    async with server(echo) as url:
        result = await commands.run("connect", url, "--plot", str(path), stdin=b"a\n" * 100)
    assert result.code == 0
    if needs.IS_LINUX and request.config.getoption("--transport") != "loop":
        assert f"* plot: {path}\n" in result.err
        assert "<svg" in path.read_text()
    else:  # nothing is known of when data came
        assert "* plot: nothing to draw\n" in result.err
        assert not path.exists()


async def test_demo_draws(commands: Commands, tmp_path: Path) -> None:
    path = tmp_path / "latency.png"
    result = await commands.run("demo", "--seconds", "0.3", "--plot", str(path))
    assert result.code == 0, result.err
    assert re.search(r"^  frame age +\S", result.out, re.M)
    assert re.search(rf"^  plot +{re.escape(str(path))}$", result.out, re.M)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["latency", "latency.txt", "missing/latency.svg"])
async def test_a_file_that_cannot_be_drawn(commands: Commands, tmp_path: Path, name: str) -> None:
    """It is said before anything is connected."""
    result = await commands.run("demo", "--plot", str(tmp_path / name))
    assert one_line(result, 2).startswith("picows_fast: --plot: ")


async def test_not_for_browsers(commands: Commands) -> None:
    result = await commands.run("demo", "--web", "--plot", "latency.svg")
    assert result.code == 2
    assert "--plot" in result.err


async def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CommandError, match=re.escape("pip install 'matplotlib>=3.8'")):
        check_plot(tmp_path / "latency.svg")
    check_plot(None)


async def test_nothing_to_draw(tmp_path: Path) -> None:
    path = tmp_path / "latency.svg"
    assert not draw_latency(path, {"none": LatencyHistogram()}, "title")
    assert not path.exists()


@pytest.mark.parametrize(
    "values", [[0], [0, 5], [3_600_000_000_000] * 3], ids=["0", "0, 5", "hours"]
)
async def test_odd_distributions(tmp_path: Path, values: list[int]) -> None:
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    path = tmp_path / "latency.svg"
    assert draw_latency(path, {"all": histogram}, "title")
    assert "<svg" in path.read_text()


async def test_arguments_know_it() -> None:
    parsed = _parser().parse_args(["connect", "ws://a/", "--plot", "a.svg"])
    assert parsed.plot == Path("a.svg")
