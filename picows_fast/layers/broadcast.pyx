# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Broadcasting: channels that transports subscribe to, and what happens to clients that are too slow for them.

A message is encoded once. What one turn of the event loop publishes leaves as one system call for each client, in
the order of publishing, whatever channels it came by. Owns the messages that wait for a client; what the stream has
taken is the stream's. See broadcast.pxd for how it works.
"""

import asyncio
import weakref

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ..protocol.codec cimport build_close_payload, unmasked_frame
from ..net.stream cimport ByteStream
from ..transport.sender cimport CLOSING, OPEN

from ..protocol.codec import WSCloseCode as CloseCode
from ..states import WSDisconnectCause

cimport cython


cdef extern from *:
    """
    #include "transport/msg_type_first.h"
    PF_MSG_TYPE_FIRST(publish)
    """
    void pf_explain_publish(object type)

cdef extern from "net/clock.h" nogil:
    double pf_monotonic()

cdef extern from *:
    """
    /* Thousands of clients do not stay in the cache from turn to turn: what the next ones need is asked for while the
       kernel is busy with this one. */
    static inline void pf_prefetch(const void *object, size_t size)
    {
    #if defined(__GNUC__) || defined(__clang__)
        size_t at;

        for (at = 0; at < size; at += 64)
            __builtin_prefetch((const char *)object + at, 1);
    #else
        (void)object;
        (void)size;
    #endif
    }
    """
    void pf_prefetch(const void *object, size_t size) noexcept nogil

cdef enum:
    # Bytes that one write gives to the stream: as much as the transport's scratch buffer takes, so that a turn makes
    # one system call; where what was given cannot be taken back, one TLS record's, since a PONG has to wait for it.
    LARGEST_PIECE = 256 * 1024
    COMMITTED_PIECE = 16 * 1024
    # How many clients ahead memory is asked for, and how much of each object.
    AHEAD = 4
    OBJECT_SIZE = 256
    # Entries that a ring starts with, and keeps when it is empty.
    SMALLEST_RING = 8
    RING_KEPT = 256

DEFAULT_MAX_MESSAGES = 10_000
DEFAULT_MAX_BYTES = 4 * 1024 * 1024

cdef object _turns = weakref.WeakKeyDictionary()


# --- A message -------------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
@cython.no_gc
@cython.freelist(256)
cdef class _Message:
    # Its key is of a type that refers to nothing, so the garbage collector need not know it.
    pass


cdef _Message encode(int msg_type, message, key):
    """Holds a copy, so it may be called from any thread."""
    cdef _Message encoded
    if msg_type != WSMsgType.TEXT and msg_type != WSMsgType.BINARY:
        raise ValueError(f"msg_type must be TEXT or BINARY, got {msg_type}")
    if key is not None and type(key) is not str and type(key) is not bytes and type(key) is not int:
        raise TypeError(f"key must be a str, bytes, int or None, got {type(key).__name__}")
    encoded = _Message.__new__(_Message)
    encoded.key = key
    encoded.frame = unmasked_frame(msg_type, message)
    return encoded


cdef inline Py_ssize_t payload_size_of(PyObject *frame) noexcept:
    """Of a server's frame (RFC 6455 5.2)."""
    cdef int length = PyBytes_AS_STRING(<bytes> frame)[1]
    return PyBytes_GET_SIZE(<bytes> frame) - (2 if length < 126 else 4 if length == 126 else 10)


# --- When the turn is over -------------------------------------------------------------------------

cdef object report(_ClientOutbox outbox, error):
    """Tell the event loop what one client's messages ran into: the others get theirs all the same.

    Returns the error if it is one that the caller has to raise when it is done: KeyboardInterrupt, SystemExit.
    """
    if not isinstance(error, (Exception, asyncio.CancelledError)):
        return error
    try:
        outbox.transport.loop.call_exception_handler({
            "message": "picows_fast: an error while messages were given to a subscriber",
            "exception": error,
            "transport": outbox.transport,
        })
    except (Exception, asyncio.CancelledError):
        pass                    # the handler's own, or of the log that it writes to
    except BaseException as fatal:
        return fatal
    return None


@cython.final
@cython.auto_pickle(False)
cdef class _Turn:

    def __cinit__(self):
        self.outboxes = []
        self.deferred = []

    cdef int add(self, _ClientOutbox outbox) except -1:
        """Write this outbox when the turn is over."""
        cdef list spare
        if not self.scheduled:
            spare = []
            outbox.transport.loop.call_soon(self._write)
            self.spare = spare
            self.scheduled = True
        self.outboxes.append(outbox)
        outbox.in_turn = True
        return 0

    def _write(self):
        cdef list outboxes = self.outboxes
        cdef _ClientOutbox outbox
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t count = len(outboxes)
        fatal = None
        if not self.scheduled:
            return
        self.outboxes = self.spare      # what callbacks publish now is the next turn's
        self.scheduled = False
        while done < count:
            try:
                while done < count:
                    if done + 2 * AHEAD < count:
                        pf_prefetch(<PyObject*> outboxes[done + 2 * AHEAD], OBJECT_SIZE)
                    if done + AHEAD < count:
                        prefetch_writing(<_ClientOutbox> outboxes[done + AHEAD])
                    outbox = <_ClientOutbox> outboxes[done]
                    done += 1
                    outbox.in_turn = False
                    if outbox.live and not outbox.behind_since:
                        outbox.write()
            except BaseException as error:
                fatal = report(outbox, error) or fatal
        if fatal is not None:
            raise fatal


cdef inline void prefetch_writing(_ClientOutbox outbox) noexcept:
    pf_prefetch(<PyObject*> outbox.transport, 2 * OBJECT_SIZE)
    pf_prefetch(<PyObject*> outbox.transport.stream, OBJECT_SIZE)
    pf_prefetch(outbox.entries, 64)


# --- Outbox ----------------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class _ClientOutbox(_Outbox):

    def __cinit__(self):
        self.subscriptions = {}

    def __dealloc__(self):
        cdef Py_ssize_t number
        for number in range(self.first, self.end):
            if self.entries[number & (self.capacity - 1)].message != NULL:
                Py_DECREF(<object> self.entries[number & (self.capacity - 1)].message)
        PyMem_Free(self.entries)

    cdef int put(self, Subscription subscription, _Message message) except -1:
        """A message was published: keep it until the turn is over, or do what the policy says."""
        if (subscription.waiting >= subscription.max_messages
                or subscription.waiting_bytes + PyBytes_GET_SIZE(message.frame) > subscription.max_bytes):
            if not self.make_room(subscription, message):
                return 0
        if self.end - self.first == self.capacity and not self.has_place(subscription, message):
            return 0
        self.append(subscription, message)
        if subscription.policy == SlowConsumer.DROP_OLDEST and self.behind_since:
            self.drop_oldest(subscription)
        return 0

    cdef int put_anyway(self, Subscription subscription, _Message message) except -1:
        """The same beyond the limits, but for those of memory."""
        return self.append(subscription, message) if self.has_place(subscription, message) else 0

    cdef bint has_place(self, Subscription subscription, _Message message) except -1:
        """Make room for one entry. Returns whether there is; if not, the message has been counted."""
        if not self.reserve(1):
            self.refuse(subscription, message)
            return False
        if not subscription.is_active:      # reserve() may run weakref callbacks
            count_discarded(subscription)
            return False
        return True

    cdef bint make_room(self, Subscription subscription, _Message message) except -1:
        """The limits would be exceeded. Returns whether the message is to be kept; if not, it has been counted."""
        cdef Py_ssize_t messages, size
        cdef _Message older
        if not self.behind_since:
            # What this turn brought need not wait for its end. A client that takes it is not slow.
            try:
                self.write()
            except BaseException:
                count_discarded(subscription)   # the connection has ended
                raise
            if not subscription.is_active:
                count_discarded(subscription)
                return False
            if not self.behind_since:
                return True
        messages = subscription.waiting + 1
        size = subscription.waiting_bytes + PyBytes_GET_SIZE(message.frame)
        if subscription.by_key is not None and message.key is not None:
            number = subscription.by_key.get(message.key)
            if number is not None and <Py_ssize_t> number >= self.given:
                older = <_Message> self.entries[(<Py_ssize_t> number) & (self.capacity - 1)].message
                messages -= 1
                size -= PyBytes_GET_SIZE(older.frame)
        if messages <= subscription.max_messages and size <= subscription.max_bytes:
            return True
        if (subscription.policy == SlowConsumer.DROP_OLDEST
                and PyBytes_GET_SIZE(message.frame) <= subscription.max_bytes):
            return True
        self.refuse(subscription, message)
        return False

    cdef int refuse(self, Subscription subscription, _Message message) except -1:
        """There is no room for the message, by the limits or in memory."""
        cdef Channel channel = subscription.channel
        cdef WSTransport transport = self.transport
        cdef Py_ssize_t waited = subscription.waiting
        if subscription.policy == SlowConsumer.DROP_NEWEST or subscription.policy == SlowConsumer.DROP_OLDEST:
            subscription.published += 1
            channel.published += 1
            subscription.dropped += 1
            channel.dropped += 1
            return 0
        count_discarded(subscription)
        if not transport._can_send():
            return transport._end_outbox()      # it is going to end anyway
        channel.closed_slow += 1
        try:
            transport.send_close(channel.close_code, channel.close_reason)
        except BaseException as error:
            self.fail(error)    # nothing may come behind the gap
            raise
        transport.logger.info(
            "%r: closed, as %d messages of channel %r waited for it", transport, waited, channel.name
        )
        return 0

    cdef int drop_oldest(self, Subscription subscription) except -1:
        """Keep the limits by what came first. The newest is never dropped: make_room() has seen to that."""
        cdef Py_ssize_t number = subscription.oldest
        while (number != subscription.newest
                and (subscription.waiting > subscription.max_messages
                     or subscription.waiting_bytes > subscription.max_bytes)):
            if number >= self.given and self.entries[number & (self.capacity - 1)].message != NULL:
                self.remove(number)
                subscription.dropped += 1
                subscription.channel.dropped += 1
            number = self.entries[number & (self.capacity - 1)].next
            if self.given == 0:
                subscription.oldest = number
        return self.pop_removed()

    cdef int append(self, Subscription subscription, _Message message) except -1:
        """Room for it is there. Python code runs only when all of it is done."""
        cdef Py_ssize_t number = self.end
        cdef Entry *entry = &self.entries[number & (self.capacity - 1)]
        Py_INCREF(message)
        entry.message = <PyObject*> message
        entry.subscription = <PyObject*> subscription
        self.end = number + 1
        self.live += 1
        if subscription.queued:
            self.entries[subscription.newest & (self.capacity - 1)].next = number
        if subscription.waiting == 0:
            subscription.oldest = number
        subscription.newest = number
        subscription.queued += 1
        subscription.published += 1
        subscription.channel.published += 1
        subscription.waiting += 1
        subscription.waiting_bytes += PyBytes_GET_SIZE(message.frame)
        if self.behind_since:
            return self.append_behind(subscription, message, number)
        if not self.in_turn:
            self.turn.add(self)
        return 0

    cdef int append_behind(self, Subscription subscription, _Message message, Py_ssize_t number) except -1:
        cdef bint begins = mark_slow(subscription)
        if subscription.policy == SlowConsumer.CONFLATE and message.key is not None:
            self.pins += 1
            try:
                self.conflate(subscription, message, number)
            finally:
                self.unpin()
        if begins:
            tell_slow(subscription)
        return 0

    # --- Writing

    cdef int may_write(self) except -1:
        self.interrupted = True
        if self.behind_since:
            self.write()
        return 0

    cdef int write_before(self) except -1:
        self.interrupted = True
        if self.live and not self.behind_since:
            self.write()
        return 0

    cdef int write(self) except -1:
        """Give the stream what it takes. If it raises, the connection has ended."""
        cdef _ClientOutbox alive = self     # the transport forgets it when the connection ends, and others may
        if self.writing:
            return 0
        self.writing = True
        try:
            while self.live and self.write_some():
                pass
        except BaseException as error:
            alive.fail(error)
            raise
        finally:
            self.writing = False
        if self.live == 0:
            self.behind_since = 0
        return 0

    cdef int fail(self, error) except -1:
        """Something raised in the midst of writing: what the stream has is not known, and nothing can follow it."""
        cdef WSTransport transport = self.transport
        if self.is_ended:
            return 0
        transport._set_cause(WSDisconnectCause.INTERNAL_ERROR, error)
        transport.receiving = False
        try:
            transport.stream.drop()
        finally:
            transport._end_outbox()
        return 0

    cdef bint write_some(self) except -1:
        """One write. Returns whether the stream may take more."""
        cdef WSTransport transport = self.transport
        cdef ByteStream stream = transport.stream
        if not transport._can_send() or stream.write_failed:
            transport._end_outbox()
            return False
        if transport.in_message or stream.corks:
            self.fall_behind()
            return False
        if stream.backlog_size():
            if stream.flush_scheduled:
                stream.flush()      # the application's own, of this turn; calls it, and it may do anything
                if self.is_ended:
                    return False
                if stream.backlog_size() == 0:
                    return True
            stream.want_drain()
            self.fall_behind()
            return False
        self.pins += 1
        self.interrupted = False
        try:
            self.give(transport, stream)
        finally:
            self.given = 0
            self.unpin()
        if stream.write_failed:
            transport._end_outbox()
        if self.is_ended:
            return False
        if stream.backlog_size() == 0:
            return True
        transport._check_backlog()      # may call the application, which may publish
        if self.live == 0:
            return False
        if stream.backlog_size() == 0:
            return True
        stream.want_drain()
        self.fall_behind()
        return False

    cdef int give(self, WSTransport transport, ByteStream stream) except -1:
        """Write what fits into one piece, and count what was sent."""
        cdef Py_ssize_t piece = (
            LARGEST_PIECE if stream.can_take_back and not stream.coalescing else COMMITTED_PIECE
        )
        cdef Py_ssize_t size = 0
        cdef Py_ssize_t taken_back = 0
        cdef Py_ssize_t upto = self.first
        cdef Py_ssize_t left, number
        cdef _Message alone = None
        cdef Py_ssize_t frame_size
        cdef bytes frame
        cdef PyObject *borrowed
        cdef Entry *entry
        while upto < self.end:
            entry = &self.entries[upto & (self.capacity - 1)]
            if entry.message != NULL:
                borrowed = <PyObject*> (<_Message> entry.message).frame
                frame_size = PyBytes_GET_SIZE(<bytes> borrowed)
                if size == 0:
                    alone = <_Message> entry.message
                elif size + frame_size > piece:
                    break
                else:
                    if alone is not None:
                        memcpy(transport.scratch, PyBytes_AS_STRING(alone.frame), <size_t> size)
                        alone = None
                    memcpy(transport.scratch + size, PyBytes_AS_STRING(<bytes> borrowed), <size_t> frame_size)
                size += frame_size
            upto += 1
        # From here on any code may run. What it publishes goes behind these, and what it removes is not one of them.
        self.given = upto
        if alone is not None:
            stream.writev(<const uint8_t*> PyBytes_AS_STRING(alone.frame), size, NULL, 0)
        else:
            stream.writev(transport.scratch, size, NULL, 0)
        if stream.coalescing:
            self.count_sent(transport, upto)    # nothing can be taken back
            if not stream.closing:
                stream.flush()      # may call the application
            return 0
        if stream.backlog_size() and not self.interrupted and not self.is_ended:
            # Whole frames of which nothing has left may still be conflated, and must not be in a PONG's way.
            left = stream.backlog_size()
            number = upto
            while number > self.first:
                entry = &self.entries[(number - 1) & (self.capacity - 1)]
                if entry.message != NULL:
                    frame = (<_Message> entry.message).frame
                    if PyBytes_GET_SIZE(frame) >= left - taken_back:
                        break
                    taken_back += PyBytes_GET_SIZE(frame)
                number -= 1
            if taken_back and stream.take_back(taken_back):
                upto = number
        if stream.write_failed:
            return 0
        self.count_sent(transport, upto)
        return self.given_back(upto)

    cdef int given_back(self, Py_ssize_t number) except -1:
        """Entries from this one on were given in vain: what has become of their messages meanwhile?"""
        cdef Py_ssize_t upto = self.given
        cdef Subscription subscription
        cdef _Message message
        self.given = 0
        for number in range(number, upto):
            if self.entries[number & (self.capacity - 1)].message == NULL:
                continue
            subscription = <Subscription> self.entries[number & (self.capacity - 1)].subscription
            message = <_Message> self.entries[number & (self.capacity - 1)].message
            if not subscription.is_active:
                self.remove(number)
                subscription.discarded += 1
                subscription.channel.discarded += 1
            elif subscription.by_key is not None and message.key is not None:
                self.conflate(subscription, message, number)
        return 0

    cdef int count_sent(self, WSTransport transport, Py_ssize_t upto) except -1:
        """The messages before this entry were given to the stream. pop_removed() is to follow."""
        cdef Py_ssize_t number
        cdef Py_ssize_t count = 0
        cdef Py_ssize_t size = 0
        cdef PyObject *counted = NULL   # the subscription that `count` and `size` are of: most messages have one
        cdef PyObject *message
        cdef PyObject *frame
        cdef Entry *entry
        for number in range(self.first, upto):
            entry = &self.entries[number & (self.capacity - 1)]
            message = entry.message
            if message == NULL:
                continue
            frame = <PyObject*> (<_Message> message).frame
            transport._count_sent(
                PyBytes_AS_STRING(<bytes> frame)[0] & 0x0F, payload_size_of(frame)
            )
            if (<Subscription> entry.subscription).by_key is not None:
                (<Subscription> entry.subscription).sent += 1
                (<Subscription> entry.subscription).channel.sent += 1
                self.remove(number)
                continue
            if entry.subscription != counted:
                if counted != NULL:
                    take_sent(<Subscription> counted, count, size)
                counted = entry.subscription
                count = size = 0
            count += 1
            size += PyBytes_GET_SIZE(<bytes> frame)
            entry.message = NULL
            self.live -= 1
            Py_DECREF(<object> message)
        if counted != NULL:
            take_sent(<Subscription> counted, count, size)
        return 0

    cdef int fall_behind(self) except -1:
        """The client does not take what there is: from now on, policies apply."""
        cdef Py_ssize_t number
        cdef Py_ssize_t upto = self.end
        cdef Subscription subscription
        cdef _Message message
        cdef list begins
        if self.behind_since:
            return 0
        begins = []
        self.behind_since = pf_monotonic()
        self.pins += 1
        try:
            for number in range(self.first, upto):
                if self.entries[number & (self.capacity - 1)].message == NULL:
                    continue
                subscription = <Subscription> self.entries[number & (self.capacity - 1)].subscription
                message = <_Message> self.entries[number & (self.capacity - 1)].message
                if mark_slow(subscription):
                    begins.append(subscription)
                if subscription.policy == SlowConsumer.CONFLATE and message.key is not None:
                    self.conflate(subscription, message, number)
        finally:
            self.unpin()
        for subscription in begins:
            tell_slow(subscription)
        return 0

    cdef int conflate(self, Subscription subscription, _Message message, Py_ssize_t number) except -1:
        """Keep the newest of this message's key, and what is with the stream. Entries must be pinned."""
        cdef Py_ssize_t older, newest
        if subscription.by_key is None:
            subscription.by_key = {}
            if self.entries[number & (self.capacity - 1)].message == NULL:
                return 0        # making it collected garbage, whose finalizer has left the channel
        known = subscription.by_key.get(message.key)
        if known is None or known == number:
            subscription.by_key[message.key] = number
            return 0
        newest = max(<Py_ssize_t> known, number)
        older = min(<Py_ssize_t> known, number)
        if newest == number:
            subscription.by_key[message.key] = number
        if older >= self.given:
            self.remove(older)
            subscription.conflated += 1
            subscription.channel.conflated += 1
        return 0

    # --- The ring

    cdef int remove(self, Py_ssize_t number) except -1:
        """Take the message out of an entry. pop_removed() is to follow."""
        cdef Entry *entry = &self.entries[number & (self.capacity - 1)]
        cdef Subscription subscription = <Subscription> entry.subscription
        cdef _Message message = <_Message> entry.message
        entry.message = NULL
        Py_DECREF(message)
        self.live -= 1
        subscription.waiting -= 1
        subscription.waiting_bytes -= PyBytes_GET_SIZE(message.frame)
        if subscription.waiting == 0:
            subscription.by_key = None
            if subscription.behind_since:
                subscription.behind_since = 0
                subscription.channel.slow -= 1
        elif subscription.by_key is not None and message.key is not None:
            if subscription.by_key.get(message.key) == number:
                del subscription.by_key[message.key]
        return 0

    cdef int pop_removed(self) except -1:
        """Free the entries before the oldest message."""
        cdef Entry *entry
        cdef Subscription subscription
        cdef PyObject *last = NULL
        cdef Py_ssize_t number
        cdef list _departed     # freed last: that may run weakref callbacks
        if self.pins:
            return 0
        if self.live == 0:
            for number in range(self.first, self.end):
                entry = &self.entries[number & (self.capacity - 1)]
                if entry.subscription != last:
                    last = entry.subscription
                    (<Subscription> last).queued = 0
            self.first = self.end
        while self.first < self.end:
            entry = &self.entries[self.first & (self.capacity - 1)]
            if entry.message != NULL:
                return 0
            subscription = <Subscription> entry.subscription
            subscription.queued -= 1
            if subscription.oldest == self.first:
                subscription.oldest = entry.next
            self.first += 1
        self.first = self.end = 0
        if self.capacity > RING_KEPT:
            PyMem_Free(self.entries)
            self.entries = NULL
            self.capacity = 0
        _departed = self.departed
        self.departed = None
        return 0

    cdef int unpin(self) except -1:
        """Entries may move again."""
        self.pins -= 1
        if self.pins == 0:
            if self.is_ended:
                return self.discard_all()
            return self.pop_removed()
        return 0

    cdef bint reserve(self, Py_ssize_t count) except -1:
        """Make room for so many entries. Returns False, and has changed nothing, if there is no memory for them."""
        cdef Py_ssize_t capacity, number
        cdef Entry *entries
        while self.capacity - (self.end - self.first) < count:
            if self.capacity and 2 * (self.live + count) <= self.capacity and not self.pins:
                self.compact()
                continue
            capacity = 2 * self.capacity if self.capacity else SMALLEST_RING
            while capacity < self.end - self.first + count:
                capacity *= 2
            entries = <Entry*> PyMem_Malloc(<size_t> capacity * sizeof(Entry))
            if entries == NULL:
                return False
            for number in range(self.first, self.end):
                entries[number & (capacity - 1)] = self.entries[number & (self.capacity - 1)]
            PyMem_Free(self.entries)
            self.entries = entries
            self.capacity = capacity
        return True

    cdef int compact(self) except -1:
        """Close the gaps that conflation and leaving have made."""
        cdef Py_ssize_t mask = self.capacity - 1
        cdef Py_ssize_t kept = self.first
        cdef Py_ssize_t number
        cdef Subscription subscription
        cdef _Message message
        for number in range(self.first, self.end):
            (<Subscription> self.entries[number & mask].subscription).queued = 0
        for number in range(self.first, self.end):
            if self.entries[number & mask].message == NULL:
                continue
            self.entries[kept & mask] = self.entries[number & mask]
            subscription = <Subscription> self.entries[kept & mask].subscription
            if subscription.queued:
                self.entries[subscription.newest & mask].next = kept
            else:
                subscription.oldest = kept
            subscription.newest = kept
            subscription.queued += 1
            if subscription.by_key is not None:
                message = <_Message> self.entries[kept & mask].message
                if message.key is not None:
                    subscription.by_key[message.key] = kept
            kept += 1
        self.end = kept
        departed = self.departed
        if departed:
            try:
                self.departed = [gone for gone in departed if (<Subscription> gone).queued]
            except MemoryError:
                pass            # they stay for longer
        return 0

    # --- The end

    cdef int discard(self, Subscription subscription) except -1:
        """What waits for this subscription is not sent. What is with the stream already is."""
        cdef Py_ssize_t number = subscription.oldest
        while subscription.waiting:
            if number >= self.given and self.entries[number & (self.capacity - 1)].message != NULL:
                self.remove(number)
                subscription.discarded += 1
                subscription.channel.discarded += 1
            if number == subscription.newest:
                break
            number = self.entries[number & (self.capacity - 1)].next
        return self.pop_removed()

    cdef int discard_all(self) except -1:
        """The connection has ended: nothing is sent any more. Once nothing is with the stream, forget all."""
        cdef Subscription subscription
        cdef Py_ssize_t number
        for number in range(self.first, self.end):
            if number >= self.given and self.entries[number & (self.capacity - 1)].message != NULL:
                subscription = <Subscription> self.entries[number & (self.capacity - 1)].subscription
                self.remove(number)
                subscription.discarded += 1
                subscription.channel.discarded += 1
        self.behind_since = 0
        if self.pins == 0:
            self.pop_removed()
            self.subscriptions.clear()
        return 0

    cdef int leave(self, Subscription subscription) except -1:
        """The subscription ends, the connection does not."""
        if subscription.queued:
            if self.departed is None:
                self.departed = []
            self.departed.append(subscription)
        subscription.is_active = False
        subscription.channel._remove(subscription)
        del self.subscriptions[subscription.channel]
        if subscription.queued:
            self.discard(subscription)
        if self.live == 0:
            self.behind_since = 0
        return 0

    cdef int ended(self) except -1:
        cdef Subscription subscription
        self.is_ended = True
        for subscription in self.subscriptions.values():
            subscription.is_active = False
            subscription.channel._remove(subscription)
        return self.discard_all()


cdef int count_discarded(Subscription subscription) except -1:
    """A message came for a subscription that has ended, or ends with it."""
    subscription.published += 1
    subscription.channel.published += 1
    subscription.discarded += 1
    subscription.channel.discarded += 1
    return 0


cdef int take_sent(Subscription subscription, Py_ssize_t count, Py_ssize_t size) except -1:
    """So many of its messages, of which no keys are kept, do not wait any more: they were sent."""
    subscription.sent += count
    subscription.channel.sent += count
    subscription.waiting -= count
    subscription.waiting_bytes -= size
    if subscription.waiting == 0 and subscription.behind_since:
        subscription.behind_since = 0
        subscription.channel.slow -= 1
    return 0


cdef bint mark_slow(Subscription subscription) noexcept:
    """Returns whether it was not slow before, and on_slow is to be called."""
    cdef Channel channel = subscription.channel
    if subscription.behind_since:
        return False
    subscription.behind_since = pf_monotonic()
    subscription.times_slow += 1
    channel.slow += 1
    return channel.on_slow is not None


cdef int tell_slow(Subscription subscription) except -1:
    subscription.outbox.transport.loop.call_soon(subscription.channel.on_slow, subscription)
    return 0


# --- Subscription ----------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class Subscription:
    """One transport on one channel. Made by :meth:`Channel.subscribe`.

    Read-only attributes, besides the properties:

    - ``channel``; ``policy``, ``max_messages`` and ``max_bytes``: what it was made with
    - ``is_active``: False once it has left the channel or the connection ended
    - ``published``, ``sent``, ``conflated``, ``dropped``, ``discarded``, ``waiting``: messages, a snapshot's included;
      published is the sum of the others, always. Sent means given to the connection
    - ``waiting_bytes``: bytes of frames that wait
    - ``times_slow``: how often messages had to wait for a client that was behind
    """

    def __cinit__(self, *arguments):
        if len(arguments) != 1 or arguments[0] is not _maker:
            raise TypeError("Subscription objects are made by Channel.subscribe()")

    @property
    def transport(self):
        """WSTransport: the subscriber's."""
        return self.outbox.transport

    @property
    def slow_since(self):
        """float: since when messages wait for a client that is behind, in seconds of ``time.monotonic()``; or None."""
        return self.behind_since or None

    def unsubscribe(self):
        """Leave the channel; what waits is discarded. Does nothing if the subscription has ended.

        :raises RuntimeError: called from another thread
        """
        self.channel._check_thread("unsubscribe")
        if self.is_active:
            self.outbox.leave(self)

    def __repr__(self):
        state = "" if self.is_active else " ended"
        return f"<Subscription to {self.channel.name!r}{state}, {self.waiting} waiting>"


cdef object _maker = object()


cdef inline void prefetch_outbox(subscription) noexcept:
    if subscription is not None:
        pf_prefetch(<PyObject*> (<Subscription> subscription).outbox, OBJECT_SIZE)


# --- Channel ---------------------------------------------------------------------------------------

cdef Py_ssize_t checked_limit(str name, value) except -1:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


cdef checked_callable(str name, value):
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, got {type(value).__name__}")
    return value


cdef SlowConsumer checked_policy(value) except *:
    if not isinstance(value, int) or not SlowConsumer.CLOSE <= value <= SlowConsumer.CONFLATE:
        raise ValueError(f"policy must be a SlowConsumer, got {value!r}")
    return value


@cython.final
@cython.auto_pickle(False)
cdef class Channel:
    """What is published here goes to every transport that has subscribed.

    ::

        prices = Channel("prices", policy=SlowConsumer.CONFLATE)
        prices.subscribe(transport)
        prices.publish(WSMsgType.TEXT, '{"BTC": 97000}', key="BTC")

    Belongs to the event loop of its subscribers; a transport may be on any number of channels. Each client gets
    messages in the order of publishing, across channels too. A client is behind while its connection does not take
    what there is; only then the policy applies.

    :param name: str, for logs
    :param policy: a :class:`SlowConsumer`: what to do when more waits for a client than the limits allow. CONFLATE
        applies to messages with a key from the moment the client is behind; beyond the limits it closes
    :param max_messages: messages that may wait for one subscription
    :param max_bytes: bytes of frames that may wait for one subscription
    :param close_code: int, what a slow client is closed with: TRY_AGAIN_LATER (1013), POLICY_VIOLATION, ...
    :param close_reason: str, at most 123 bytes
    :param join_turn: what one turn of the loop publishes leaves together when it is over; else each message at once
    :param snapshot: called with the transport of a new subscriber; returns an iterable of (msg_type, message) or
        (msg_type, message, key), which are sent before every later message. The limits are not applied to them
    :param on_slow: called with the Subscription, in a later turn, when messages begin to wait for a client
    :param loop: the event loop of the subscribers to come, for ``publish_threadsafe`` before the first; else the loop
        that runs now, or the first subscriber's. A channel without subscribers may go to another one
    :raises ValueError: a policy, limit or close code that there is not
    :raises TypeError: an argument of a wrong type

    Read-only attributes, besides what it was made with (``joins_turn`` is what join_turn was):

    - ``messages``: calls of :meth:`publish`
    - ``published``, ``sent``, ``conflated``, ``dropped``, ``discarded``, ``waiting``: sums over all subscriptions,
      those that have ended included
    - ``slow``: subscriptions that have messages waiting for a client that is behind
    - ``closed_slow``: connections that the CLOSE policy has ended, or CONFLATE's limits
    """

    def __init__(self, str name="", *, policy=SlowConsumer.CLOSE, max_messages=DEFAULT_MAX_MESSAGES,
                 max_bytes=DEFAULT_MAX_BYTES, close_code=CloseCode.TRY_AGAIN_LATER,
                 str close_reason="too slow: messages wait for this client", bint join_turn=True, snapshot=None,
                 on_slow=None, loop=None):
        if name is None or close_reason is None:
            raise TypeError("name and close_reason must be a str, got None")
        if self.subscribers:
            raise RuntimeError("the channel has subscribers")
        self.policy = checked_policy(policy)
        self.max_messages = checked_limit("max_messages", max_messages)
        self.max_bytes = checked_limit("max_bytes", max_bytes)
        build_close_payload(close_code, close_reason)
        self.name = name
        self.close_code = close_code
        self.close_reason = close_reason
        self.joins_turn = join_turn
        self.snapshot = checked_callable("snapshot", snapshot)
        self.on_slow = checked_callable("on_slow", on_slow)
        thread_id = 0
        if loop is None:
            try:
                loop = asyncio.get_running_loop()
                thread_id = PyThread_get_thread_ident()
            except RuntimeError:
                pass    # the first subscriber tells
        self.loop = loop
        self.thread_id = thread_id
        self.subscribers = []

    @property
    def waiting(self):
        """int: messages that wait for clients, over all subscriptions."""
        return self.published - self.sent - self.conflated - self.dropped - self.discarded

    cdef int _check_thread(self, str method) except -1:
        if self.thread_id and PyThread_get_thread_ident() != self.thread_id and not self._is_without_loop():
            raise RuntimeError(
                f"{method}() must be called from the event loop's thread; publish_threadsafe() may be called elsewhere"
            )
        return 0

    cdef bint _is_without_loop(self) except -1:
        """No event loop serves a subscriber, and the last one that did will not come back."""
        return len(self.subscribers) == self.holes and (self.loop is None or self.loop.is_closed())

    # --- Subscribers

    def subscribe(self, WSTransport transport not None, *, policy=None, max_messages=None, max_bytes=None):
        """Add a subscriber, which gets the snapshot, if there is one, and every later message.

        On a connection that is closing or gone the returned subscription has ended.

        :param transport: server side
        :param policy: for this subscription; None: the channel's; likewise max_messages and max_bytes
        :returns: :class:`Subscription`
        :raises ValueError: the transport has subscribed already, belongs to another event loop than the channel's
            subscribers, or is a client's: its frames are masked one by one (RFC 6455 5.3)
        :raises RuntimeError: called from another thread, or before the opening handshake is done
        :raises MemoryError: there is no room for the snapshot; nothing of it is sent
        :raises BaseException: what ``snapshot`` raised
        """
        cdef Subscription subscription = Subscription.__new__(Subscription, _maker)
        cdef _ClientOutbox outbox
        cdef list messages = []
        transport._check_thread("subscribe")
        if transport.is_client_side:
            raise ValueError("a client's transport cannot subscribe: its frames are masked one by one; use send()")
        self._check_subscriber(transport)
        subscription.channel = self
        subscription.policy = self.policy if policy is None else checked_policy(policy)
        subscription.max_messages = (
            self.max_messages if max_messages is None else checked_limit("max_messages", max_messages)
        )
        subscription.max_bytes = self.max_bytes if max_bytes is None else checked_limit("max_bytes", max_bytes)
        if transport.state_code < OPEN:
            raise RuntimeError("the opening handshake is not done")
        if self.snapshot is not None and transport._can_send() and transport.state_code <= CLOSING:
            for item in self.snapshot(transport):
                messages.append(encode(item[0], item[1], item[2] if len(item) > 2 else None))
        outbox = self._outbox_of(transport, len(messages))
        # The snapshot is the application's code, and making objects can run finalizers: both may have done anything.
        self._check_subscriber(transport)
        subscription.outbox = outbox
        if outbox.is_ended or not transport._can_send() or transport.state_code > CLOSING:
            return subscription
        # No Python code runs from here until the subscription is complete.
        outbox.subscriptions[self] = subscription
        try:
            self.subscribers.append(subscription)
        except MemoryError:
            del outbox.subscriptions[self]
            raise
        transport.outbox = outbox
        self.loop = transport.loop
        self.thread_id = transport.thread_id
        self.turn = outbox.turn
        subscription.index = len(self.subscribers) - 1
        subscription.is_active = True
        for message in messages:
            outbox.put_anyway(subscription, <_Message> message)
        if not self.joins_turn and messages:
            outbox.write()
        return subscription

    cdef int _check_subscriber(self, WSTransport transport) except -1:
        if len(self.subscribers) > self.holes and transport.loop is not self.loop:
            raise ValueError("the transport belongs to another event loop than the channel's subscribers")
        if self.subscription(transport) is not None:
            raise ValueError("the transport has subscribed to this channel already")
        return 0

    cdef _ClientOutbox _outbox_of(self, WSTransport transport, Py_ssize_t messages):
        """The transport's outbox, or a new one, with room for a snapshot of so many messages."""
        cdef _ClientOutbox outbox
        turn = _turns.get(transport.loop)
        if turn is None:
            turn = _turns.setdefault(transport.loop, _Turn())
        if transport.outbox is None:
            outbox = _ClientOutbox.__new__(_ClientOutbox)
            outbox.transport = transport
            outbox.turn = turn
        if transport.outbox is not None:
            outbox = <_ClientOutbox?> transport.outbox
        if messages and not (outbox.in_turn or outbox.behind_since):
            outbox.turn.add(outbox)
        if not outbox.reserve(messages):
            raise MemoryError()
        return outbox

    cpdef Subscription subscription(self, WSTransport transport):
        """Return this transport's :class:`Subscription`, None if it is not on the channel."""
        if transport is None:
            raise TypeError("transport must be a WSTransport, got None")
        if transport.outbox is None:
            return None
        return (<_ClientOutbox?> transport.outbox).subscriptions.get(self)

    cpdef bint unsubscribe(self, WSTransport transport) except -1:
        """Remove a subscriber; what waits for it is discarded. Returns whether it was one.

        :raises RuntimeError: called from another thread
        """
        cdef Subscription subscription
        self._check_thread("unsubscribe")
        subscription = self.subscription(transport)
        if subscription is None:
            return False
        subscription.outbox.leave(subscription)
        return True

    def __len__(self):
        return len(self.subscribers) - self.holes

    def __contains__(self, transport):
        return isinstance(transport, WSTransport) and self.subscription(transport) is not None

    def __iter__(self):
        """The subscriptions, in no order that could be relied on."""
        return iter([one for one in self.subscribers if one is not None])

    def __bool__(self):
        return True

    def __repr__(self):
        return f"<Channel {self.name!r}, {len(self)} subscribers>"

    cdef int _remove(self, Subscription subscription) except -1:
        cdef Py_ssize_t end = len(self.subscribers) - 1
        cdef Subscription last
        if self.publishing or self.holes:
            # publish() is on its way through the list.
            self.subscribers[subscription.index] = None
            self.holes += 1
            return 0
        last = <Subscription> self.subscribers[end]
        self.subscribers[subscription.index] = last
        last.index = subscription.index
        self.subscribers[end] = None
        self.holes = 1
        return self._close_holes_from(end)

    cdef int _close_holes(self) except -1:
        cdef Py_ssize_t index
        cdef Py_ssize_t kept = 0
        for index in range(len(self.subscribers)):
            if self.subscribers[index] is not None:
                self.subscribers[kept] = self.subscribers[index]
                (<Subscription> self.subscribers[kept]).index = kept
                kept += 1
        return self._close_holes_from(kept)

    cdef int _close_holes_from(self, Py_ssize_t kept) except -1:
        """Nothing from here on is a subscription."""
        cdef Py_ssize_t index
        for index in range(kept, len(self.subscribers)):
            self.subscribers[index] = None      # it is not the only reference
        self.holes = len(self.subscribers) - kept
        try:
            while self.holes:
                self.subscribers.pop()
                self.holes -= 1
        except MemoryError:
            pass            # to shrink a list may take memory: next time
        return 0

    # --- Publishing

    cpdef Py_ssize_t publish(self, WSMsgType msg_type, message, key=None) except -1:
        """Send one message, in one frame, to all subscribers. Returns how many there are.

        :param msg_type: TEXT or BINARY
        :param message: payload: str (sent as UTF-8), bytes-like or None; it may be reused at once
        :param key: str, bytes or int: for CONFLATE, the newest message of each is kept; None: it is never conflated
        :raises ValueError: another msg_type
        :raises TypeError: message is neither str, bytes-like nor None; a key of another type
        :raises RuntimeError: called from another thread
        """
        self._check_thread("publish")
        return self._publish(encode(msg_type, message, key))

    def publish_threadsafe(self, WSMsgType msg_type, message, key=None):
        """As :meth:`publish`, from any thread: the message is encoded at once and published by the event loop.

        The messages of one thread are published in order.

        Before the first subscriber has told the event loop, as between two loops, it goes to nobody, as
        :meth:`publish` without subscribers. With ``Channel(loop=...)`` a client that subscribes before the loop comes
        to it gets it.

        :raises RuntimeError: the loop of the subscribers is closed
        """
        cdef _Message encoded = encode(msg_type, message, key)
        if self._is_without_loop():
            self.messages += 1
            return
        self.loop.call_soon_threadsafe(self._publish_turn, encoded)

    def _publish_turn(self, _Message message):
        self._publish(message)

    cdef Py_ssize_t _publish(self, _Message message) except -1:
        cdef Py_ssize_t count = len(self.subscribers)
        cdef Py_ssize_t given = count - self.holes
        cdef _Turn turn = self.turn
        if given == 0:
            self.messages += 1
            return 0
        self.publishing += 1        # the list keeps its places from here on, whatever code runs
        if turn.publishing:
            # From a callback of another publish(), whose message is to come first everywhere.
            try:
                turn.deferred.append((self, message, count))
            except MemoryError:
                self._published()
                raise
            self.messages += 1
            return given
        self.messages += 1
        turn.publishing = True
        try:
            fatal = self._give(message, count)
            while turn.deferred:
                later, message, count = turn.deferred.pop(0)
                fatal = (<Channel> later)._give(message, count) or fatal
        finally:
            turn.publishing = False
        if fatal is not None:
            raise fatal
        return given

    cdef object _give(self, _Message message, Py_ssize_t count):
        """Give a message to the subscribers there were. Returns what is to be raised when everybody has it."""
        cdef list subscribers = self.subscribers
        cdef Py_ssize_t index = 0
        cdef Subscription subscription
        cdef _ClientOutbox outbox
        fatal = None
        while index < count:
            try:
                while index < count:
                    if index + 2 * AHEAD < count:
                        pf_prefetch(<PyObject*> subscribers[index + 2 * AHEAD], OBJECT_SIZE)
                    if index + AHEAD < count:
                        prefetch_outbox(subscribers[index + AHEAD])
                    subscription = <Subscription> subscribers[index]
                    index += 1
                    if subscription is None:
                        continue
                    subscription.outbox.put(subscription, message)
                    if not self.joins_turn and not subscription.outbox.behind_since:
                        subscription.outbox.write()
            except BaseException as error:
                outbox = subscription.outbox
                if outbox.live and not (outbox.in_turn or outbox.behind_since):
                    outbox.fail(error)      # nothing would write what it holds
                fatal = report(outbox, error) or fatal
        self._published()
        return fatal

    cdef int _published(self) except -1:
        self.publishing -= 1
        if self.publishing == 0 and self.holes:
            self._close_holes()
        return 0


pf_explain_publish(Channel)
