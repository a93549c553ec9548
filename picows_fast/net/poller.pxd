# Poller: a loop's selector that calls streams by itself.
#
# Owns: the interface between a stream that has a descriptor and a selector that can call it in C. Does not own:
# waiting, which is the selector's (picows_fast.loop); what is done when a descriptor is ready, which is the stream's.

from .stream cimport ByteStream


cdef enum PollEvent:        # the first two have the values of selectors.EVENT_READ and EVENT_WRITE
    POLL_READ = 1
    POLL_WRITE = 2
    # Only with POLL_READ: descriptor_ready() says POLL_LEFT where it must, so that it need not be called before
    # something new comes.
    POLL_EDGE = 4

# What descriptor_ready() returns.
cdef enum PollResult:
    POLL_CAME = 1           # bytes came
    POLL_LEFT = 2           # more may be there, of which nothing new will tell


cdef class Poller:
    # Have stream.descriptor_ready() called when the stream's descriptor is ready for any of these PollEvents; 0: no
    # more, which must come before the descriptor is closed. It is called in the context (contextvars) that is current
    # when watching for reading begins, and may be called now and then without need.
    # `spin` is how long, in nanoseconds, the loop is to spin for this stream before it blocks.
    cdef int watch(self, ByteStream stream, int fd, int events, long long spin) except -1


# The poller of a loop, or None: its descriptors are watched by add_reader and add_writer.
cdef Poller poller_of(loop)
