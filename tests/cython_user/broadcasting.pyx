# cython: language_level=3
# A third party's publisher, as test_cython.py builds it outside of the package.

from picows_fast.core cimport WSListener, WSMsgType, WSTransport
from picows_fast.layers.broadcast cimport Channel, SlowConsumer, Subscription


cdef class Prices(Channel):
    """Remembers the newest price of each symbol, which is what a new subscriber gets."""
    cdef readonly dict newest

    def __cinit__(self, *arguments, **settings):
        self.newest = {}

    def __init__(self, str name):
        super().__init__(name, policy=SlowConsumer.CONFLATE, snapshot=self.everything)

    def everything(self, transport):
        return [(WSMsgType.TEXT, text, symbol) for symbol, text in self.newest.items()]

    cpdef Py_ssize_t publish(self, WSMsgType msg_type, message, key=None) except -1:
        self.newest[key] = message
        return Channel.publish(self, msg_type, message, key)


cdef class Client(WSListener):
    cdef Channel channel
    cdef readonly Subscription subscription
    cdef readonly WSTransport transport

    def __init__(self, Channel channel):
        self.channel = channel

    cpdef on_ws_connected(self, WSTransport transport):
        self.transport = transport
        self.subscription = self.channel.subscribe(transport)


def publish_all(Channel channel, messages):
    """Publish (key, text) pairs by C calls; returns what the counters say, read as C fields."""
    cdef Py_ssize_t given = 0
    for key, text in messages:
        given += channel.publish(WSMsgType.TEXT, text, key)
    return given, channel.published, channel.messages


def counters(Channel channel, WSTransport transport):
    """Of a transport's subscription; then it leaves."""
    cdef Subscription subscription = channel.subscription(transport)
    cdef bint was_one = channel.unsubscribe(transport)
    return subscription.published, subscription.sent, subscription.waiting, was_one
