# cython: language_level=3
# A third party's listeners, as test_cython.py builds them outside of the package. Everything of picows_fast is
# cimported from picows_fast.core.

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from picows_fast.core cimport (
    PauseOwner,
    WSAutoPingStrategy,
    WSCloseCode,
    WSCloseHandshake,
    WSCloseInfo,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    layer_state,
    new_slot,
    set_layer_state,
)

import asyncio

cdef int HEADER_ROOM = 14
cdef enum:
    HEADER_ROOM_SIZE = 64
cdef int CANARY = 0x5A


cdef class Noted(WSListener):
    """Keeps (method, ...) of what happened, and lets tests wait for it."""

    cdef public list events
    cdef object changed

    def __init__(self):
        self.events = []
        self.changed = asyncio.Event()

    cpdef note(self, tuple event):
        self.events.append(event)
        self.changed.set()

    async def until(self, condition):
        async def wait():
            while not condition():
                self.changed.clear()
                await self.changed.wait()
        await asyncio.wait_for(wait(), 20)

    def names(self):
        return [event[0] for event in self.events]


cdef class Full(Noted):
    """Overrides every method with cpdef. Raises in the method that is named by `fault`."""

    cdef public str fault
    cdef public bint silent         # a ping is not answered
    cdef public bint notifies       # pongs are found while parsing, not by is_user_specific_pong
    cdef public WSTransport transport

    def __init__(self, str fault=None, bint silent=False, bint notifies=False):
        super().__init__()
        self.fault = fault
        self.silent = silent
        self.notifies = notifies

    cdef raise_in(self, str method):
        if self.fault == method:
            raise LookupError(method)

    cpdef on_ws_connected(self, WSTransport transport):
        self.transport = transport
        self.note(("on_ws_connected", transport.is_client_side))
        self.raise_in("on_ws_connected")

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef bytes payload = frame.payload_ptr[:frame.payload_size]
        cdef bint is_text = frame.msg_type == WSMsgType.TEXT
        self.note((
            "on_ws_frame", frame.msg_type, is_text, payload, frame.fin, frame.last_in_buffer, frame.tail_size,
        ))
        self.raise_in("on_ws_frame")
        if frame.msg_type == WSMsgType.CLOSE:
            if frame.get_close_code() == WSCloseCode.GOING_AWAY:
                transport.disconnect(graceful=False)
            else:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
        elif is_text and payload == b"user ping":
            if not self.silent:
                transport.send(WSMsgType.TEXT, b"user pong")
        elif is_text and payload == b"user pong":
            transport.notify_user_specific_pong_received()
        elif not transport.is_client_side:
            transport.send(frame.msg_type, payload, frame.fin)

    cpdef on_ws_disconnected(self, WSTransport transport):
        self.note(("on_ws_disconnected",))
        self.raise_in("on_ws_disconnected")

    cpdef send_user_specific_ping(self, WSTransport transport):
        self.note(("send_user_specific_ping",))
        self.raise_in("send_user_specific_ping")
        transport.send(WSMsgType.TEXT, b"user ping")

    cpdef is_user_specific_pong(self, WSFrame frame):
        self.note(("is_user_specific_pong",))
        self.raise_in("is_user_specific_pong")
        return (
            not self.notifies and frame.msg_type == WSMsgType.TEXT and frame.payload_size == 9
            and memcmp(frame.payload_ptr, b"user pong", 9) == 0
        )

    cpdef pause_writing(self):
        self.note(("pause_writing",))
        self.raise_in("pause_writing")

    cpdef resume_writing(self):
        self.note(("resume_writing",))
        self.raise_in("resume_writing")


cdef class Plain(Noted):
    """Overrides every method with def, which Cython does not put into the vtable."""

    def on_ws_connected(self, WSTransport transport):
        self.note(("on_ws_connected",))

    def on_ws_frame(self, WSTransport transport, WSFrame frame):
        self.note(("on_ws_frame", "def"))
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
        elif not transport.is_client_side:
            transport.send(frame.msg_type, frame.payload_ptr[:frame.payload_size])

    def on_ws_disconnected(self, WSTransport transport):
        self.note(("on_ws_disconnected",))

    def send_user_specific_ping(self, WSTransport transport):
        self.note(("send_user_specific_ping",))
        transport.send(WSMsgType.TEXT, b"user ping")

    def is_user_specific_pong(self, WSFrame frame):
        self.note(("is_user_specific_pong",))
        return frame.payload_ptr[:frame.payload_size] == b"user ping"

    def pause_writing(self):
        self.note(("pause_writing",))

    def resume_writing(self):
        self.note(("resume_writing",))


cdef class PlainOnFull(Full):
    def on_ws_frame(self, WSTransport transport, WSFrame frame):
        self.note(("on_ws_frame", "def on cpdef"))


cdef class FullOnPlain(Plain):
    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        self.note(("on_ws_frame", "cpdef on def"))


cdef class Nothing(Full):
    """Overrides nothing itself."""


cdef class Collector(WSListener):
    """Keeps the payloads of TEXT frames, in order; `done` is set when `expected` of them have come, or the end."""

    cdef public list payloads
    cdef public object done
    cdef Py_ssize_t expected

    def __init__(self, Py_ssize_t expected):
        self.payloads = []
        self.done = asyncio.Event()
        self.expected = expected

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        if frame.msg_type == WSMsgType.TEXT and frame.fin:
            self.payloads.append(frame.payload_ptr[:frame.payload_size])
            if len(self.payloads) == self.expected:
                self.done.set()

    cpdef on_ws_disconnected(self, WSTransport transport):
        self.done.set()


def send_reusing(WSTransport transport, WSMsgType msg_type, bytes payload, bint fin=True, bint rsv1=False):
    """Send from memory that has 14 bytes in front of the payload. Returns the payload as it is afterwards.

    Raises MemoryError if anything outside of the 14 bytes and the payload was written to.
    """
    cdef Py_ssize_t size = len(payload)
    cdef Py_ssize_t total = 16 + HEADER_ROOM + size + 16
    cdef char *memory = <char*> malloc(total)
    cdef char *buffer = memory + 16 + HEADER_ROOM
    cdef Py_ssize_t i
    try:
        memset(memory, CANARY, total)
        memcpy(buffer, <char*> payload, size)
        if fin and not rsv1:
            transport.send_reuse_external_buffer(msg_type, buffer, size)
        else:
            transport.send_reuse_external_buffer(msg_type, buffer, size, fin, rsv1)
        for i in range(16):
            if memory[i] != CANARY or buffer[size + i] != CANARY:
                raise MemoryError("written outside of the buffer")
        return buffer[:size]
    finally:
        memset(memory, 0, total)    # it is ours again: the bytes on their way must be copies
        free(memory)


def call_everything(WSTransport transport):
    """Each of the transport's methods by its C signature."""
    transport.send(WSMsgType.TEXT, "text")
    transport.send(WSMsgType.BINARY, b"part", False)
    transport.send(WSMsgType.CONTINUATION, None, True)
    transport.send_reuse_external_bytearray(WSMsgType.BINARY, bytearray(14) + b"array", 14)
    transport.send_ping()
    transport.send_ping(b"ping")
    transport.send_pong(b"pong")
    transport.notify_user_specific_pong_received()
    transport.cork()
    transport.uncork()
    transport.pause_reading()
    transport.resume_reading()
    transport.send_close(WSCloseCode.OK, b"bye")


def close_summary(WSTransport transport):
    """The closing handshake, read through C fields."""
    cdef WSCloseHandshake handshake = transport.close_handshake
    cdef WSCloseInfo sent = handshake.sent
    cdef WSCloseInfo recv = handshake.recv
    return sent.code == WSCloseCode.OK, sent.reason, recv.code == WSCloseCode.OK, recv.reason, handshake.recv_then_sent


def enum_objects():
    """What C enum values become as Python objects."""
    cdef WSMsgType msg_type = WSMsgType.PONG
    cdef WSCloseCode code = WSCloseCode.GOING_AWAY
    cdef WSAutoPingStrategy strategy = WSAutoPingStrategy.PING_PERIODICALLY
    return msg_type, code, strategy


def timestamps(WSFrame frame):
    """When the frame came, through C fields: (timestamp, age, hardware timestamp), nanoseconds."""
    cdef long long age
    with nogil:
        age = frame.age()
    return frame.recv_timestamp_ns, age, frame.recv_hardware_timestamp_ns


cdef class Ending(Noted):
    """Notes that the end begins, and what sending returns then and before."""

    cdef char[HEADER_ROOM_SIZE] memory

    cdef int send_one(self, WSTransport transport) except -1:
        return transport.send_reuse_external_buffer(WSMsgType.BINARY, self.memory + HEADER_ROOM, 4)

    cpdef on_ws_connected(self, WSTransport transport):
        self.note(("connected", self.send_one(transport)))
        transport.send_close(WSCloseCode.OK)

    cpdef on_ws_closing(self, WSTransport transport):
        self.note(("closing", self.send_one(transport)))

    cpdef on_ws_disconnected(self, WSTransport transport):
        self.note(("disconnected", self.send_one(transport)))


# What a layer calls of a transport.

pause_owners = (PauseOwner.QUEUE, PauseOwner.HANDSHAKE)


def pause_for(WSTransport transport, PauseOwner owner):
    transport.pause_for(owner)


def resume_for(WSTransport transport, PauseOwner owner):
    transport.resume_for(owner)


def make_slot():
    return new_slot()


def state_of(WSTransport transport, Py_ssize_t slot):
    return layer_state(transport, slot)


def keep_state(WSTransport transport, Py_ssize_t slot, state):
    set_layer_state(transport, slot, state)


def keep_times(WSTransport transport):
    transport.keep_times()


def last_data_received(WSTransport transport):
    return transport.last_data_received()
