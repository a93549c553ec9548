"""The error tree: its shape, what each error carries, and its table against the wire reader."""

from __future__ import annotations

import asyncio
import copy
import errno
import pickle
import re
import socket
import ssl
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from picows_fast import exceptions
from picows_fast.exceptions import (
    VIOLATIONS,
    WSConnectionClosedError,
    WSError,
    WSHandshakeError,
    WSInvalidHeaderError,
    WSInvalidMessageError,
    WSInvalidStatusError,
    WSInvalidUpgradeError,
    WSInvalidURL,
    WSPeerProtocolError,
    WSProtocolError,
    WSProxyError,
    WSViolation,
    is_transient,
)
from picows_fast.protocol.http.messages import WSUpgradeResponse
from picows_fast.states import WSDisconnectCause

FRAME_H = Path(exceptions.__file__).parent / "protocol" / "wire" / "frame.h"

EVERY_ERROR = [
    WSError("text"),
    WSHandshakeError("text", b"head", b"body", None),
    WSInvalidMessageError("text", b"head"),
    WSInvalidStatusError("text", b"head", b"body", None),
    WSInvalidHeaderError("text", "Host", "value", b"head"),
    WSInvalidUpgradeError("text", "Upgrade"),
    WSInvalidURL("ws:", "text"),
    WSProxyError("text", 407),
    WSProtocolError(1011, "text"),
    WSPeerProtocolError(WSViolation.MASKED, "text"),
    WSConnectionClosedError("text", WSDisconnectCause.PEER_RESET, 1012, "back soon"),
]


def tree_in_docstring() -> dict[str, str]:
    """Class name -> name of the parent, as drawn by indentation."""
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for match in re.finditer(r"^( +)((?:WS\w+)|Exception)\b", exceptions.__doc__ or "", re.M):
        indentation, name = len(match[1]), match[2]
        while path and path[-1][0] >= indentation:
            path.pop()
        if path:
            parents[name] = path[-1][1]
        path.append((indentation, name))
    return parents


def test_docstring_draws_the_tree_as_it_is():
    classes = {
        name: value
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, WSError)
    }
    assert {name: cls.__mro__[1].__name__ for name, cls in classes.items()} == tree_in_docstring()
    assert set(classes) <= set(exceptions.__all__)


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_every_error_survives_pickle_and_copy(error, duplicate):
    error.phase, error.host, error.port = "proxy", "proxy.example.com", 8080
    twin = duplicate(error)
    # python-socks may have been imported since the error was made.
    assert type(twin) is type(error) or isinstance(error, WSProxyError)
    assert isinstance(twin, type(error))
    assert str(twin) == str(error)
    assert "text" in str(twin)
    assert twin.args == error.args
    assert vars(twin) == vars(error)


def test_handshake_error_with_response_survives_pickle():
    response = WSUpgradeResponse.create_error_response(403, b"no", {"X-Reason": "why"})
    twin = pickle.loads(pickle.dumps(WSInvalidStatusError("text", b"head", b"no", response)))
    assert twin.response.to_bytes() == response.to_bytes()
    assert (twin.raw_header, twin.raw_body) == (b"head", b"no")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "30"}, 30.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "9" * 5000}, None),
        (
            {
                "Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT",
                "Date": "Sun, 06 Nov 1994 08:48:07 GMT",
            },
            90.0,
        ),
        # What is past is now. The two obsolete forms of a date are read, too (RFC 9110 5.6.7).
        ({"Retry-After": "Sunday, 06-Nov-94 08:49:37 GMT"}, 0.0),
        ({"Retry-After": "Sun Nov  6 08:49:37 1994", "Date": "nonsense"}, 0.0),
        ({"Retry-After": "Sun, 99 Nov 1994 08:49:37 GMT"}, None),
    ],
)
def test_retry_after(headers, seconds):
    response = WSUpgradeResponse.create_error_response(503, None, headers)
    assert WSInvalidStatusError("text", b"", b"", response).retry_after == seconds


def test_retry_after_counts_from_now_without_a_date():
    date = formatdate(time.time() + 1000, usegmt=True)
    response = WSUpgradeResponse.create_error_response(503, None, {"Retry-After": date})
    assert 900 < WSInvalidStatusError("text", b"", b"", response).retry_after <= 1000
    assert WSInvalidStatusError("text").retry_after is None


def refusal(status, **headers):
    return WSInvalidStatusError("text", response=WSUpgradeResponse(status=status, headers=headers))


def closed(cause=None, code=None):
    return WSConnectionClosedError("text", cause, code)


TRANSIENT = [
    socket.gaierror(socket.EAI_AGAIN, "text"),
    *(OSError(number, "text") for number in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE)),
    *(OSError(number, "text") for number in (errno.ENETUNREACH, errno.EHOSTUNREACH)),
    *(OSError(number, "text") for number in (errno.EADDRNOTAVAIL, errno.EMFILE, errno.EAGAIN)),
    ConnectionResetError("without a number"),
    TimeoutError(),
    OSError(errno.ETIMEDOUT, "text"),
    asyncio.TimeoutError(),
    ssl.SSLEOFError(8, "text"),
    ssl.SSLZeroReturnError(6, "text"),
    *map(refusal, (408, 425, 429, 500, 502, 503, 504, 520)),
    refusal(418, **{"Retry-After": "60"}),
    WSInvalidMessageError("text", ended_early=True),
    *(WSProxyError("text", code) for code in (1, 3, 4, 5, 6, 91, 429, 502, 503)),
    WSProxyError("text", ended_early=True),
    closed(),
    closed(WSDisconnectCause.PING_TIMEOUT),
    closed(WSDisconnectCause.PEER_FIN),
    closed(WSDisconnectCause.PEER_RESET),
    *(closed(None, code) for code in (1001, 1006, 1011, 1012, 1013, 1014, 3008)),
    closed(WSDisconnectCause.CLOSE_FRAME, 1012),
    WSProtocolError(1013),
]
LASTING = [
    socket.gaierror(socket.EAI_NONAME, "text"),
    socket.gaierror(socket.EAI_FAIL, "text"),
    *(OSError(number, "text") for number in (errno.EACCES, errno.EINVAL, errno.ENOENT)),
    OSError("without a number"),
    ssl.SSLError(1, "text"),
    ssl.SSLCertVerificationError(1, "text"),
    *map(refusal, (301, 400, 401, 403, 404, 418, 426, 501, 505, 511)),
    refusal(302, **{"Retry-After": "60"}),
    WSInvalidStatusError("without a response"),
    WSInvalidMessageError("text"),
    WSInvalidHeaderError("text", "Sec-WebSocket-Protocol", "v9"),
    WSInvalidUpgradeError("text", "Upgrade"),
    WSInvalidURL("ws:", "text"),
    WSError("more than 5 redirects"),
    *(WSProxyError("text", code) for code in (None, 2, 7, 8, 403, 407)),
    *(closed(None, code) for code in (1000, 1002, 1003, 1005, 1007, 1008, 1009, 1010, 3000, 4000)),
    closed(WSDisconnectCause.CLOSE_FRAME),
    closed(WSDisconnectCause.CLOSE_FRAME, 1008),
    closed(WSDisconnectCause.LOCAL_CLOSE, 1001),
    closed(WSDisconnectCause.LOCAL_ABORT),
    closed(WSDisconnectCause.CALLBACK_ERROR),
    closed(WSDisconnectCause.PROTOCOL_ERROR),
    WSProtocolError(1008),
    WSPeerProtocolError(WSViolation.MASKED),
    WSPeerProtocolError(WSViolation.FRAME_TOO_BIG),
    ValueError("one's own mistake"),
    asyncio.CancelledError(),
]


def test_is_transient():
    for errors, expected in ((TRANSIENT, True), (LASTING, False)):
        for error in errors:
            assert is_transient(error) is expected, repr(error)
            if isinstance(error, WSError):
                assert error.is_transient is expected, repr(error)
                assert pickle.loads(pickle.dumps(error)).is_transient is expected, repr(error)


def test_is_transient_of_addresses_that_failed_for_several_reasons():
    for number in (None, errno.ENOENT):
        error = OSError("text") if number is None else OSError(number, "text")
        assert not is_transient(error)
        error.phase = "connecting"
        assert is_transient(error)


def test_is_transient_takes_exceptions_only():
    with pytest.raises(TypeError, match=r"is_transient\(\) takes an exception, got str"):
        is_transient("text")


def test_proxy_error_is_also_that_of_python_socks():
    python_socks = pytest.importorskip("python_socks")
    error = WSProxyError("refused", error_code=407)
    assert isinstance(error, python_socks.ProxyError)
    assert (type(error).__name__, str(error), error.error_code) == ("WSProxyError", "refused", 407)
    assert repr(error) == "WSProxyError('refused')"

    class OwnError(WSProxyError):
        pass

    assert not isinstance(OwnError("x"), python_socks.ProxyError)


def test_proxy_error_crosses_to_a_process_without_python_socks(monkeypatch):
    pytest.importorskip("python_socks")
    data = pickle.dumps(WSProxyError("refused", 407))
    assert b"python_socks" not in data
    monkeypatch.setitem(sys.modules, "python_socks", None)
    twin = pickle.loads(data)
    assert type(twin) is WSProxyError
    assert (str(twin), twin.error_code) == ("refused", 407)


def test_subclass_with_another_constructor_survives_pickle():
    twin = pickle.loads(pickle.dumps(CustomError(7)))
    assert (twin.code, twin.number, str(twin)) == (4000, 7, "number 7")


class CustomError(WSProtocolError):
    def __init__(self, number: int) -> None:
        super().__init__(4000, f"number {number}")
        self.number = number


def test_header_error_says_name_and_value():
    assert str(WSInvalidHeaderError("wrong", "Upgrade", "h2c")) == "wrong (Upgrade: 'h2c')"
    assert str(WSInvalidHeaderError("wrong", "Upgrade")) == "wrong (Upgrade is missing)"
    assert len(str(WSInvalidHeaderError("wrong", "Upgrade", "x" * 10_000))) < 300


@pytest.mark.parametrize("name", ["Set-Cookie", "location", "Sec-WebSocket-Protocol"])
def test_header_error_does_not_show_what_may_be_a_secret(name):
    error = WSInvalidHeaderError("wrong", name, "secret")
    assert str(error) == f"wrong ({name}: 6 characters)"
    assert "secret" not in repr(error)
    assert error.value == "secret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://host:8/", "ws://host:8/"),
        ("ws://user:secret@host/", "ws://***@host/"),
        ("ws://host:99999/secret?secret#secret", "ws://host:99999/..."),
        ("ws://[::1%25eth0]:8?secret", "ws://[::1%25eth0]:8/..."),
        ("wss://user:sec@ret@host/", "wss://..."),
        ("ws://user:secret/x@host/", "ws://..."),
        ("ws://user:secret?x@host/", "ws://..."),
        ("ws://user:secret#x@host/", "ws://..."),
        ("ws://user:secret", "ws://..."),
        ("ws://secret x/", "ws://..."),
        ("ftp://host/secret", "ftp://host/..."),
        ("//user:secret@host", "..."),
        ("user:secret@host", "..."),
        ("ws:user:secret@host", "..."),
        ("se cret://host", "..."),
        ("", "..."),
    ],
)
def test_url_error_shows_no_more_than_scheme_host_and_port(url, shown):
    error = WSInvalidURL(url, "reason")
    assert str(error) == f"{shown!r} isn't a valid URL: reason"
    assert error.url == url
    assert isinstance(error, ValueError)


def test_closed_error_says_what_was_seen():
    assert str(WSConnectionClosedError()) == "the connection is closed"
    assert vars(WSConnectionClosedError()) == dict.fromkeys(("cause", "close_code", "close_reason"))
    error = WSConnectionClosedError("gone", WSDisconnectCause.CLOSE_FRAME, 1012, "a\nb")
    assert str(error) == "gone (CLOSE_FRAME, CLOSE 1012 received: 'a\\nb')"
    assert (error.close_code, error.close_reason) == (1012, "a\nb")
    assert str(WSConnectionClosedError("gone", None, 0)) == "gone (CLOSE received)"


def test_closed_error_is_a_connection_error():
    with pytest.raises(ConnectionResetError):
        raise WSConnectionClosedError


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1011, 1014, 3000, 4999])
def test_protocol_error_takes_codes_that_may_be_sent(code):
    assert WSProtocolError(code, "text").code == code


@pytest.mark.parametrize("code", [0, -1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65536])
def test_protocol_error_refuses_other_codes(code):
    with pytest.raises(ValueError, match="code"):
        WSProtocolError(code, "text")


@pytest.mark.parametrize("code", ["1000", 1000.0, None, True])
def test_protocol_error_refuses_what_is_no_int(code):
    with pytest.raises(TypeError, match="code"):
        WSProtocolError(code, "text")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", b""),
        ("x" * 123, b"x" * 123),
        ("x" * 124, b"x" * 123),
        ("x" * 122 + "\u00e9", b"x" * 122),
        ("x" * 121 + "\u00e9z", b"x" * 121 + b"\xc3\xa9"),
        ("\U0001f600" * 31, "\U0001f600".encode() * 30),
        ("a\ud800b", b"a?b"),
        (ValueError("other object"), b"other object"),
    ],
)
def test_close_reason_is_cut_between_characters(message, reason):
    error = WSProtocolError(1011, message)
    assert error.close_reason == reason
    assert str(error) == str(message)


def test_violations_mirror_the_wire_reader():
    codes = dict(re.findall(r"\bPF_ERR_([A-Z0-9_]+)\s*=\s*(-\d+)", FRAME_H.read_text()))
    assert {violation.name: str(violation.value) for violation in WSViolation} == codes


def test_every_violation_has_code_and_section():
    assert set(VIOLATIONS) == {violation.value for violation in WSViolation}
    for code, entry in VIOLATIONS.items():
        assert entry.violation == code
        assert re.search(r"\(RFC 6455 \d+(\.\d+)*\)$", entry.text)
    close_codes = {entry.violation: entry.close_code for entry in VIOLATIONS.values()}
    assert close_codes.pop(WSViolation.FRAME_TOO_BIG) == 1009
    assert close_codes.pop(WSViolation.MESSAGE_TOO_BIG) == 1009
    assert close_codes.pop(WSViolation.TOO_MANY_FRAGMENTS) == 1009
    assert close_codes.pop(WSViolation.TEXT_UTF8) == 1007
    assert close_codes.pop(WSViolation.CLOSE_REASON_UTF8) == 1007
    assert set(close_codes.values()) == {1002}


@pytest.mark.parametrize("violation", list(WSViolation))
def test_peer_error_takes_violation_or_its_code(violation):
    error = WSPeerProtocolError(violation, "seen")
    same = WSPeerProtocolError(violation.value, "seen")
    assert error.violation is same.violation is violation
    assert error.code == same.code == VIOLATIONS[violation].close_code
    assert str(error) == str(same) == f"{VIOLATIONS[violation].text}: seen"
    assert error.close_reason.decode() == str(error)


def test_peer_error_refuses_unknown_violation():
    with pytest.raises(ValueError, match="violation"):
        WSPeerProtocolError(-99)
