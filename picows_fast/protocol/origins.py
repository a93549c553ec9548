"""Which Origins a server lets in (RFC 6455 10.2): the syntax of what may be listed, and the match.

Browsers send cookies with a WebSocket request whatever page made it, and tell the page by the
Origin header (RFC 6454 7). Owns the comparison only: ``upgrade`` answers with 403.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["OriginPolicy"]

_Origin = tuple[str, str, int | None]

# RFC 6454 6.2: scheme, host, and a port unless it is the scheme's default one.
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.\-]*)://(?P<wildcard>\*\.)?"
    r"(?P<host>[a-z0-9_](?:[a-z0-9_.\-]*)|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?",
    re.IGNORECASE | re.ASCII,
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_OPAQUE: Final = "null"  # RFC 6454 6.1: of a sandboxed page, a local file ...


class OriginPolicy:
    """The Origins that are allowed.

    ``origins`` has `"https://example.com"`, `"https://*.example.com:8443"` for every subdomain but
    not the domain itself, `"null"` for opaque origins, and None for requests without an Origin:
    those of programs, as browsers always send one. Scheme and host are compared without case, and
    a default port is the same as none.

    Raises TypeError or ValueError, naming ``origins``, if there are none or one is not valid.
    """

    __slots__ = ("_exact", "_may_be_absent", "_may_be_opaque", "_parents")

    def __init__(self, origins: Iterable[str | None]) -> None:
        self._exact: set[_Origin] = set()
        self._parents: set[_Origin] = set()
        self._may_be_absent = False
        self._may_be_opaque = False
        if isinstance(origins, (str, bytes)) or not isinstance(origins, Iterable):
            raise TypeError(
                f"origins must be a sequence of str and None, got {type(origins).__name__}"
            )
        for origin in origins:
            if origin is None:
                self._may_be_absent = True
            elif not isinstance(origin, str):
                raise TypeError(f"origins must contain str and None, got {type(origin).__name__}")
            elif origin == _OPAQUE:
                self._may_be_opaque = True
            else:
                self._add(origin)
        if not (self._exact or self._parents or self._may_be_absent or self._may_be_opaque):
            raise ValueError("origins must not be empty; None stands for no check")

    def _add(self, origin: str) -> None:
        match = _ORIGIN.fullmatch(origin)
        is_name = match is not None and not match["host"].startswith("[")
        if match is None or (match["wildcard"] and not is_name):
            raise ValueError(
                "origins must contain a scheme and a host, such as 'https://example.com' or "
                f"'https://*.example.com', and no path, got {origin!r}"
            )
        (self._parents if match["wildcard"] else self._exact).add(_parts(match))

    def allows(self, values: Iterable[str]) -> bool:
        """Whether a request is allowed whose Origin headers have these values."""
        found = list(values)
        if not found:
            return self._may_be_absent
        if len(found) > 1:
            return False
        if found[0] == _OPAQUE:
            return self._may_be_opaque
        match = _ORIGIN.fullmatch(found[0])
        if match is None or match["wildcard"]:
            return False
        scheme, host, port = origin = _parts(match)
        if origin in self._exact:
            return True
        if self._parents:
            while "." in host:
                host = host.partition(".")[2]
                if (scheme, host, port) in self._parents:
                    return True
        return False


def _parts(match: re.Match[str]) -> _Origin:
    scheme = match["scheme"].lower()
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS.get(scheme)
    return scheme, match["host"].lower(), port
