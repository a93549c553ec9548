"""What a client's send of 256 B costs beside the system call: instructions, counted by valgrind.

A client sends in a row, in Cython, to the C reference, which drops everything. Callgrind counts
while the function that does so runs; the kernel's instructions are not counted. Exact, so that one
round is enough.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .measuring import Case, Settings, UnavailableError, contestants
from .peers import CALLBACKS
from .processes import cores, in_c, in_python

SIZE = 256
COUNT = 2000


def count_instructions(library: str, port: int) -> int:
    valgrind = shutil.which("valgrind")
    if not valgrind:
        raise UnavailableError("valgrind is not installed")
    core, _ = cores()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        prefix = (
            valgrind,
            "-q",
            "--tool=callgrind",
            "--toggle-collect=__pyx_pw_*send_to_all",
            f"--callgrind-out-file={out}",
        )
        with in_python(
            "send",
            core,
            prefix,
            library=library,
            loop="asyncio",
            listener="cython",
            tls=False,
            port=port,
            size=SIZE,
            count=COUNT,
        ) as client:
            client.answer(180)
            client.wait()
        totals = re.findall(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE)
    if not totals:
        raise RuntimeError("callgrind counted nothing")
    return int(totals[-1])


def measure(library: str) -> float:
    """Instructions for each send."""
    _, other = cores()
    with in_c("serve", other, sink=1) as sink:
        return count_instructions(library, sink.answer()["port"]) / COUNT


def cases(settings: Settings) -> Iterator[Case]:
    if settings.quick:
        return
    yield Case(
        "masksend",
        {"size": str(SIZE), "listener": "cython"},
        "instructions/send",
        contestants(settings, CALLBACKS, measure),
        higher_is_better=False,
        rounds=1,
    )
