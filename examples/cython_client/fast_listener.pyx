# cython: language_level=3
"""A listener whose callback is compiled: the transport calls it through a C vtable."""

from libc.string cimport memchr

from picows_fast.core cimport WSFrame, WSListener, WSMsgType, WSTransport


cdef class TickCounter(WSListener):
    """Counts the frames and the commas in them, and ends the connection after `limit` frames."""

    cdef:
        readonly Py_ssize_t frames
        readonly Py_ssize_t commas
        Py_ssize_t limit

    def __init__(self, Py_ssize_t limit):
        self.limit = limit

    # cpdef, as in the base class; the argument types are part of the signature.
    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef char *position = frame.payload_ptr
        cdef char *end = position + frame.payload_size
        if frame.msg_type != WSMsgType.TEXT:
            return
        self.frames += 1
        # Straight over the receive buffer: no bytes or str object is made. The pointer is good until
        # this method returns; to keep the data, keep `frame` or copy the bytes.
        while position != end:
            position = <char*> memchr(position, c",", <size_t> (end - position))
            if position == NULL:
                break
            self.commas += 1
            position += 1
        if self.frames == self.limit:
            transport.send_close(1000)
