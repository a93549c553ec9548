"""Small frames into a client, as fast as it takes them: frames per second of the client's CPU time.

The server is the C reference, on another core; it sends frames that are ready, many with one call.
Beside frames of one size there are recorded sessions of exchanges, where those files are
($PICOWS_FAST_FEEDS, or ../shared/feeds): whole sessions, again and again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from picows_fast import WSMsgType, build_frame
from picows_fast.cli.feedfile import read_feed

from .measuring import Case, Settings, UnavailableError, contestants
from .peers import CALLBACKS, STREAMS
from .processes import BUILT, ROOT, cores, in_c, in_python

SIZES = (100, 1000)
FEEDS = ("binance_futures", "bybit", "coinbase", "kraken", "kraken_futures")
FOLDER = Path(os.environ.get("PICOWS_FAST_FEEDS", ROOT.parent / "shared" / "feeds"))


@functools.cache
def feed_stream(name: str) -> tuple[Path, int]:
    """A file with the frames of a recorded session, and how many there are."""
    source = FOLDER / f"{name}.jsonl.gz"
    if not source.is_file():
        raise UnavailableError(f"there is no {source}")
    frames = [build_frame(WSMsgType.TEXT, text.encode()) for _, text in read_feed(source)]
    BUILT.mkdir(parents=True, exist_ok=True)
    target = BUILT / f"{name}.frames"
    target.write_bytes(b"".join(frames))
    return target, len(frames)


def measure(
    library: str,
    tls: bool,
    loop: str,
    listener: str,
    take: str,
    seconds: float,
    size: int | None = None,
    feed: str | None = None,
) -> float:
    """Frames per second of CPU time."""
    core, other = cores()
    # These drop what they have queued when the connection ends before they have answered CLOSE.
    options: dict[str, Any] = {
        "seconds": seconds,
        "answered": int(library in ("websockets", "aiohttp")),
    }
    if feed:
        options["file"], options["frames"] = feed_stream(feed)
    else:
        options["size"] = size
    with in_c("flood", other, tls, **options) as serving:
        port = serving.answer()["port"]
        with in_python(
            "flood",
            core,
            library=library,
            tls=tls,
            loop=loop,
            listener=listener,
            take=take,
            port=port,
        ) as client:
            taken = client.answer(seconds)
            sent = serving.answer()
    if taken.get("frames", sent["frames"]) != sent["frames"]:
        raise RuntimeError(f"{library} took {taken['frames']} of {sent['frames']} frames")
    return float(sent["frames"] / taken["cpu"])


def cases(settings: Settings) -> Iterator[Case]:
    takes = (("python", "nothing"), ("python", "bytes"), ("cython", "nothing"))
    feeds = ("coinbase",) if settings.quick else FEEDS
    for payload in (*(f"{size} B" for size in SIZES), *feeds):
        is_feed = payload in FEEDS
        for tls in (False,) if settings.quick else (False, True):
            for listener, take in takes:
                if is_feed and (listener, take) != ("python", "bytes"):
                    continue
                if settings.quick and not is_feed and payload != f"{SIZES[0]} B":
                    continue
                if tls and listener == "python" and take == "nothing":
                    continue
                names = [*CALLBACKS]
                if (listener, take) == ("python", "bytes") and not settings.quick:
                    names.extend(STREAMS)
                yield Case(
                    "flood",
                    {
                        "size": payload,
                        "tls": "tls" if tls else "plain",
                        "loop": "uvloop",
                        "listener": listener,
                        "take": take,
                    },
                    "frames/CPU s",
                    contestants(
                        settings,
                        names,
                        measure,
                        tls=tls,
                        loop="uvloop",
                        listener=listener,
                        take=take,
                        seconds=settings.seconds,
                        **({"feed": payload} if is_feed else {"size": int(payload[:-2])}),
                    ),
                )
