# cython: language_level=3
# A program for picows, with nothing changed but the name of the module it cimports from.

from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from picows.picows cimport (
    WSAutoPingStrategy,
    WSCloseCode,
    WSCloseHandshake,
    WSCloseInfo,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
)

import asyncio


cdef class EchoServer(WSListener):
    cdef WSTransport _transport

    cpdef on_ws_connected(self, WSTransport transport):
        self._transport = transport

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef uint8_t fin = frame.fin
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview(), fin, frame.rsv1, frame.rsv2, frame.rsv3)


cdef class EchoClient(WSListener):
    cdef:
        WSTransport _transport
        bytearray _buffer
        char *_buffer_ptr
        Py_ssize_t _size
        readonly object finished
        readonly list replies
        readonly int connected
        readonly int disconnected

    def __init__(self, bytes data):
        super().__init__()
        self._buffer = bytearray(14) + data
        self._buffer_ptr = self._buffer
        self._size = len(data)
        self.replies = []
        self.finished = asyncio.get_running_loop().create_future()

    cpdef on_ws_connected(self, WSTransport transport):
        self.connected += 1
        self._transport = transport
        self._transport.send_reuse_external_buffer(WSMsgType.BINARY, self._buffer_ptr + 14, self._size)
        self._transport.send_reuse_external_buffer(WSMsgType.TEXT, self._buffer_ptr + 14, 4, True, False, False, False)
        self._transport.send_reuse_external_bytearray(WSMsgType.BINARY, self._buffer, 14)

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef bytearray copied = bytearray(frame.payload_size)
        cdef char *copied_ptr = copied
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
            return
        memcpy(copied_ptr, frame.payload_ptr, <size_t> frame.payload_size)
        self.replies.append((frame.msg_type, bytes(copied)))
        if frame.last_in_buffer and len(self.replies) == 3:
            transport.send_close(WSCloseCode.OK, b"done")

    cpdef on_ws_disconnected(self, WSTransport transport):
        cdef WSCloseHandshake handshake = transport.close_handshake
        cdef WSCloseInfo recv = handshake.recv
        self.disconnected += 1
        self.finished.set_result((recv.code, recv.reason, handshake.recv_then_sent))

    cpdef pause_writing(self):
        pass

    cpdef resume_writing(self):
        pass

    cpdef send_user_specific_ping(self, WSTransport transport):
        transport.send_ping()

    cpdef is_user_specific_pong(self, WSFrame frame):
        return frame.msg_type == WSMsgType.PONG


def strategies():
    return WSAutoPingStrategy.PING_WHEN_IDLE, WSAutoPingStrategy.PING_PERIODICALLY
