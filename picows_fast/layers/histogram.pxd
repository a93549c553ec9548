# LatencyHistogram: how long things took, in fixed memory. Nothing here knows of WebSocket or asyncio.
#
# Nanoseconds up to 255 are counted one by one; each power of two above has 128 buckets, so that what is read is less
# than 0.8 % above what was recorded. These are the buckets of HdrHistogram with 2 significant digits.

from libc.stdint cimport int64_t, uint64_t


cdef enum:
    LATENCY_BUCKETS = 4608


cdef class LatencyHistogram:
    cdef:
        readonly uint64_t count     # how many were recorded
        int64_t lowest, highest     # of what was recorded, exactly; meaningless while count is 0
        double total                # nanoseconds
        uint64_t[LATENCY_BUCKETS] counts

    # Less than 0 counts as 0, more than an hour as an hour. For one thread at a time.
    cpdef void record(self, long long nanoseconds) noexcept nogil
    # 0 if nothing was recorded; `percent` below 0 is taken for 0, above 100 for 100.
    cdef int64_t value_at(self, double percent) noexcept nogil
    cdef int _add(self, int64_t nanoseconds, uint64_t count) noexcept nogil
