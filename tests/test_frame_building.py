"""codec: building frames and CLOSE payloads, and mask keys (RFC 6455 5.2, 5.3, 5.5.1)."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap

import pytest

from picows_fast import (
    FrameParser,
    WSCloseCode,
    build_close_payload,
    build_frame,
)

from . import needs
from .frames import BINARY, CLOSE, CONTINUATION, PING, PONG, SIZES, TEXT, content, encode, read


@pytest.mark.parametrize("size", SIZES)
def test_build_frame_sizes(size):
    payload = content(size)
    assert build_frame(BINARY, payload) == encode(BINARY, payload)
    masked = build_frame(BINARY, payload, mask=True)
    header = len(masked) - size
    assert masked == encode(BINARY, payload, key=masked[header - 4 : header])


@pytest.mark.parametrize("rsv", range(8))
@pytest.mark.parametrize("fin", [True, False])
def test_build_frame_flags(rsv, fin):
    flags = {"fin": fin, "rsv1": bool(rsv & 4), "rsv2": bool(rsv & 2), "rsv3": bool(rsv & 1)}
    for opcode in (CONTINUATION, TEXT, BINARY):
        assert build_frame(opcode, b"x", **flags) == encode(opcode, b"x", fin, rsv)


@pytest.mark.parametrize(
    "payload", [b"abc", bytearray(b"abc"), memoryview(b"abc"), "abc", memoryview(b"xabcx")[1:4]]
)
def test_build_frame_payloads(payload):
    assert build_frame(TEXT, payload) == b"\x81\x03abc"


def test_build_frame_text_and_nothing():
    assert build_frame(TEXT, "€") == b"\x81\x03" + "€".encode()
    assert build_frame(PING) == build_frame(PING, None) == build_frame(PING, "") == b"\x89\x00"


def test_build_frame_leaves_the_payload_as_it_was():
    payload = bytearray(content(300))
    build_frame(BINARY, payload, mask=True)
    assert payload == content(300)
    payload.append(0)  # no export is left behind


@pytest.mark.parametrize("opcode", [-1, 3, 7, 11, 15, 16, 17, 0x81, 1 << 20])
def test_build_frame_refuses_reserved_opcodes(opcode):
    with pytest.raises(ValueError, match="msg_type"):
        build_frame(opcode, b"")


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_build_frame_refuses_impossible_control_frames(opcode):
    assert len(build_frame(opcode, b"\x03\xe8" + b"x" * 123)) == 127
    with pytest.raises(ValueError, match="125"):
        build_frame(opcode, bytes(126))
    with pytest.raises(ValueError, match="fragmented"):
        build_frame(opcode, b"", fin=False)


@pytest.mark.parametrize("payload", [5, 1.5, ["x"], object()])
def test_build_frame_refuses_other_payloads(payload):
    with pytest.raises(TypeError):
        build_frame(TEXT, payload)


def test_build_frame_refuses_scattered_memory_and_surrogates():
    with pytest.raises(BufferError):
        build_frame(BINARY, memoryview(b"abcdef")[::2])
    with pytest.raises(UnicodeEncodeError):
        build_frame(TEXT, "\ud800")


@pytest.mark.parametrize(
    ("arguments", "payload"),
    [
        ((WSCloseCode.NO_INFO,), b""),
        ((0, ""), b""),
        ((WSCloseCode.OK,), b"\x03\xe8"),
        ((1000, "bye"), b"\x03\xe8bye"),
        ((1000, b"bye"), b"\x03\xe8bye"),
        ((4999, bytearray("€".encode())), b"\x13\x87" + "€".encode()),
        ((3000, "x" * 123), b"\x0b\xb8" + b"x" * 123),
        ((1014, memoryview(b"gone")), b"\x03\xf6gone"),
    ],
)
def test_build_close_payload(arguments, payload):
    assert build_close_payload(*arguments) == payload


@pytest.mark.parametrize(
    "arguments",
    [
        (0, "reason without a code"),
        *((code,) for code in (-1, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65536 + 1000)),
        (1000, "x" * 124),
        (1000, "€" * 42),
        (1000, b"\xff"),
        (1000, "€".encode()[:2]),
        (1000, b"\xed\xa0\x80"),
    ],
)
def test_build_close_payload_refuses(arguments):
    with pytest.raises(ValueError):
        build_close_payload(*arguments)


@pytest.mark.parametrize("arguments", [(), ("1000",), (1000, 5), (1000, object())])
def test_build_close_payload_refuses_types(arguments):
    with pytest.raises(TypeError):
        build_close_payload(*arguments)


def test_what_may_be_sent_is_what_may_come():
    for code in range(5100):
        try:
            payload = build_close_payload(code)
        except ValueError:
            payload = code.to_bytes(2, "big")
            allowed = False
        else:
            allowed = True
        _, error = read(FrameParser(is_client=True), encode(CLOSE, payload))
        assert (error is None) == allowed, code


# --- Mask keys -----------------------------------------------------------------------------------


def key_of(frame: bytes) -> bytes:
    return frame[2:6]


def test_mask_keys_do_not_repeat_and_look_random():
    count = 20_000
    keys = [key_of(build_frame(PING, b"", mask=True)) for _ in range(count)]
    # Chance makes two of 20,000 equal once in twenty runs, four times once in millions.
    assert len(set(keys)) > count - 4
    numbers = [int.from_bytes(key, "big") for key in keys]
    for bit in range(32):
        ones = sum(number >> bit & 1 for number in numbers)
        assert 0.45 * count < ones < 0.55 * count, bit
    # Neither does a key follow from the one before it by a fixed difference or mask.
    pairs = list(itertools.pairwise(numbers))
    assert len({a ^ b for a, b in pairs}) > count - 6
    assert len({b - a & 0xFFFFFFFF for a, b in pairs}) > count - 6


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return result.stdout


def test_mask_keys_differ_between_processes():
    code = """
        from picows_fast import build_frame
        for _ in range(100):
            print(build_frame(9, b"", mask=True)[2:6].hex())
    """
    first, second = (set(run_python(code).split()) for _ in range(2))
    assert len(first) == len(second) == 100
    assert not first & second


@needs.fork
def test_mask_keys_differ_after_fork():
    # In a process of its own: this one may have threads.
    output = run_python("""
        import os
        from picows_fast import build_frame
        def keys():
            return " ".join(build_frame(9, b"", mask=True)[2:6].hex() for _ in range(100))
        keys()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, keys().encode())
            os._exit(0)
        print(keys())
        os.waitpid(child, 0)
        print(os.read(reader, 65536).decode())
    """)
    parent, child = (set(line.split()) for line in output.splitlines())
    assert len(parent) == len(child) == 100
    assert not parent & child
