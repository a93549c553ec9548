# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Whole messages for a listener: fragments joined within limits, text checked as it arrives (RFC 6455 5.4, 8.1).

:class:`WSMessageListener` is for connections; :class:`MessageAssembler`, in ``protocol.messages``, for frames from
anywhere. What a violation does to the connection is the transport's business.
"""

from cpython.object cimport PyObject

from ..transport.dispatch cimport CALL_NOTHING, CALL_PYTHON, how_to_call
from ..core cimport layer_state, new_slot, set_layer_state
from ..protocol.messages cimport DEFAULT_FRAGMENTS, DEFAULT_MESSAGE_SIZE, MessageAssembler, check_limits


cdef extern from *:
    """
    #include <stddef.h>

    #define PF_MESSAGE_SLOT \
        offsetof(struct __pyx_vtabstruct_11picows_fast_6layers_8messages_WSMessageListener, on_ws_message)
    """
    size_t PF_MESSAGE_SLOT

cdef extern from "Python.h":
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    object PyObject_VectorcallMethod(object name, PyObject **args, size_t nargsf, PyObject *kwnames)

cdef Py_ssize_t _SLOT = new_slot()

cdef str _ON_WS_MESSAGE = "on_ws_message"


cdef class WSMessageListener(WSListener):
    """Base of a listener that gets messages. The settings are keyword-only, and have defaults if a subclass does not
    call this ``__init__``.

    Override :meth:`on_ws_message`; the other methods are those of :class:`WSListener`, but for ``on_ws_frame``, which
    is what joins frames. What breaks the rules ends the connection: text that is not UTF-8 with close code 1007, a
    limit exceeded with 1009, a bad sequence of frames with 1002. A listener may serve many connections.

    :param max_message_size: bytes of payload that one message may have; ``max_frame_size`` limits each frame besides
    :param max_fragments: frames that one message may have; empty ones count
    :param check_unfinished_text: check text with every read, even while its frame has not come whole
    :raises ValueError: max_message_size is negative or max_fragments not positive
    """

    def __cinit__(self):
        self.max_message_size = DEFAULT_MESSAGE_SIZE
        self.max_fragments = DEFAULT_FRAGMENTS

    def __init__(self, *, Py_ssize_t max_message_size=DEFAULT_MESSAGE_SIZE,
                 Py_ssize_t max_fragments=DEFAULT_FRAGMENTS, bint check_unfinished_text=False):
        check_limits(max_message_size, max_fragments)
        self.max_message_size = max_message_size
        self.max_fragments = max_fragments
        self.watches_unfinished = check_unfinished_text

    cpdef on_ws_message(self, WSTransport transport, WSMsgType msg_type, WSFrame payload):
        """A message has come whole.

        :param msg_type: ``WSMsgType.TEXT`` (it is valid UTF-8) or ``WSMsgType.BINARY``
        :param payload: the message as a :class:`WSFrame`. It may be kept, and its memoryviews too; it can be given to
            ``send`` and to whatever takes bytes-like objects
        """

    cpdef on_ws_control(self, WSTransport transport, WSFrame frame):
        """A control frame has come: CLOSE, or a PING or PONG that is not handled automatically (RFC 6455 5.5).

        It may come between the fragments of a message. By default a CLOSE is answered with its own code and reason.
        """
        if transport is None or frame is None:
            raise TypeError("transport must be a WSTransport and frame a WSFrame, got None")
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(<int> frame.get_close_code(), frame.get_close_message())

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        """Makes messages of frames: not to be overridden."""
        cdef WSFrame message
        cdef PyObject *args[5]
        if transport is None or frame is None:
            raise TypeError("transport must be a WSTransport and frame a WSFrame, got None")
        if frame.msg_type >= WSMsgType.CLOSE:
            # By name, as the vtable does not have a `def` in a Cython class.
            (<object> self).on_ws_control(transport, frame)
            return
        message = self._assembler(transport).add(frame)
        if message is None:
            return
        if message is not frame:
            transport.messages_joined += 1
        if not self.call_known:
            self._find_message_call()
        if self.message_call == CALL_PYTHON:
            msg_type = (<object> message).msg_type
            args[1] = <PyObject*> self
            args[2] = <PyObject*> transport
            args[3] = <PyObject*> msg_type
            args[4] = <PyObject*> message
            PyObject_VectorcallMethod(_ON_WS_MESSAGE, args + 1, 4 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
        elif self.message_call != CALL_NOTHING:
            self.on_ws_message(transport, message.msg_type, message)

    cdef MessageAssembler _assembler(self, WSTransport transport):
        # Kept with the connection: a listener may be shared, or outlive it.
        cdef MessageAssembler assembler = layer_state(transport, _SLOT)
        if assembler is None:
            assembler = MessageAssembler(
                max_message_size=self.max_message_size, max_fragments=self.max_fragments
            )
            set_layer_state(transport, _SLOT, assembler)
        return assembler

    cdef int _find_message_call(self) except -1:
        self.message_call = how_to_call(self, _ON_WS_MESSAGE, _BASE_ON_WS_MESSAGE, PF_MESSAGE_SLOT)
        self.call_known = True
        return 0

    cdef int _unfinished_payload(self, WSTransport transport, int opcode, const uint8_t *data,
                                 Py_ssize_t size) except -1:
        return self._assembler(transport).check_unfinished(opcode, data, size)


cdef object _BASE_ON_WS_MESSAGE = WSMessageListener.__dict__["on_ws_message"]
# Python code imports it from here, too; a cimport alone does not give it a name in the module.
globals()["MessageAssembler"] = MessageAssembler
