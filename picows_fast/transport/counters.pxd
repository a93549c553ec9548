# Counters of frames by type, both ways: of one connection, and of all that a server has had.
#
# Owns: the counters. Does not own: when something is counted, which is the transport's business. What is told to Python
# code is in stats.py.

from libc.stdint cimport uint64_t


cdef enum:
    OPCODES = 11    # 0 to 10 (RFC 6455 5.2); 3 to 7 are reserved and never counted


cdef struct FrameCounter:
    uint64_t frames
    uint64_t payload_bytes


cdef struct TrafficCounters:
    FrameCounter[OPCODES] received      # by opcode
    FrameCounter[OPCODES] sent


cdef inline void count_frame(FrameCounter *counter, Py_ssize_t payload_size) noexcept nogil:
    counter.frames += 1
    counter.payload_bytes += <uint64_t> payload_size


# Counters that several connections add to.
cdef class SharedTraffic:
    cdef TrafficCounters counters


# TrafficStats of one direction.
cdef object traffic_stats(const FrameCounter *counters)
