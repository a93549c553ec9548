# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""Counters of frames by type, in C: see ``traffic.pxd``."""

from ..stats import FrameCount, TrafficStats

cimport cython


cdef object traffic_stats(const FrameCounter *counters):
    return TrafficStats(*[
        FrameCount(counters[opcode].frames, counters[opcode].payload_bytes)
        for opcode in (0, 1, 2, 8, 9, 10)
    ])


@cython.final
cdef class SharedTraffic:
    """The frames of all connections of one server, counted as they come and go."""

    @property
    def received(self):
        """TrafficStats: what came."""
        return traffic_stats(self.counters.received)

    @property
    def sent(self):
        """TrafficStats: what was sent."""
        return traffic_stats(self.counters.sent)
