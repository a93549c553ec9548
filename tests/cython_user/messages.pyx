# cython: language_level=3
# A third party's listeners of messages, as test_messages.py builds them outside of the package.

from picows_fast.core cimport WSFrame, WSMsgType, WSTransport
from picows_fast.layers.messages cimport MessageAssembler, WSMessageListener

import asyncio


cdef class Noted(WSMessageListener):
    """Keeps (method, ...) of what happened, and lets tests wait for it."""

    cdef public list events
    cdef public WSTransport transport
    cdef object changed

    def __init__(self, **settings):
        super().__init__(**settings)
        self.events = []
        self.changed = asyncio.Event()

    cdef note(self, tuple event):
        self.events.append(event)
        self.changed.set()

    async def until(self, condition):
        async def wait():
            while not condition():
                self.changed.clear()
                await self.changed.wait()
        await asyncio.wait_for(wait(), 20)

    cpdef on_ws_connected(self, WSTransport transport):
        self.transport = transport


cdef class AtCSpeed(Noted):
    """Reads the payload through its pointer."""

    cpdef on_ws_message(self, WSTransport transport, WSMsgType msg_type, WSFrame payload):
        self.note(("message", int(msg_type), payload.payload_ptr[:payload.payload_size]))

    cpdef on_ws_control(self, WSTransport transport, WSFrame frame):
        self.note(("control", int(frame.msg_type), frame.get_payload_as_bytes()))


cdef class WithDef(Noted):
    """Overrides in the way of Python."""

    def on_ws_message(self, transport, msg_type, payload):
        self.note(("message", int(msg_type), bytes(payload)))

    def on_ws_control(self, transport, frame):
        self.note(("control", int(frame.msg_type), bytes(frame)))


def assemble(frames, Py_ssize_t max_message_size):
    """The payloads of the messages in these frames."""
    cdef MessageAssembler assembler = MessageAssembler(max_message_size=max_message_size)
    cdef WSFrame frame, message
    messages = []
    for frame in frames:
        message = assembler.add(frame)
        if message is not None:
            messages.append(message.payload_ptr[:message.payload_size])
    return messages
