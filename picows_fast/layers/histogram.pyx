# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Latencies counted in fixed memory: :class:`LatencyHistogram`.

Owns the buckets. What is measured, and with which clock, is the caller's business; the text that HdrHistogram's tools
exchange is ``hdr_encoding``'s.
"""

from libc.math cimport ceil
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from . import hdr_encoding

cimport cython


cdef extern from *:
    """
    #include <stdint.h>

    /* The number of the highest bit that is set; of 0: unspecified. */
    static inline int pf_highest_bit(uint64_t value)
    {
    #if defined(__GNUC__) || defined(__clang__)
        return 63 - __builtin_clzll(value);
    #else
        int bit = 0;

        while (value >>= 1)
            bit++;
        return bit;
    #endif
    }
    """
    int pf_highest_bit(uint64_t value) noexcept nogil


cdef enum:
    HALF_BITS = 7               # buckets for each power of two: 128
    HALF = 1 << HALF_BITS

cdef int64_t HOUR = 3_600_000_000_000


cdef inline int bucket_of(int64_t nanoseconds) noexcept nogil:
    cdef int shift = pf_highest_bit(<uint64_t> nanoseconds | (2 * HALF - 1)) - HALF_BITS
    return (shift << HALF_BITS) + <int> (nanoseconds >> shift)


cdef inline int64_t lowest_in(int bucket) noexcept nogil:
    cdef int shift = max((bucket >> HALF_BITS) - 1, 0)
    return <int64_t> (bucket - (shift << HALF_BITS)) << shift


cdef inline int64_t highest_in(int bucket) noexcept nogil:
    cdef int shift = max((bucket >> HALF_BITS) - 1, 0)
    return lowest_in(bucket) + (<int64_t> 1 << shift) - 1


@cython.final
@cython.auto_pickle(False)
cdef class LatencyHistogram:
    """Latencies in nanoseconds, from 0 to an hour, with an error below 1 %, in 36 KiB.

    ``count`` and ``record`` cost the same however many there are. From Cython, ``record`` is a C call that needs no GIL
    and makes no object. One thread at a time.
    """

    cpdef void record(self, long long nanoseconds) noexcept nogil:
        """Count one latency. Less than 0 counts as 0, more than an hour as an hour.

        :raises OverflowError: not within 64 bits
        """
        self._add(nanoseconds, 1)

    cdef int _add(self, int64_t nanoseconds, uint64_t count) noexcept nogil:
        if nanoseconds < 0:
            nanoseconds = 0     # a clock was set back
        elif nanoseconds > HOUR:
            nanoseconds = HOUR
        if self.count == 0:
            self.lowest = self.highest = nanoseconds
        elif nanoseconds > self.highest:
            self.highest = nanoseconds
        elif nanoseconds < self.lowest:
            self.lowest = nanoseconds
        self.count += count
        self.total += <double> nanoseconds * <double> count
        self.counts[bucket_of(nanoseconds)] += count
        return 0

    def percentile(self, double percent):
        """Return the nanoseconds that this share of all does not exceed, int; 0 if nothing was recorded.

        Never too low, and less than 1 % too high.

        :param percent: 0 to 100
        :raises ValueError: percent is out of range
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be in 0..100, got {percent}")
        return self.value_at(percent)

    cdef int64_t value_at(self, double percent) noexcept nogil:
        cdef double rank = ceil(percent / 100.0 * <double> self.count)
        cdef double seen = 0
        cdef int bucket
        if self.count == 0:
            return 0
        if rank <= 1:
            return self.lowest
        for bucket in range(LATENCY_BUCKETS):
            seen += <double> self.counts[bucket]
            if seen >= rank:
                return min(highest_in(bucket), self.highest)
        return self.highest

    @property
    def min(self):
        """int: the lowest latency, nanoseconds; 0 if nothing was recorded."""
        return self.lowest if self.count else 0

    @property
    def max(self):
        """int: the highest latency, nanoseconds; 0 if nothing was recorded."""
        return self.highest if self.count else 0

    @property
    def mean(self):
        """float: the mean of the latencies, nanoseconds; 0.0 if nothing was recorded."""
        return self.total / <double> self.count if self.count else 0.0

    def buckets(self):
        """Return what was counted, as a list of (lowest, highest, count), nanoseconds inclusive, without empty ones."""
        cdef int bucket
        return [
            (lowest_in(bucket), highest_in(bucket), self.counts[bucket])
            for bucket in range(LATENCY_BUCKETS) if self.counts[bucket]
        ]

    def merge(self, LatencyHistogram other not None):
        """Add what another one has counted, which is left as it is."""
        cdef int bucket
        if other.count == 0:
            return
        if self.count == 0:
            self.lowest = other.lowest
            self.highest = other.highest
        else:
            self.lowest = min(self.lowest, other.lowest)
            self.highest = max(self.highest, other.highest)
        self.count += other.count
        self.total += other.total
        for bucket in range(LATENCY_BUCKETS):
            self.counts[bucket] += other.counts[bucket]

    def reset(self):
        """Forget everything."""
        self.count = 0
        self.total = 0
        memset(self.counts, 0, sizeof(self.counts))

    def to_hdr(self):
        """Return HdrHistogram's compressed V2 encoding in base64, str, which its tools and ports read."""
        cdef int bucket
        cdef int end = bucket_of(self.highest) + 1 if self.count else 0
        return hdr_encoding.encode([self.counts[bucket] for bucket in range(end)], HOUR)

    @staticmethod
    def from_hdr(text):
        """Return a histogram with what a text of :meth:`to_hdr`, or of any HdrHistogram of whole numbers, holds.

        What the text does not tell is taken from its buckets: each latency is the middle of its bucket.

        :param text: str or bytes
        :raises ValueError: it is no such text, or damaged
        """
        cdef LatencyHistogram histogram = LatencyHistogram.__new__(LatencyHistogram)
        for lowest, highest, count in hdr_encoding.decode(text):
            histogram._add(min((lowest + highest) // 2, HOUR), count)
        return histogram

    def __len__(self):
        return self.count

    def __repr__(self):
        return (
            f"LatencyHistogram(count={self.count}, min={self.min}, p50={self.value_at(50)}, p99={self.value_at(99)}, "
            f"max={self.max})"
        )
