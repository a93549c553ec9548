# Broadcasting: one message to all transports that subscribe to a channel, encoded once.
#
# Owns: the messages that were published and not yet given to a transport's stream, and what becomes of them when a
# client is slow. Does not own: the bytes that the stream has taken, and how a connection ends.
#
# What is published goes into the outbox of each subscriber's transport. An outbox is written when the loop's turn is
# over, into a stream whose backlog is empty; a client whose backlog is not is behind, and only then policies apply.

from ..protocol.codec cimport WSMsgType
from ..core cimport WSTransport
from ..net.stream cimport ByteStream
from ..transport.sender cimport _Outbox

from cpython.object cimport PyObject


cpdef enum SlowConsumer:
    """What happens to a client that is behind by more than its subscription allows."""
    CLOSE = 1           # the connection is closed
    DROP_NEWEST = 2     # messages that find no room are not sent
    DROP_OLDEST = 3     # they take the place of the oldest that wait
    CONFLATE = 4        # while the client is behind, only the newest message of each key waits


# One message as a server's frame, whoever gets it.
cdef class _Message:
    cdef:
        bytes frame
        object key              # str, bytes or int; None if there is none


cdef struct Entry:
    PyObject *message           # owned; NULL: it was conflated, dropped or discarded
    PyObject *subscription      # kept alive by the outbox
    Py_ssize_t next             # number of the same subscription's next entry; meaningless in its last


# The outboxes of one event loop that have something to write when the turn is over.
cdef class _Turn:
    cdef:
        object __weakref__
        list outboxes
        list spare              # the next turn's, made with the callback: _write() makes no object
        bint scheduled          # _write() is going to be called
        bint publishing         # a publish() to subscribers of this loop is under way
        list deferred           # (Channel, _Message, count of subscribers): published by callbacks of it

    cdef int add(self, _ClientOutbox outbox) except -1


# What waits for one transport, of all its channels, in the order of publishing.
cdef class _ClientOutbox(_Outbox):
    cdef:
        WSTransport transport
        _Turn turn
        dict subscriptions      # Channel -> Subscription
        list departed           # Subscriptions that have left, and whose entries are still here; None: there are none
        Entry *entries          # a ring: entry `n` is entries[n & (capacity - 1)]
        Py_ssize_t capacity
        Py_ssize_t first, end   # numbers of the entries
        Py_ssize_t live         # entries that have a message
        double behind_since     # seconds of the monotonic clock; 0: the client keeps up
        bint writing            # write() runs
        bint interrupted        # the application has sent a frame since the stream was last given entries
        int pins                # above 0: entries keep their numbers
        Py_ssize_t given        # entries before this number are being given to the stream; 0: none are
        bint in_turn            # the turn knows this outbox
        bint is_ended           # nothing can be sent any more

    cdef int put(self, Subscription subscription, _Message message) except -1
    cdef int put_anyway(self, Subscription subscription, _Message message) except -1
    cdef bint has_place(self, Subscription subscription, _Message message) except -1
    cdef bint make_room(self, Subscription subscription, _Message message) except -1
    cdef int refuse(self, Subscription subscription, _Message message) except -1
    cdef int drop_oldest(self, Subscription subscription) except -1
    cdef int append(self, Subscription subscription, _Message message) except -1
    cdef int append_behind(self, Subscription subscription, _Message message, Py_ssize_t number) except -1
    cdef int write(self) except -1
    cdef int fail(self, error) except -1
    cdef bint write_some(self) except -1
    cdef int give(self, WSTransport transport, ByteStream stream) except -1
    cdef int given_back(self, Py_ssize_t number) except -1
    cdef int count_sent(self, WSTransport transport, Py_ssize_t upto) except -1
    cdef int fall_behind(self) except -1
    cdef int conflate(self, Subscription subscription, _Message message, Py_ssize_t number) except -1
    cdef int remove(self, Py_ssize_t number) except -1
    cdef int pop_removed(self) except -1
    cdef int unpin(self) except -1
    cdef int discard(self, Subscription subscription) except -1
    cdef int discard_all(self) except -1
    cdef int leave(self, Subscription subscription) except -1
    cdef bint reserve(self, Py_ssize_t count) except -1
    cdef int compact(self) except -1


# One transport on one channel.
cdef class Subscription:
    cdef:
        object __weakref__
        readonly Channel channel
        readonly SlowConsumer policy
        readonly Py_ssize_t max_messages
        readonly Py_ssize_t max_bytes
        readonly bint is_active

        # Messages: published = sent + conflated + dropped + discarded + waiting, always.
        readonly Py_ssize_t published
        readonly Py_ssize_t sent            # given to the connection
        readonly Py_ssize_t conflated       # replaced by a newer one of the same key
        readonly Py_ssize_t dropped         # there was no room
        readonly Py_ssize_t discarded       # waited, or came, when the subscription ended
        readonly Py_ssize_t waiting
        readonly Py_ssize_t waiting_bytes   # of frames
        readonly Py_ssize_t times_slow

        # --- internal
        _ClientOutbox outbox
        Py_ssize_t index        # in the channel's list
        Py_ssize_t queued       # entries in the ring, those without a message included
        Py_ssize_t oldest       # number of the first of them that may have a message
        Py_ssize_t newest       # number of the last of them
        dict by_key             # key -> number of the entry that waits; None while the client keeps up
        double behind_since     # seconds of the monotonic clock; 0: it is not


cdef class Channel:
    cdef:
        object __weakref__
        readonly str name
        readonly SlowConsumer policy
        readonly Py_ssize_t max_messages
        readonly Py_ssize_t max_bytes
        readonly bint joins_turn
        readonly object close_code
        readonly str close_reason
        readonly object snapshot
        readonly object on_slow

        # Sums over all subscriptions, those that have ended included; `messages` counts calls of publish().
        readonly Py_ssize_t messages
        readonly Py_ssize_t published
        readonly Py_ssize_t sent
        readonly Py_ssize_t conflated
        readonly Py_ssize_t dropped
        readonly Py_ssize_t discarded
        readonly Py_ssize_t closed_slow     # connections that the CLOSE policy has ended, or CONFLATE's limit
        readonly Py_ssize_t slow            # subscriptions that have messages waiting for a client that is behind

        # --- internal
        object loop
        unsigned long thread_id     # of the loop; 0: it is not known
        _Turn turn                  # of the loop; None before the first subscriber
        list subscribers            # Subscription; None where one has left while publish() runs
        Py_ssize_t holes
        Py_ssize_t publishing       # publish() calls under way or deferred

    # Returns how many subscribers there were.
    cpdef Py_ssize_t publish(self, WSMsgType msg_type, message, key=*) except -1
    cpdef Subscription subscription(self, WSTransport transport)
    cpdef bint unsubscribe(self, WSTransport transport) except -1

    # --- internal
    cdef int _check_thread(self, str method) except -1
    cdef bint _is_without_loop(self) except -1
    cdef int _check_subscriber(self, WSTransport transport) except -1
    cdef _ClientOutbox _outbox_of(self, WSTransport transport, Py_ssize_t messages)
    cdef object _give(self, _Message message, Py_ssize_t count)
    cdef Py_ssize_t _publish(self, _Message message) except -1
    cdef int _remove(self, Subscription subscription) except -1
    cdef int _published(self) except -1
    cdef int _close_holes(self) except -1
    cdef int _close_holes_from(self, Py_ssize_t kept) except -1
