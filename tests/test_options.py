"""options: every default, every check, and the logger that a name stands for."""

from __future__ import annotations

import inspect
import logging
import math
import pickle
import socket
import ssl
from dataclasses import FrozenInstanceError, fields, replace
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from multidict import CIMultiDict

import picows_fast
from picows_fast.options import (
    ClientOptions,
    ConnectionOptions,
    ServerOptions,
    handshake_limits,
)
from picows_fast.protocol.http.messages import HandshakeLimits
from picows_fast.typed_settings import ClientSettings, ServerSettings

CLASSES = [ConnectionOptions, ClientOptions, ServerOptions]
ALL_SETTINGS = [(cls, declared) for cls in CLASSES[1:] for declared in fields(cls)]

FLAGS = [
    "disconnect_on_exception",
    "enable_auto_ping",
    "enable_auto_pong",
    "enable_auto_close",
    "validate_sequence",
]
SECONDS = [
    "websocket_handshake_timeout",
    "close_timeout",
    "auto_ping_idle_timeout",
    "auto_ping_reply_timeout",
    "ssl_handshake_timeout",
    "ssl_shutdown_timeout",
]
COUNTS = ["max_head_size", "max_header_count"]
POSITIVE_SIZES = ["max_frame_size", "read_buffer_init_size", "max_write_backlog"]
SIZES = [*POSITIVE_SIZES, "write_high_watermark", "write_low_watermark"]


def test_defaults_are_those_of_picows() -> None:
    for options, ping in ((ClientOptions(), 10), (ServerOptions(), 20)):
        assert options.disconnect_on_exception is True
        assert options.websocket_handshake_timeout == 5
        assert options.enable_auto_ping is False
        assert options.auto_ping_idle_timeout == ping
        assert options.auto_ping_reply_timeout == ping
        assert options.auto_ping_strategy == 1
        assert options.enable_auto_pong is True
        assert options.max_frame_size == 10 * 1024 * 1024
        assert options.read_buffer_init_size == 16 * 1024
        assert options.logger_name is None
        assert options.use_aiofastnet is None
    assert ClientOptions().max_redirects == 5


def test_defaults_of_what_picows_has_not() -> None:
    options = ConnectionOptions()
    assert options.close_timeout == 5.0
    assert options.enable_auto_close is False
    assert options.validate_sequence is True
    assert options.write_high_watermark == 64 * 1024
    assert options.write_low_watermark == 16 * 1024
    assert options.max_write_backlog == 64 * 1024 * 1024
    assert (options.max_head_size, options.max_header_count) == (16 * 1024, 128)
    assert ClientOptions().max_refusal_size == 64 * 1024
    assert ClientOptions().redirect_keeps == ()


@pytest.mark.parametrize(
    ("cls", "declared"), ALL_SETTINGS, ids=lambda x: getattr(x, "name", getattr(x, "__name__", ""))
)
def test_each_setting_has_default_check_and_documentation(cls: Any, declared: Any) -> None:
    assert getattr(cls, declared.name) == declared.default
    assert declared.kw_only
    assert callable(declared.metadata["check"])
    assert declared.metadata["doc"].endswith(".")
    # It is checked where it is given, but no object checks what it was not given.
    declared.metadata["check"](declared.name, declared.default)


def test_options_are_frozen_and_keyword_only() -> None:
    options = ConnectionOptions()
    with pytest.raises(FrozenInstanceError):
        options.max_frame_size = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        ConnectionOptions(True)  # type: ignore[call-arg]

    with pytest.raises(FrozenInstanceError):
        del options.max_frame_size


def test_options_are_values() -> None:
    options = ClientOptions(max_redirects=3, close_timeout=5)
    same = ClientOptions(max_redirects=3)
    assert options == same == pickle.loads(pickle.dumps(options))
    assert hash(options) == hash(same)
    assert options != ClientOptions()
    assert ConnectionOptions() != ClientOptions()
    assert ServerOptions() != object()
    changed = replace(options, max_redirects=4)
    assert (changed.max_redirects, changed.close_timeout) == (4, 5)
    assert options.max_redirects == 3
    assert changed == eval(repr(changed), {"ClientOptions": ClientOptions})
    with pytest.raises(ValueError, match="max_redirects"):
        replace(options, max_redirects=-1)


@pytest.mark.parametrize(
    ("call", "typed"),
    [(picows_fast.ws_connect, ClientSettings), (picows_fast.ws_create_server, ServerSettings)],
)
def test_every_setting_is_typed(call: Any, typed: Any) -> None:
    """Written out in the signature, or in the TypedDict for the rest, with the option's type."""
    options = {picows_fast.ws_connect: ClientOptions, picows_fast.ws_create_server: ServerOptions}
    parameters = inspect.signature(call).parameters
    settings = options[call].__dataclass_fields__
    rest = {name for name in settings if name not in parameters}
    assert set(typed.__annotations__) == rest
    for name in rest:
        given = typed.__annotations__[name].__forward_arg__
        assert given == str(settings[name].type), name


@pytest.mark.parametrize(
    ("call", "name", "meant"),
    [
        (picows_fast.ws_connect, "tiemout", "close_timeout"),
        (picows_fast.ws_connect, "qqq", None),
        (picows_fast.ws_connect, "enable_autoping", "enable_auto_ping"),
        (picows_fast.ws_connect, "ssl", "ssl_context"),
        (picows_fast.ws_create_server, "max_conections", "max_connections"),
        (picows_fast.ws_create_server, "ssl_context", "ssl"),
    ],
)
async def test_an_unknown_setting_is_refused_in_the_name_of_the_call(
    call: Any, name: str, meant: str | None
) -> None:
    with pytest.raises(TypeError) as caught:
        await call(lambda *request: None, "ws://127.0.0.1:1/", **{name: None})
    hint = "" if meant is None else f"; did you mean {meant!r}?"
    assert str(caught.value) == (
        f"{call.__name__}() got an unexpected keyword argument {name!r}{hint}"
    )


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="max_frame_sise"):
        ConnectionOptions(max_frame_sise=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [0, 1, None, "yes"])
def test_a_flag_is_a_bool(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be a bool, got {type(value).__name__}$"):
        ConnectionOptions(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, -math.inf])
def test_seconds_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be (positive|finite), got "):
        ConnectionOptions(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [True, "5", b"5", Fraction(1, 2), [5]])
def test_seconds_of_a_wrong_type(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be a number of seconds, got "):
        ConnectionOptions(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [1, 0.001, 86400.5])
def test_seconds_may_be_int_or_float(name: str, value: float) -> None:
    assert getattr(ConnectionOptions(**{name: value}), name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "may_be_none"),
    [
        ("websocket_handshake_timeout", True),
        ("max_write_backlog", True),
        ("ssl_handshake_timeout", True),
        ("close_timeout", False),
        ("auto_ping_idle_timeout", False),
        ("max_frame_size", False),
        ("write_high_watermark", False),
    ],
)
def test_none_where_it_means_off(name: str, may_be_none: bool) -> None:
    if may_be_none:
        assert getattr(ConnectionOptions(**{name: None}), name) is None  # type: ignore[arg-type]
    else:
        with pytest.raises(TypeError, match=rf"^{name} must be .*, got NoneType$"):
            ConnectionOptions(**{name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*SIZES, *COUNTS])
@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_a_size_is_an_int(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be an int, got {type(value).__name__}$"):
        ConnectionOptions(**{name: value})


@pytest.mark.parametrize("name", [*POSITIVE_SIZES, *COUNTS])
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_is_positive(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be positive, got {value}$"):
        ConnectionOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POSITIVE_SIZES)
def test_a_size_fits_the_length_field(name: str) -> None:
    assert ConnectionOptions(**{name: 2**63 - 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"^{name} must be less than 2\*\*63"):
        ConnectionOptions(**{name: 2**63})  # type: ignore[arg-type]


def test_watermarks() -> None:
    options = ConnectionOptions(write_low_watermark=0, write_high_watermark=0, max_write_backlog=1)
    assert options.write_high_watermark == 0
    with pytest.raises(ValueError, match="write_low_watermark must not be negative, got -1"):
        ConnectionOptions(write_low_watermark=-1)
    with pytest.raises(
        ValueError, match=r"write_low_watermark must not exceed write_high_watermark \(10\), got 11"
    ):
        ConnectionOptions(write_low_watermark=11, write_high_watermark=10)
    with pytest.raises(
        ValueError, match=r"max_write_backlog must be at least write_high_watermark \(65536\)"
    ):
        ConnectionOptions(max_write_backlog=65535)
    assert ConnectionOptions(write_high_watermark=2**30, max_write_backlog=None)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_reply_timeout_longer_than_the_idle_timeout_is_legal(cls: Any) -> None:
    options = cls(enable_auto_ping=True, auto_ping_idle_timeout=1, auto_ping_reply_timeout=30)
    assert (options.auto_ping_idle_timeout, options.auto_ping_reply_timeout) == (1, 30)


class Strategy(IntEnum):
    PING_WHEN_IDLE = 1
    PING_PERIODICALLY = 2
    OTHER = 3


def test_auto_ping_strategy() -> None:
    for strategy in (1, 2, Strategy.PING_WHEN_IDLE, Strategy.PING_PERIODICALLY):
        assert ConnectionOptions(auto_ping_strategy=strategy).auto_ping_strategy is strategy
    for wrong in (0, 3, Strategy.OTHER):
        with pytest.raises(ValueError, match="auto_ping_strategy must be a WSAutoPingStrategy"):
            ConnectionOptions(auto_ping_strategy=wrong)
    for mistyped in (True, 1.0, "PING_WHEN_IDLE", None):
        with pytest.raises(TypeError, match="auto_ping_strategy must be an int"):
            ConnectionOptions(auto_ping_strategy=mistyped)  # type: ignore[arg-type]


def test_settings_for_compatibility_take_anything() -> None:
    for value in (None, True, False, "x"):
        ClientOptions(use_aiofastnet=value, zero_copy_unsafe_ssl_write=value)  # type: ignore[arg-type]


def test_seconds_that_may_be_zero() -> None:
    for seconds in (0, 0.5):
        assert ClientOptions(busy_poll=seconds).busy_poll == seconds
    with pytest.raises(ValueError, match="busy_poll must not be negative, got -1"):
        ClientOptions(busy_poll=-1)
    with pytest.raises(TypeError, match="busy_poll must be a number of seconds, got bool"):
        ClientOptions(busy_poll=False)


@pytest.mark.parametrize("cls", [ClientOptions, ServerOptions])
def test_handshake_limits(cls: Any) -> None:
    assert handshake_limits(cls()) is handshake_limits(cls()) == HandshakeLimits()
    options = cls(max_head_size=1000, max_header_count=20)
    assert handshake_limits(options) == HandshakeLimits(max_head_size=1000, max_header_count=20)
    if cls is ClientOptions:
        limits = handshake_limits(cls(max_refusal_size=10))
        assert limits == HandshakeLimits(max_body_size=10)


@pytest.mark.parametrize("cls", [ClientOptions, ServerOptions])
def test_subprotocols(cls: Any) -> None:
    assert cls(subprotocols=["a.v1", "b"]).subprotocols == ["a.v1", "b"]
    assert cls(subprotocols=()).subprotocols == ()


@pytest.mark.parametrize(
    "headers",
    [
        {"A": "1", "B": "2"},
        [("A", "1"), ("B", "2")],
        CIMultiDict([("A", "1"), ("B", "2")]),
        iter([("A", "1"), ["B", "2"]]),
    ],
)
def test_extra_headers_can_be_read_twice(headers: Any) -> None:
    options = ClientOptions(extra_headers=headers)
    assert options.extra_headers == (("A", "1"), ("B", "2"))


def test_extra_headers_keep_repeated_names() -> None:
    headers = CIMultiDict([("A", "1"), ("A", "2")])
    assert ClientOptions(extra_headers=headers).extra_headers == (("A", "1"), ("A", "2"))


@pytest.mark.parametrize("headers", ["A: 1", b"A", 1, ["A"], [("A",)], {"A": 1}, [(b"A", "1")]])
def test_extra_headers_of_a_wrong_type(headers: Any) -> None:
    with pytest.raises(TypeError, match=r"^extra_headers must "):
        ClientOptions(extra_headers=headers)


def test_secrets_are_not_shown() -> None:
    options = ClientOptions(
        proxy="http://user:hunter2@proxy.test",
        extra_headers={"Authorization": "hunter2"},
        subprotocols=["token.hunter2"],
    )
    assert "hunter2" not in repr(options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ssl_context", True),
        ("proxy_ssl_context", "x"),
        ("ssl_session", object()),
        ("server_hostname", b"x"),
        ("proxy", b"http://x"),
        ("socket_factory", socket.AF_INET),
        ("sock", 3),
        ("unix_path", 3),
        ("local_addr", "127.0.0.1"),
        ("local_addr", ("127.0.0.1",)),
        ("local_addr", (1, 2)),
        ("local_addr", ("127.0.0.1", "0")),
        ("max_redirects", 1.0),
        ("max_refusal_size", 1.0),
        ("redirect_keeps", "ssl_context"),
        ("redirect_keeps", {"ssl_context"}),
        ("redirect_keeps", [b"Cookie"]),
        ("user_agent", b"feed/1"),
        ("happy_eyeballs_delay", "fast"),
        ("interleave", True),
        ("family", "ipv4"),
    ],
)
def test_client_settings_of_a_wrong_type(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name}"):
        ClientOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_redirects", -1),
        ("max_refusal_size", 0),
        ("redirect_keeps", ["X-A: b"]),
        ("user_agent", ""),
        ("user_agent", "a\r\nX-Injected: yes"),
        ("user_agent", "fünf"),
        ("proxy", ""),
        ("local_addr", ("127.0.0.1", 65536)),
        ("happy_eyeballs_delay", 0),
        ("interleave", -1),
        ("logger_name", ""),
    ],
)
def test_client_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}"):
        ClientOptions(**{name: value})


def test_client_settings_that_exclude_each_other() -> None:
    with socket.socket() as sock:
        for together in (
            {"sock": sock, "socket_factory": lambda url: None},
            {"sock": sock, "local_addr": ("127.0.0.1", 0)},
            {"unix_path": "x.sock", "proxy": "http://x"},
            {"unix_path": "x.sock", "local_addr": ("127.0.0.1", 0)},
        ):
            with pytest.raises(ValueError, match=f"^{' and '.join(together)} must not be used"):
                ClientOptions(**together)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("ssl", True, TypeError),
        ("sock", 3, TypeError),
        ("backlog", 0, ValueError),
        ("backlog", 1.5, TypeError),
        ("reuse_address", 1, TypeError),
        ("reuse_port", 1, TypeError),
        ("keep_alive", 1, TypeError),
        ("start_serving", None, TypeError),
        ("family", None, TypeError),
    ],
)
def test_server_settings(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{name} must be "):
        ServerOptions(**{name: value})


def test_server_settings_that_exclude_each_other() -> None:
    with socket.socket() as sock, pytest.raises(ValueError, match="sock and unix_path"):
        ServerOptions(sock=sock, unix_path="x.sock")


def test_tls_settings_are_kept() -> None:
    context = ssl.create_default_context()
    assert ClientOptions(ssl_context=context).ssl_context is context
    assert ServerOptions(ssl=context).ssl is context


def test_logger_name() -> None:
    adapter = logging.LoggerAdapter(logging.getLogger("x"), {})
    assert ConnectionOptions(logger_name=adapter).logger_name is adapter
    assert ConnectionOptions(logger_name="feed").logger_name == "feed"
    with pytest.raises(TypeError, match="logger_name must be a str or a logger, got int"):
        ConnectionOptions(logger_name=3)
