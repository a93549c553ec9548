"""subprotocols: what may be listed, whoever is given the list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from picows_fast import ClientHandshake, ClientOptions, ServerHandshake, ServerOptions, parse_url
from picows_fast.protocol.subprotocols import checked_subprotocols

TAKERS: dict[str, Callable[..., Any]] = {
    "module": lambda subprotocols: checked_subprotocols(subprotocols),
    "client options": ClientOptions,
    "server options": ServerOptions,
    "client handshake": lambda subprotocols: ClientHandshake(
        parse_url("ws://localhost/"), subprotocols=subprotocols
    ),
    "server handshake": ServerHandshake,
}
WRONG: list[tuple[Any, type[Exception], str]] = [
    ("chat", TypeError, "subprotocols must be a sequence of str, got str"),
    (b"chat", TypeError, "subprotocols must be a sequence of str, got bytes"),
    (1, TypeError, "subprotocols must be a sequence of str, got int"),
    ({"chat"}, TypeError, "subprotocols must be a sequence of str, got set"),
    ([b"chat"], TypeError, "subprotocols must contain str, got bytes"),
    (["chat", None], TypeError, "subprotocols must contain str, got NoneType"),
    ([""], ValueError, "subprotocols must contain tokens (RFC 6455 4.1), which [0] is not"),
    (["a b"], ValueError, "subprotocols must contain tokens (RFC 6455 4.1), which [0] is not"),
    (["a,b"], ValueError, "subprotocols must contain tokens (RFC 6455 4.1), which [0] is not"),
    (["a\n"], ValueError, "subprotocols must contain tokens (RFC 6455 4.1), which [0] is not"),
    (["é"], ValueError, "subprotocols must contain tokens (RFC 6455 4.1), which [0] is not"),
    (
        ["a", "b", "a"],
        ValueError,
        "subprotocols must not contain one of them twice, as [2] is",
    ),
]


@pytest.mark.parametrize(
    ("given", "names"),
    [(None, ()), ([], ()), ((), ()), (["b", "a.v1"], ("b", "a.v1")), (("A", "a"), ("A", "a"))],
)
def test_names_stay_in_their_order(given: Any, names: tuple[str, ...]) -> None:
    assert checked_subprotocols(given) == names
    for take in TAKERS.values():
        take(subprotocols=given)


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(("given", "error", "text"), WRONG, ids=lambda value: ascii(value)[:20])
def test_everybody_refuses_the_same_in_the_same_words(
    taker: str, given: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        TAKERS[taker](subprotocols=given)
    assert type(caught.value) is error
    assert str(caught.value) == text
