"""TLS goes through Python's SSLObject and MemoryBIO, as it does by default on Windows, on a
free-threaded interpreter, and where OpenSSL is part of Python's executable.

`pytest --transport=tls-bio` runs this in its own processes, and puts this folder on the path of the
Pythons that tests start, which import the module by its name.
"""

from __future__ import annotations

import sys

if sys.platform != "win32":
    from picows_fast.net import tls_fd

    tls_fd.AVAILABLE = False
