# ByteStream: bytes in order, both ways, over whatever carries them. StreamHandler: who is told of them.
#
# Owns: the receive buffers, what was received and not yet used, what was written and not yet sent, and the
# orderly end of a stream. Does not own: any meaning of the bytes, deadlines (the handler has the timer), logging.
#
# The life of a stream: open -> end() (what was written is sent, then our FIN, then the peer's is awaited)
# or drop() -> stream_closed() on the handler, exactly once, from the event loop, when everything is released.

from libc.stdint cimport uint8_t


cpdef enum StreamEnd:
    """Why no more bytes will come."""
    FIN = 1                 # the peer shut down its side
    RESET = 2               # the peer, or something between, reset the connection
    FAILED = 3              # the operating system gave up (timeout, unreachable, ...)
    TLS_CLOSE_NOTIFY = 4    # TLS was shut down as RFC 8446 6.1 asks
    TLS_TRUNCATED = 5       # FIN without close_notify: data may be missing
    TLS_FAILED = 6          # handshake, certificate or record error


# What the application asks of the stream itself, which is the layer above's to do.
cdef enum StreamRequest:
    CLOSE
    ABORT
    PAUSE
    RESUME


# Memory that bytes are received into. Frames and views that outlive the read keep it alive.
cdef class ReceiveBuffer:
    cdef:
        uint8_t *data
        Py_ssize_t capacity


# The receive buffer that all streams of one event loop share: it is only in use between a read and the
# handler's return, so a stream without an unfinished unit owns none.
cdef class ReadSpace:
    cdef:
        ReceiveBuffer buffer
        Py_ssize_t base         # bytes below it are held by views that outlived their read
        bint busy               # a handler is looking at it
        ReceiveBuffer large     # what the last large unit was received in; None if it is in use
        int reads_without       # reads since then that had no use for it

    cdef int settle(self, Py_ssize_t filled) noexcept
    cdef ReceiveBuffer take_large(self, Py_ssize_t capacity)
    cdef int give_large(self, ReceiveBuffer buffer) except -1
    cdef int read_without_large(self) except -1


cdef class StreamHandler:
    # Bytes have arrived; they may be changed in place. Returns how many were used: the rest is given
    # again with what follows. `owner` is what keeps `data` alive; hold it to keep the memory.
    cdef Py_ssize_t stream_data(self, uint8_t *data, Py_ssize_t size, object owner) except -1
    # Size of the unfinished unit at the start of what was not used; 0 if it is not known.
    cdef Py_ssize_t stream_wanted(self) noexcept
    # No more bytes will come. The handler answers with end() or drop(), now or later.
    cdef int stream_end(self, int end, object error) except -1
    # Everything is released. Comes once, from the event loop; error is what sending failed with, if it did.
    cdef int stream_closed(self) except -1
    # The backlog went above the high or below the low watermark.
    cdef int stream_pause_writing(self) except -1
    cdef int stream_resume_writing(self) except -1
    # The backlog is empty, as want_drain() asked to be told.
    cdef int stream_drained(self) except -1
    # An error came up while bytes were received, and some of them are lost: nothing that follows may be used. The
    # handler ends the connection.
    cdef int stream_broken(self, error) except -1
    # The application asked for this (a StreamRequest), or wrote raw bytes, on the stream's Python surface. Returns
    # whether the handler has seen to it.
    cdef bint stream_asked(self, int what) except -1
    cdef bint stream_write(self, const uint8_t *data, Py_ssize_t size) except -1


cdef class ByteStream(StreamHandler):
    cdef:
        object __weakref__
        readonly object loop
        dict noted                      # what get_extra_info() says, whatever the system does; None: nothing
        StreamHandler handler
        int depth                       # streams below this one

        # --- in
        ReadSpace space
        ReadSpace keeper                # whose memory for large units is used: the loop's
        ReceiveBuffer pending           # received and not used yet; None if there is nothing
        Py_ssize_t pending_start, pending_end
        Py_ssize_t own_buffer_size      # bytes a large unfinished unit's buffer starts with
        # Size of the last unit if it was more than the shared buffer takes, else 0. The next one is read at once, into
        # the memory kept for large ones, where reserve() and received() are in the same call.
        Py_ssize_t expected
        bint reads_at_once, reads_large
        readonly bint reading_paused
        bint end_seen                   # stream_end() was called
        # The handler is looking at received bytes. An event loop that runs inside its callback must not read more of
        # them: they would overtake the rest of what the handler has. `reentered`: such a loop wanted to.
        bint delivering, reentered
        # When the newest of what the handler is shown came, as the kernel noted it: nanoseconds of the system's
        # real-time clock, and of the network device's own. -1: not known.
        long long arrived, arrived_by_hardware

        # --- out
        uint8_t *backlog                # written and not sent yet: backlog[backlog_start:backlog_end]
        Py_ssize_t backlog_start, backlog_end, backlog_capacity
        Py_ssize_t high_watermark, low_watermark    # bytes
        readonly bint writing_paused
        int corks                       # cork() calls without their uncork()
        bint coalescing                 # what one turn of the loop writes leaves together
        bint flush_scheduled
        bint in_unit                    # between begin_unit() and end_unit()
        bint drain_wanted               # the handler is to be told when the backlog is empty
        bint can_take_back              # take_back() may succeed; False: what was written is committed
        bint write_failed               # what is written is thrown away; the end is reported soon
        Py_ssize_t backlog_lost         # bytes that were taken and never left, once that is certain

        # --- end
        readonly bint closing           # end() or drop() was called
        readonly bint closed            # everything is released, or about to be by the next turn

    # Send two pieces in order; what cannot be sent at once is copied to the backlog. If there is no memory for that,
    # the stream ends: a unit that is cut in two must not be followed by another.
    cdef int writev(self, const uint8_t *head, Py_ssize_t head_size,
                    const uint8_t *body, Py_ssize_t body_size) except -1
    # Around the write() calls of a unit that is written in several pieces. No Python code runs in between, so no other
    # unit can come into the midst of this one.
    cdef int begin_unit(self) except -1
    cdef int end_unit(self) except -1
    # To be called when a whole unit was written: pause_writing() must not come in the midst of one.
    cdef int check_high_watermark(self) except -1
    # Bytes that wait for the peer.
    cdef Py_ssize_t backlog_size(self) noexcept
    # The stream above counts as paused by its watermarks, or no longer does: then, and only then, the handler's
    # stream_resume_writing() is called when no more than low_watermark bytes wait.
    cdef int note_writing_paused(self, bint paused) except -1
    # Call the handler's stream_drained() once, when the backlog is empty. To be asked only while it is not.
    cdef int want_drain(self) except -1
    # Forget the last `size` bytes of what was written, if none of them left and some before them wait, too. Returns
    # whether they could be: what was encrypted cannot.
    cdef bint take_back(self, Py_ssize_t size) noexcept
    cdef int cork(self) except -1
    cdef int uncork(self) except -1
    # Begin to receive. A TLS stream begins its handshake, and holds writes back until that is done.
    cpdef start(self)
    cdef int end(self) except -1
    cdef int drop(self) except -1
    cdef int pause(self) except -1
    cdef int resume(self) except -1

    # The loop's poller found the descriptor ready. Returns PollResults.
    cdef int descriptor_ready(self, bint readable, bint writable) except -1

    # --- for implementations
    cdef int flush(self) except -1
    # No Python code may run between reserve() and received(): the memory is shared by the loop's streams.
    cdef Py_ssize_t reserve(self, uint8_t **where) except -1
    cdef int received(self, Py_ssize_t size) except -1
    cdef int receive_copy(self, bytes data) except -1
    cdef ReadSpace _fresh_space(self)
    cdef int deliver_pending(self) except -1
    cdef int _save(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int _grow(self) except -1
    cdef Py_ssize_t _large_capacity(self, Py_ssize_t size) except -1
    cdef int _delivery_over(self) except -1
    cdef int broken(self, error) except -1
    # Go on receiving, after a pause or a delivery that was re-entered.
    cdef int read_on(self) except -1
    # Copy two pieces behind the backlog: both, or neither and out_of_memory() is called.
    cdef int append_backlog(self, const uint8_t *head, Py_ssize_t head_size,
                            const uint8_t *body, Py_ssize_t body_size) except -1
    cdef int _make_backlog_room(self, Py_ssize_t size) noexcept
    # What was to be sent is lost: end the stream, and tell the handler.
    cdef int out_of_memory(self) except -1
    cdef int backlog_sent(self, Py_ssize_t size) except -1
    cdef int schedule_flush(self) except -1
    cdef int report_end(self, int end, object error) except -1
    cdef int finish(self) except -1


cdef ReceiveBuffer new_receive_buffer(Py_ssize_t capacity)
cdef ReadSpace read_space(object loop, int depth)
