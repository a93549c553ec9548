"""Which names a subprotocol may have, and in what form a program lists them (RFC 6455 4.1).

Owns the check of such a list, for a client's offer and for what a server speaks. Which of the names
a connection gets is ``upgrade``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from .http.messages import IS_TOKEN

__all__ = ["checked_subprotocols"]


def checked_subprotocols(subprotocols: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names, the preferred first; none for None.

    :raises TypeError: it is no sequence of str, or a single str
    :raises ValueError: a name is not a token, or is there twice

    The errors name ``subprotocols``.
    """
    if subprotocols is None:
        return ()
    if isinstance(subprotocols, (str, bytes)) or not isinstance(subprotocols, Sequence):
        raise TypeError(
            f"subprotocols must be a sequence of str, got {type(subprotocols).__name__}"
        )
    # The errors tell which one it is, and not what it says: some are access tokens.
    for index, name in enumerate(subprotocols):
        if not isinstance(name, str):
            raise TypeError(f"subprotocols must contain str, got {type(name).__name__}")
        if IS_TOKEN.fullmatch(name) is None:
            raise ValueError(
                f"subprotocols must contain tokens (RFC 6455 4.1), which [{index}] is not"
            )
        if name in subprotocols[:index]:
            raise ValueError(f"subprotocols must not contain one of them twice, as [{index}] is")
    return tuple(subprotocols)
