# cython: language_level=3, binding=False
"""What a descriptor's callback on an event loop costs that only reads and sends: neither frames nor masking.

As many bytes go each way as a WebSocket message of the size takes.
"""

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
    Py_ssize_t recv(int fd, void *data, size_t size, int flags)
    Py_ssize_t send(int fd, const void *data, size_t size, int flags)

cdef enum:
    ROOM = 256 * 1024       # bytes of a read


cdef class BareEcho:
    """Answers each `incoming` bytes with `outgoing` ones, until `running` is False; then sets `stopped`.

    `ended` is called when the stream is at its end.
    """

    cdef:
        int fd
        uint8_t *data
        Py_ssize_t incoming, outgoing, missing
        public long count
        public bint running
        public object stopped, ended

    def __cinit__(self, int fd, Py_ssize_t incoming, Py_ssize_t outgoing):
        self.fd = fd
        self.incoming = self.missing = incoming
        self.outgoing = outgoing
        self.running = True
        self.data = <uint8_t*> malloc(max(<Py_ssize_t> ROOM, outgoing))
        if self.data == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.data)

    cpdef send(self):
        if send(self.fd, self.data, <size_t> self.outgoing, MSG_NOSIGNAL) != self.outgoing:
            raise OSError(errno, "the message was not sent as a whole")

    def readable(self):
        cdef Py_ssize_t size = recv(self.fd, self.data, ROOM, 0)
        if size <= 0:
            if size == 0 or errno != EAGAIN:
                self.ended()
            return
        self.missing -= size
        if self.missing <= 0:
            self.missing = self.incoming
            self.count += 1
            if self.running:
                self.send()
            else:
                self.stopped.set_result(None)
