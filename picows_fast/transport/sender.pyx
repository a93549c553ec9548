# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The sending half of a connection: :class:`FrameSender`, of which ``WSTransport`` inherits. See ``sending.pxd``."""

import weakref

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ..protocol.codec cimport (
    MAX_HEADER_SIZE,
    WSCloseCode,
    build_close_payload,
    check_frame,
    new_mask_key,
    write_frame,
)
from ..net.stream cimport new_receive_buffer
from .counters cimport count_frame
from ..protocol.wire cimport pf_mask, pf_write_frame_header

from ..protocol.codec import WSMsgType as MsgType

cimport cython


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from *:
    """
    #include "transport/msg_type_first.h"
    PF_MSG_TYPE_FIRST(send)
    """
    void pf_explain_send(object type)

#: Log level below DEBUG for events of the data path.
PICOWS_DEBUG_LL = 9

cdef enum:
    # Unmasked payloads above this go out from where they are: by then a copy costs more than a second vector.
    COPY_LIMIT = 16 * 1024

cdef object _scratch_buffers = weakref.WeakKeyDictionary()


cdef class _Outbox:

    cdef int may_write(self) except -1:
        return 0

    cdef int write_before(self) except -1:
        return 0

    cdef int ended(self) except -1:
        return 0


@cython.auto_pickle(False)
cdef class FrameSender(StreamHandler):
    """The sending half of a :class:`WSTransport`. ``is_client_side`` and ``is_close_frame_sent`` are bool."""

    cdef int _share_scratch(self, loop) except -1:
        scratch = _scratch_buffers.get(loop)
        if scratch is None:
            scratch = _scratch_buffers[loop] = new_receive_buffer(SCRATCH_SIZE + MAX_HEADER_SIZE)
        self.scratch_owner = scratch
        self.scratch = self.scratch_owner.data
        return 0

    @cython.final
    cdef int _check_thread(self, str method) except -1:
        if PyThread_get_thread_ident() != self.thread_id:
            raise RuntimeError(
                f"{method}() must be called from the event loop's thread; use loop.call_soon_threadsafe()"
            )
        return 0

    cpdef send(self, WSMsgType msg_type, message, bint fin=True, bint rsv1=False, bint rsv2=False, bint rsv3=False):
        """Send one frame (RFC 6455 5.2, 6.1).

        :param msg_type: a :class:`WSMsgType`
        :param message: payload: str (sent as UTF-8), bytes-like or None; it may be reused at once
        :param fin: False if fragments of the same message follow
        :param rsv1: reserved bit, for extensions; likewise rsv2, rsv3
        :returns: bool: True if the frame was taken, to be sent now or after what waits; False if it goes nowhere, as
            the connection is closing or closed
        :raises WSConnectionClosedError: instead of returning False, with the setting ``raise_if_not_sent``; not for
            CLOSE
        :raises ValueError: reserved opcode; a control frame that is fragmented or above 125 bytes; a bad close code
        :raises TypeError: message is neither str, bytes-like nor None
        :raises RuntimeError: called from another thread
        """
        cdef Py_buffer view
        cdef const char *text
        cdef Py_ssize_t size = 0
        cdef unsigned int rsv = (4 if rsv1 else 0) | (2 if rsv2 else 0) | (1 if rsv3 else 0)
        cdef int taken
        self._check_thread("send")
        if isinstance(message, bytes):
            taken = self._send_frame(
                msg_type, <const uint8_t*> PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message), fin, rsv
            )
        elif isinstance(message, str):
            text = PyUnicode_AsUTF8AndSize(message, &size)
            taken = self._send_frame(msg_type, <const uint8_t*> text, size, fin, rsv)
        elif message is None:
            taken = self._send_frame(msg_type, NULL, 0, fin, rsv)
        else:
            PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
            try:
                taken = self._send_frame(msg_type, <const uint8_t*> view.buf, view.len, fin, rsv)
            finally:
                PyBuffer_Release(&view)
        return True if taken else self._not_sent(msg_type)

    cpdef send_reuse_external_bytearray(self, WSMsgType msg_type, bytearray buffer, Py_ssize_t msg_offset,
                                        bint fin=True, bint rsv1=False, bint rsv2=False, bint rsv3=False):
        """Send ``buffer[msg_offset:]`` as one frame, using the 14 bytes before it for the frame's header.

        What those bytes hold afterwards is undefined; the payload is unchanged, and free for reuse.

        :param msg_offset: bytes; at least 14
        :returns: bool, as :meth:`send`
        :raises WSConnectionClosedError: as for :meth:`send`
        :raises ValueError: msg_offset is below 14 or behind the end, or as for :meth:`send`
        """
        cdef Py_buffer view
        if buffer is None:
            raise TypeError("buffer must be a bytearray, got None")
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)     # it must not be resized meanwhile
        try:
            if not MAX_HEADER_SIZE <= msg_offset <= view.len:
                raise ValueError(f"msg_offset must be in {MAX_HEADER_SIZE}..{view.len}, got {msg_offset}")
            return bool(self.send_reuse_external_buffer(
                msg_type, <char*> view.buf + msg_offset, view.len - msg_offset, fin, rsv1, rsv2, rsv3
            ))
        finally:
            PyBuffer_Release(&view)

    cdef int send_reuse_external_buffer(self, WSMsgType msg_type, char* buffer, Py_ssize_t size, bint fin=True,
                                        bint rsv1=False, bint rsv2=False, bint rsv3=False) except -1:
        cdef unsigned int rsv = (4 if rsv1 else 0) | (2 if rsv2 else 0) | (1 if rsv3 else 0)
        cdef Py_ssize_t header_size
        cdef uint8_t[MAX_HEADER_SIZE] header
        self._check_thread("send_reuse_external_buffer")
        if self.is_client_side or msg_type == WSMsgType.CLOSE or size <= COPY_LIMIT // 16:
            # Masking makes a copy anyway, and leaves the caller's bytes as they are.
            if not self._send_frame(msg_type, <const uint8_t*> buffer, size, fin, rsv):
                self._not_sent(msg_type)
                return 0
            return 1
        check_frame(msg_type, fin, size)
        if not self._can_send():
            self._not_sent(msg_type)
            return 0
        if msg_type < WSMsgType.CLOSE and (self.outbox is not None or self.in_message == fin):
            if not self._sending_data(fin):
                self._not_sent(msg_type)
                return 0
        header_size = <Py_ssize_t> pf_write_frame_header(header, <unsigned int> msg_type, fin, rsv, <size_t> size, NULL)
        memcpy(buffer - header_size, header, <size_t> header_size)
        self._count_sent(msg_type, size)
        self.stream.writev(<const uint8_t*> buffer - header_size, header_size + size, NULL, 0)
        if not self._written():
            self._not_sent(msg_type)
            return 0
        return 1

    @cython.final
    cdef int _send_frame(self, int msg_type, const uint8_t *payload, Py_ssize_t size, bint fin,
                         unsigned int rsv) except -1:
        cdef uint8_t[MAX_HEADER_SIZE] header
        cdef Py_ssize_t header_size
        if msg_type != WSMsgType.TEXT and msg_type != WSMsgType.BINARY:
            check_frame(msg_type, fin, size)
            if msg_type == WSMsgType.CLOSE:
                return self._send_close_payload(PyBytes_FromStringAndSize(<const char*> payload, size))
        if not self._can_send():
            return 0
        if msg_type < WSMsgType.CLOSE and (self.outbox is not None or self.in_message == fin):
            if not self._sending_data(fin):
                return 0
        if self.trace:
            self.logger.log(PICOWS_DEBUG_LL, "%r: sending %s, %d bytes", self, MsgType(msg_type).name, size)
            if not self._can_send():
                return 0
        self._count_sent(msg_type, size)
        if size <= (SCRATCH_SIZE if self.is_client_side else COPY_LIMIT):
            size = write_frame(self.scratch, <unsigned int> msg_type, fin, rsv, payload, size, self.is_client_side)
            self.stream.writev(self.scratch, size, NULL, 0)
        elif self.is_client_side:
            self._send_large_masked(msg_type, payload, size, fin, rsv)
        else:
            header_size = <Py_ssize_t> pf_write_frame_header(
                header, <unsigned int> msg_type, fin, rsv, <size_t> size, NULL
            )
            self.stream.writev(header, header_size, payload, size)
        return self._written()

    @cython.final
    cdef inline int _written(self) except -1:
        """A whole frame was written. Returns whether it was taken."""
        if self.stream.closing or self.stream.write_failed:
            return 0
        if self.outbox is not None and not self.in_message:
            self.outbox.may_write()
        return self._check_backlog()

    @cython.final
    cdef object _not_sent(self, int msg_type):
        """A frame of the application's went nowhere. What CLOSE is for has come about without it."""
        if self.raises_if_not_sent and msg_type != WSMsgType.CLOSE:
            raise self._closed_error("the frame was not sent")
        return False

    @cython.final
    cdef int _count_sent(self, int msg_type, Py_ssize_t size) noexcept:
        count_frame(&self.traffic.sent[msg_type], size)
        if self.shared_traffic != NULL:
            count_frame(&self.shared_traffic.sent[msg_type], size)
        return 0

    @cython.final
    cdef bint _can_send(self) noexcept:
        return not (self.state_code == CONNECTING or self.is_close_frame_sent or self.stream.closing)

    @cython.final
    cdef int _sending_data(self, bint fin) except -1:
        """The application sends a data frame: no frame of an outbox may come between fragments (RFC 6455 5.4).

        Returns whether it still can be sent.
        """
        if self.outbox is not None and not self.in_message:
            self.outbox.write_before()      # may call the application
        self.in_message = not fin
        return self._can_send()

    @cython.final
    cdef int _end_outbox(self) except -1:
        cdef _Outbox outbox = self.outbox
        if outbox is not None:
            self.outbox = None
            outbox.ended()
        return 0

    @cython.final
    cdef int _send_large_masked(self, int msg_type, const uint8_t *payload, Py_ssize_t size, bint fin,
                                unsigned int rsv) except -1:
        # In pieces that stay in the cache, rather than a copy of the whole.
        cdef uint8_t[4] key
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t piece
        cdef Py_ssize_t header_size
        new_mask_key(key)
        header_size = <Py_ssize_t> pf_write_frame_header(
            self.scratch, <unsigned int> msg_type, fin, rsv, <size_t> size, key
        )
        self.stream.begin_unit()
        while done < size:
            piece = min(size - done, <Py_ssize_t> SCRATCH_SIZE)
            pf_mask(self.scratch + header_size, payload + done, <size_t> piece, key, <size_t> done)
            self.stream.writev(self.scratch, header_size + piece, NULL, 0)
            done += piece
            header_size = 0
        return self.stream.end_unit()

    @cython.final
    cdef int _check_backlog(self) except -1:
        """A whole frame was written: does the peer keep up? Returns whether the connection goes on."""
        cdef Py_ssize_t size = self.stream.backlog_size()
        if size == 0 or self.stream.closing:
            return 1
        self.backlog_highest = max(self.backlog_highest, size)
        if 0 <= self.max_backlog < size:
            self._backlog_exceeded(size)
            return 0
        self.stream.check_high_watermark()
        return 1

    cpdef send_ping(self, message=None):
        """Send a PING frame (RFC 6455 5.5.2).

        :param message: str, bytes-like or None; at most 125 bytes
        :returns: bool, as :meth:`send`
        :raises ValueError: message is too long
        :raises WSConnectionClosedError: as for :meth:`send`
        """
        return self.send(WSMsgType.PING, message)

    cpdef send_pong(self, message=None):
        """Send a PONG frame (RFC 6455 5.5.3).

        :param message: str, bytes-like or None; at most 125 bytes
        :returns: bool, as :meth:`send`
        :raises ValueError: message is too long
        :raises WSConnectionClosedError: as for :meth:`send`
        """
        return self.send(WSMsgType.PONG, message)

    cpdef send_close(self, close_code=WSCloseCode.NO_INFO, close_message=None):
        """Send a CLOSE frame (RFC 6455 5.5.1, 7.1.2): nothing more can be sent.

        The peer has ``close_timeout`` seconds to finish; what it sends until its own CLOSE is dropped.

        :param close_code: :class:`WSCloseCode` or int in 3000..4999; NO_INFO or None sends none
        :param close_message: reason: str, UTF-8 bytes-like or None; at most 123 bytes
        :returns: bool: True if it was sent; False if a CLOSE was sent before, or the connection is ending without
        :raises ValueError: a code that must not be sent, or a bad reason
        :raises RuntimeError: called from another thread
        """
        self._check_thread("send_close")
        return bool(self._send_close_payload(
            build_close_payload(0 if close_code is None else close_code, close_message)
        ))

    cdef int _send_close_payload(self, bytes payload) except -1:
        cdef Py_ssize_t size
        cdef int taken
        if len(payload) == 1:
            raise ValueError("the payload of CLOSE is empty or starts with a code of two bytes (RFC 6455 5.5.1)")
        if payload and build_close_payload((payload[0] << 8) | payload[1], payload[2:]) != payload:
            raise ValueError("close code 0 must not be sent (RFC 6455 7.4)")
        if not self._can_send():
            return 0
        if self.outbox is not None:
            self.outbox.write_before()
            self._end_outbox()
            if not self._can_send():
                return 0
        if self.trace:
            self.logger.log(PICOWS_DEBUG_LL, "%r: sending CLOSE, %d bytes", self, len(payload))
            if not self._can_send():
                return 0
        size = write_frame(
            self.scratch, WSMsgType.CLOSE, True, 0, <const uint8_t*> PyBytes_AS_STRING(payload), len(payload),
            self.is_client_side,
        )
        self._count_sent(WSMsgType.CLOSE, len(payload))
        self.stream.writev(self.scratch, size, NULL, 0)
        taken = not (self.stream.closing or self.stream.write_failed)
        self.is_close_frame_sent = True
        self._close_sent(payload)
        return taken

    cpdef cork(self):
        """Hold back what is sent from now on, until :meth:`uncork`: it leaves in one system call. Calls nest."""
        self._check_thread("cork")
        if self.stream is not None and not self.stream.closing:
            self.stream.cork()

    cpdef uncork(self):
        """Send what was held back since :meth:`cork`."""
        self._check_thread("uncork")
        if self.stream is not None:
            self.stream.uncork()
            if self.outbox is not None:
                self.outbox.may_write()

    cdef object _closed_error(self, str message):
        return None

    cdef bint stream_write(self, const uint8_t *data, Py_ssize_t size) except -1:
        self._check_thread("write")
        if self._can_send():
            if self.outbox is not None and not self.in_message:
                self.outbox.write_before()
            self.stream.writev(data, size, NULL, 0)
            self._written()
        return True

    cdef int _backlog_exceeded(self, Py_ssize_t size) except -1:
        return 0

    cdef int _close_sent(self, bytes payload) except -1:
        return 0


pf_explain_send(FrameSender)
