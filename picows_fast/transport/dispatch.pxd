# How an application's methods are called, and what is made of what they raise.
#
# Owns: who overrides a method, and in which language. Does not own: any connection, listener or method; a connection
# asks once for each, when it is made.


# How a listener's method is called.
cdef enum ListenerCall:
    CALL_NOTHING        # nobody overrides it
    CALL_VTABLE         # overridden in Cython
    CALL_PYTHON         # overridden in Python
    CALL_FUNCTION       # ... by an ordinary function of its class


# The class that overrides the method of that name; the listener itself, if it does; else None. `base` is what counts
# as not overridden.
cdef object who_overrides(object listener, str name, object base)

# CALL_NOTHING, CALL_VTABLE or CALL_PYTHON; `slot` is the method's offset in the vtable, in bytes.
cdef ListenerCall how_to_call(object listener, str name, object base, size_t slot) except *

# The function of a bound method that can be called with the listener in front instead; None if there is none.
cdef object function_of(object listener, object method)

# The payload of CLOSE that a WSProtocolError asks for; None for anything else, and for one that cannot be sent.
cdef bytes refusal_of(error)

# The payload of CLOSE that says what was raised.
cdef bytes close_payload_of(error)

# A stand-in for what a future does not take as its exception, or what would mislead who waits for it.
cdef object as_runtime_error(error)

# Drops the tracebacks of an error and of what led to it.
cdef int forget_frames(error) except -1
