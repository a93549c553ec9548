# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, initializedcheck=False
"""How an application's methods are called, and what is made of what they raise: see ``callbacks.pxd``."""

from types import FunctionType, MethodType

from cpython.pycapsule cimport PyCapsule_GetPointer

from ..protocol.codec cimport WSCloseCode, build_close_payload

from ..exceptions import WSProtocolError


cdef object who_overrides(object listener, str name, object base):
    if name in getattr(listener, "__dict__", ()):
        return listener
    for cls in type(listener).__mro__:
        found = cls.__dict__.get(name)
        if found is base:
            return None
        if found is not None:
            return cls
    return None


cdef inline void *slot_of(object vtable, size_t slot) except NULL:
    return (<void**> (<char*> PyCapsule_GetPointer(vtable, NULL) + slot))[0]


cdef ListenerCall how_to_call(object listener, str name, object base, size_t slot) except *:
    who = who_overrides(listener, name, base)
    if who is None:
        return CALL_NOTHING
    own = None if who is listener else who.__dict__.get("__pyx_vtable__")
    if own is None:
        return CALL_PYTHON
    # A Cython class: only `cpdef` puts a method into the vtable, `def` does not.
    if slot_of(own, slot) == slot_of(who.__base__.__pyx_vtable__, slot):
        return CALL_PYTHON
    return CALL_VTABLE


cdef object function_of(object listener, object method):
    if type(method) is MethodType and type(method.__func__) is FunctionType and method.__self__ is listener:
        return method.__func__
    return None


cdef bytes refusal_of(error):
    if isinstance(error, WSProtocolError):
        try:
            if error.code != WSCloseCode.NO_INFO:
                return build_close_payload(error.code, error.close_reason)
        except Exception:
            pass        # a subclass with a mind of its own; the error itself is told as it is
    return None


cdef bytes close_payload_of(error):
    """What CLOSE says when this was raised: a WSProtocolError chooses it, if it is made as it should be."""
    cdef bytes payload = refusal_of(error)
    return build_close_payload(WSCloseCode.INTERNAL_ERROR, None) if payload is None else payload


cdef object as_runtime_error(error):
    """For a future, which takes no StopIteration; and who waits would take a CancelledError for one of its own."""
    wrapped = RuntimeError(f"the application's code raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


cdef int forget_frames(error) except -1:
    """A frame in a traceback keeps its callers' frames, one of which may be setting up this very connection."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
    return 0
