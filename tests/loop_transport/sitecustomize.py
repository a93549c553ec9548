"""Every connection goes over a transport of the event loop's, as it does by default on Windows.

`pytest --transport=loop` runs this in its own processes, and puts this folder on the path of the
Pythons that tests start, which import the module by its name.
"""

from __future__ import annotations

import asyncio

import picows_fast.net.open
import picows_fast.server.admission


def always(loop: asyncio.AbstractEventLoop, wanted: bool | None) -> bool:
    return True


picows_fast.net.open.uses_loop_transport = always
picows_fast.server.create.uses_loop_transport = always
