# A listener of whole messages. How fragments are joined and checked is in protocol/messages.pxd.

from ..transport.dispatch cimport ListenerCall
from ..protocol.codec cimport WSFrame, WSMsgType
from ..core cimport WSListener, WSTransport
from ..protocol.messages cimport MessageAssembler

from libc.stdint cimport uint8_t


# A listener of messages; on_ws_frame is what makes them.
cdef class WSMessageListener(WSListener):
    cdef:
        readonly Py_ssize_t max_message_size    # bytes
        readonly Py_ssize_t max_fragments

        # --- internal
        bint call_known
        ListenerCall message_call

    cpdef on_ws_message(self, WSTransport transport, WSMsgType msg_type, WSFrame payload)
    cpdef on_ws_control(self, WSTransport transport, WSFrame frame)

    # --- internal
    cdef MessageAssembler _assembler(self, WSTransport transport)
    cdef int _find_message_call(self) except -1
