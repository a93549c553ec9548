# cython: language_level=3
# A listener that leaves what each method does to a function of the test's, which may raise or call back.

from picows_fast.core cimport WSFrame, WSListener, WSTransport


cdef class Acting(WSListener):
    """Calls `act(name, transport, frame)` in each method; is_user_specific_pong returns what comes back."""

    cdef public object act
    cdef public WSTransport transport

    cpdef on_ws_connected(self, WSTransport transport):
        self.transport = transport
        self.act("on_ws_connected", transport, None)

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        self.act("on_ws_frame", transport, frame)

    cpdef on_ws_disconnected(self, WSTransport transport):
        self.act("on_ws_disconnected", transport, None)

    cpdef send_user_specific_ping(self, WSTransport transport):
        self.act("send_user_specific_ping", transport, None)
        transport.send_ping()

    cpdef is_user_specific_pong(self, WSFrame frame):
        return self.act("is_user_specific_pong", self.transport, frame)

    cpdef pause_writing(self):
        self.act("pause_writing", self.transport, None)

    cpdef resume_writing(self):
        self.act("resume_writing", self.transport, None)
