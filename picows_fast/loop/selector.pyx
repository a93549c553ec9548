# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""A selector that waits with epoll in C, calls picows_fast's own streams inside the wait, and spins if it is told to.

To asyncio it is a selector like any other: file objects are registered, and ``select`` returns those that are ready.
Streams are watched beside them and are no file objects: ``get_map`` does not show them. As long as only streams are
ready, ``select`` calls them and waits on, as the loop would do nothing else.

It returns to the loop when there is something for it: a file object is ready, a callback was scheduled
(``call_soon``, a future or a task), the timers changed, a timer is due, ``stop`` was called; and after MAX_TURNS waits
in a row, for what Python does between its own instructions (pending calls, exceptions for this thread).

A stream that tells what it leaves (POLL_EDGE) is watched edge-triggered, or the kernel would look at it again in each
wait. Whatever such an event may have missed has it watched anew: _call_again().
"""

import asyncio
import collections.abc
import os
import selectors
from abc import ABCMeta

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.errno cimport EBADF, EINTR, errno
from libc.math cimport ceil
from libc.string cimport memset

from ..net.poller cimport POLL_CAME, POLL_EDGE, POLL_LEFT, POLL_READ, POLL_WRITE


cdef extern from *:
    """
    #include <dlfcn.h>
    #include <errno.h>
    #include <stdint.h>
    #include <sys/epoll.h>
    #include <sys/syscall.h>
    #include <sys/timerfd.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef SYS_epoll_pwait2
    #define SYS_epoll_pwait2 441    /* the same on every architecture */
    #endif

    static int64_t pf_now(void)
    {
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }

    /* Waits for so many nanoseconds, -1: without end. Returns the number of events, or -errno. */
    static int pf_epoll_wait(int epoll_fd, struct epoll_event *events, int room, int64_t timeout)
    {
        static int has_pwait2 = 1;
        int found;

        if (timeout > 0 && has_pwait2) {
            /* Not of libc, which has it since glibc 2.35 only. */
            struct { int64_t seconds, nanoseconds; } limit = { timeout / 1000000000, timeout % 1000000000 };

            found = (int)syscall(SYS_epoll_pwait2, epoll_fd, events, room, &limit, NULL, 0);
            if (found >= 0)
                return found;
            if (errno != ENOSYS && errno != EPERM)
                return -errno;
            has_pwait2 = 0;     /* Linux before 5.11, or a container that does not know it */
        }
        if (timeout > 0) {
            int64_t milliseconds = (timeout + 999999) / 1000000;    /* rather late than twice */

            timeout = milliseconds > 86400000 ? 86400000 : milliseconds;
        }
        /* Not epoll_wait(), in which a thread can be cancelled: that costs as much again. */
        found = (int)syscall(SYS_epoll_pwait, epoll_fd, events, room, (int)timeout, NULL, (size_t)8);
        return found >= 0 ? found : -errno;
    }

    static int pf_epoll_control(int epoll_fd, int operation, int fd, uint32_t events, uint64_t data)
    {
        struct epoll_event event;

        event.events = events;
        event.data.u64 = data;
        return epoll_ctl(epoll_fd, operation, fd, &event);
    }

    #define pf_event_data(event) ((event)->data.u64)

    static int pf_timer_set(int timer_fd, int64_t when)
    {
        struct itimerspec at = { { 0, 0 }, { when / 1000000000, when % 1000000000 } };

        return timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
    }

    static const char *pf_single_threaded;

    static void pf_find_single_threaded(void)
    {
        pf_single_threaded = (const char *)dlsym(RTLD_DEFAULT, "__libc_single_threaded");
    }

    /* Whether this thread is the only one, as glibc notes since 2.32. (It only ever stops being it.) */
    static int pf_is_alone(void)
    {
        return pf_single_threaded != NULL && *pf_single_threaded;
    }

    /* Have an object in the cache when its turn comes. */
    static void pf_prefetch(const void *object)
    {
        const Py_ssize_t size = Py_TYPE((PyObject *)object)->tp_basicsize;

        for (Py_ssize_t at = 0; at < size; at += 64)
            __builtin_prefetch((const char *)object + at);
    }

    #define pf_raised() (-1)
    """
    enum:
        EPOLL_CLOEXEC
        EPOLLIN
        EPOLLOUT
        EPOLLPRI
        EPOLLRDHUP
        EPOLLET
        CLOCK_MONOTONIC
        TFD_CLOEXEC
        TFD_NONBLOCK
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL

    int epoll_create1(int flags)
    int close(int fd)
    int64_t pf_now() nogil
    int pf_epoll_wait(int epoll_fd, epoll_event *events, int room, int64_t timeout) nogil
    int pf_epoll_control(int epoll_fd, int operation, int fd, uint32_t events, uint64_t data)
    uint64_t pf_event_data(epoll_event *event)
    int timerfd_create(int clock, int flags)
    int pf_timer_set(int timer_fd, int64_t when)
    void pf_find_single_threaded()
    bint pf_is_alone()
    void pf_prefetch(const void *object)
    int pf_raised() except -1

cdef extern from "Python.h":
    object PyContext_CopyCurrent()
    int PyContext_Exit(object context) except -1
    int try_to_enter "PyContext_Enter" (object context) noexcept
    int try_to_leave "PyContext_Exit" (object context) noexcept


cdef enum:
    # What one wait takes, if there are not more file objects. Who is ready and not among them is first in the next.
    MAX_EVENTS = 256
    # Waits without a return to the loop.
    MAX_TURNS = 1000

# Events of the alarm, and of nobody: no descriptor has such a number.
cdef uint64_t ALARM = <uint64_t> -2
cdef uint64_t HOT_NOBODY = <uint64_t> -1
cdef int64_t FOREVER = -1
cdef double LONGEST = 1e9       # seconds; the limit of a wait
pf_find_single_threaded()

cdef object SelectorKey = selectors.SelectorKey
cdef object Handle = asyncio.Handle


cdef uint32_t epoll_mask(int events) noexcept:
    # With edges, an end behind the bytes (EPOLLRDHUP) and urgent data amidst them (EPOLLPRI) must be told: a read stops
    # there. Not while there is something to write, for which nobody tells what is left.
    if events == POLL_READ | POLL_EDGE:
        return <uint32_t> (EPOLLIN | EPOLLPRI | EPOLLRDHUP) | <uint32_t> EPOLLET
    return (EPOLLIN if events & POLL_READ else 0) | (EPOLLOUT if events & POLL_WRITE else 0)


cdef int wait(int epoll_fd, epoll_event *events, int room, int64_t timeout):
    # To let go of the interpreter costs as much as the rest of a turn, and is for nobody where there is no other
    # thread: none can be made meanwhile.
    if pf_is_alone():
        return pf_epoll_wait(epoll_fd, events, room, timeout)
    with nogil:
        return pf_epoll_wait(epoll_fd, events, room, timeout)


cdef int call_stream(ByteStream stream, bint readable, bint writable) except -1:
    return stream.descriptor_ready(readable, writable)

# ... where -1 is looked at by who calls it.
ctypedef int (*try_t)(ByteStream stream, bint readable, bint writable) noexcept


cdef int poll_events(uint32_t mask) noexcept:
    # An error or a hang-up is for everybody to find out.
    return (POLL_READ if mask & ~<uint32_t> EPOLLOUT else 0) | (POLL_WRITE if mask & ~<uint32_t> EPOLLIN else 0)


cdef class LoopSelector(Poller):
    """A :class:`selectors.BaseSelector` for :class:`asyncio.SelectorEventLoop` on Linux.

    :param busy_poll: seconds to spin before blocking
    """

    def __cinit__(self, *, double busy_poll=0.0):
        self.epoll_fd = self.alarm_fd = -1
        self.hot = HOT_NOBODY
        self.busy_poll = <int64_t> (busy_poll * 1e9)
        self.keys = {}
        self.streams = {}
        self.map = _KeyMap(self)
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        # Now and not with the first deadline: a descriptor that comes later looks like one that somebody lost.
        self.alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        if self.alarm_fd >= 0 and pf_epoll_control(
            self.epoll_fd, EPOLL_CTL_ADD, self.alarm_fd, <uint32_t> EPOLLIN | <uint32_t> EPOLLET, ALARM
        ) < 0:
            close(self.alarm_fd)
            self.alarm_fd = -1

    def __dealloc__(self):
        self._close_descriptors()
        PyMem_Free(self.watched)

    def attach(self, loop):
        """Serve this loop: call its streams in ``select``, and return when it has something to do.

        :param loop: an :class:`asyncio.BaseEventLoop` whose selector this is, and which calls :meth:`interrupt` when
            it is stopped
        """
        self.loop = loop
        self.scheduled = loop._ready

    def interrupt(self):
        """Have ``select`` return, if a stream's callback is being called by it."""
        self.interrupted = True

    # --- the interface of selectors.BaseSelector

    def register(self, fileobj, events, data=None):
        """Watch a file object. Raises ValueError, KeyError or OSError as any selector does."""
        if not events or events & ~(POLL_READ | POLL_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        cdef int fd = self._descriptor(fileobj)
        if fd in self.keys:
            raise KeyError(f"{fileobj!r} (FD {fd}) is already registered")
        key = self.keys[fd] = SelectorKey(fileobj, fd, events, data)
        try:
            self._control(EPOLL_CTL_ADD, fd, events)
        except BaseException:
            del self.keys[fd]
            raise
        self._forget_stream(fd)
        return key

    def unregister(self, fileobj):
        """Watch it no longer. KeyError if it is not registered; no error if it was closed before."""
        cdef int fd = self._registered(fileobj)
        key = self.keys.pop(fd)
        if self.watched[fd].stream == NULL:
            self._forget(fd)
        return key

    def modify(self, fileobj, events, data=None):
        """Change what is watched for, and the data. Raises what ``register`` raises, or KeyError."""
        cdef int fd = self._registered(fileobj)
        if not events or events & ~(POLL_READ | POLL_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        key = self.keys[fd]
        if key.events != events:
            try:
                self._control(EPOLL_CTL_MOD, fd, events)
            except OSError:
                self.unregister(fileobj)
                raise
        key = self.keys[fd] = SelectorKey(key.fileobj, fd, events, data)
        return key

    def get_key(self, fileobj):
        """Return the key of a file object; KeyError if it is not registered."""
        if self.map is None:
            raise RuntimeError("Selector is closed")
        try:
            return self.keys[self._descriptor(fileobj)]
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None

    def get_map(self):
        """Return a mapping of file objects to keys, None once closed."""
        return self.map

    def fileno(self):
        """Return the epoll descriptor."""
        if self.epoll_fd < 0:
            raise ValueError("I/O operation on closed epoll object")
        return self.epoll_fd

    def close(self):
        """Watch nothing any more."""
        self.map = None
        self.hot = HOT_NOBODY
        self.alarm = 0
        self.loop = self.scheduled = None
        if self.watched != NULL:
            # The generations go on, in case that a select() is under way.
            for fd in range(self.watched_size):
                self.watched[fd].stream = self.watched[fd].context = NULL
                self.watched[fd].generation += 1
        self._close_descriptors()
        # Last: what is freed by that can run Python code.
        self.keys.clear()
        self.streams.clear()

    cdef int _close_descriptors(self) noexcept:
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        if self.alarm_fd >= 0:
            close(self.alarm_fd)
        self.epoll_fd = self.alarm_fd = -1
        return 0

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()

    def select(self, timeout=None):
        """Return (key, events) for each file object that is ready.

        Calls the streams that are ready; see the module for when it returns.

        :param timeout: seconds; None: no limit; 0 or less: look once
        """
        cdef epoll_event[MAX_EVENTS] few
        cdef epoll_event *events = few
        cdef int room = MAX_EVENTS
        if self.epoll_fd < 0:
            raise ValueError("I/O operation on closed epoll object")
        self.selects += 1
        self.interrupted = False
        if len(self.keys) > MAX_EVENTS:
            room = <int> len(self.keys)
            events = <epoll_event*> PyMem_Malloc(<size_t> room * sizeof(epoll_event))
            if events == NULL:
                raise MemoryError()
        outer = self.context        # of a loop inside whose callback this one runs
        self.context = None
        try:
            return self._select(events, room, timeout)
        finally:
            self._leave()
            self.context = outer
            if events != few:
                PyMem_Free(events)

    cdef list _select(self, epoll_event *events, int room, timeout):
        cdef uint64_t number = self.selects
        cdef int64_t now = 0
        cdef int64_t deadline = FOREVER
        cdef double seconds
        cdef Py_ssize_t timer_count = 0
        cdef int turns = 0
        cdef int found
        cdef bint flooded
        cdef list ready = []
        cdef list timers = None
        cdef object first_timer = None
        cdef object scheduled = None
        cdef object loop = self.loop
        # In debug mode the loop calls the streams itself, and watches how long that takes.
        cdef bint inside = loop is not None and not loop._debug
        if timeout is not None:
            seconds = timeout
            deadline = 0
            if seconds > 0:
                now = pf_now()
                deadline = now + <int64_t> ceil(min(seconds, LONGEST) * 1e9)
        if inside:
            scheduled = self.scheduled
            timers = loop._scheduled
            timer_count = len(timers)
            if timer_count:
                first_timer = timers[0]
        while True:
            found = self._wait(events, room, deadline, &now, inside)
            flooded = found and self._tell(events, found, inside, ready)
            PyErr_CheckSignals()
            # Is there anything for the loop to do?
            turns += 1
            if ready or deadline == 0 or not inside or turns == MAX_TURNS or self.epoll_fd < 0:
                return ready
            if len(scheduled) or self.interrupted or self.selects != number:
                return ready
            if len(timers) != timer_count or timer_count and timers[0] is not first_timer:
                return ready
            # The alarm tells when it is time, but together with others that are ready.
            if deadline > 0 and (flooded or found != 1 or not 0 < self.alarm <= deadline):
                now = pf_now()
                if now >= deadline:
                    return ready

    cdef int _wait(self, epoll_event *events, int room, int64_t deadline, int64_t *now, bint inside) except -1:
        """Return the number of events: 0 at the deadline, after a signal, and when a stream was called already.

        :param deadline: FOREVER, or 0 to look once
        :param now: the time, or any before it, if there is a deadline
        """
        cdef int epoll_fd = self.epoll_fd
        cdef int found
        cdef int64_t timeout = 0
        cdef int64_t spin = self.busy_poll
        if deadline == 0:
            spin = 0
        elif self.hot != HOT_NOBODY:
            spin = max(spin, self.watched[<uint32_t> self.hot].spin)
        if spin > 0:
            now[0] = pf_now()
            spin += now[0]
            while now[0] < spin and (deadline < 0 or now[0] < deadline):
                # First, or a flood would never let the others be seen.
                found = wait(epoll_fd, events, room, 0)
                if found > 0:
                    return found
                # Who received last is the likeliest to receive next; reading at once saves asking who it is.
                if inside and self.hot != HOT_NOBODY and self._read_hot():
                    return 0
                PyErr_CheckSignals()
                if self.epoll_fd != epoll_fd:
                    return 0
                now[0] = pf_now()
        if deadline != 0:
            timeout = self._time_left(deadline, now, inside)
        found = wait(epoll_fd, events, room, timeout)
        if found < 0:
            if found != -EINTR:
                raise OSError(-found, os.strerror(-found))
            found = 0
        elif timeout > 0:
            self.cut_short = found > 0
        return found

    cdef int64_t _time_left(self, int64_t deadline, int64_t *now, bint inside) except -2:
        """How long the wait may take, in nanoseconds; FOREVER if something ends it in time."""
        if deadline < 0 or (inside and self.alarm and self.alarm <= deadline):
            return FOREVER
        # It costs a system call more than to limit one wait, but may serve many.
        if inside and self.cut_short and self._set_alarm(deadline):
            return FOREVER
        now[0] = pf_now()
        return max(deadline - now[0], 0)

    cdef bint _set_alarm(self, int64_t deadline) except -1:
        if self.alarm_fd < 0 or pf_timer_set(self.alarm_fd, deadline) < 0:
            return False
        self.alarm = deadline
        return True

    cdef int _tell(self, epoll_event *events, int found, bint inside, list ready) except -1:
        """Call the streams that are ready, note the file objects that are. Returns whether a stream left something."""
        cdef uint64_t data
        cdef int i, fd, result, behind
        cdef int foreign = 0
        cdef int left = 0
        for i in range(found):
            data = pf_event_data(&events[i])
            fd = <int> <uint32_t> data
            if i + 2 < found:
                self._expect(pf_event_data(&events[i + 1]), pf_event_data(&events[i + 2]))
            if not self._is_current(data):
                if data == ALARM:
                    self.alarm = 0
                    self.cut_short = False
            elif self.watched[fd].stream == NULL:
                foreign += 1
            elif inside:
                result = self._call(data, events[i].events)
                if result < 0:
                    try:
                        self._call_failed()
                    except BaseException:
                        # It leaves select(), where there are more events.
                        for behind in range(i + 1, found):
                            self._call_again(<uint32_t> pf_event_data(&events[behind]))
                        raise
                else:
                    left |= result & POLL_LEFT
                    if result & POLL_CAME:
                        self.hot = data
            else:
                self._call_again(fd)        # the loop does, once
                ready.append((self._stream_key(fd), poll_events(events[i].events) & <int> self.watched[fd].events))
        # After the streams, whose callbacks may change what is registered.
        for i in range(found if foreign else 0):
            data = pf_event_data(&events[i])
            fd = <int> <uint32_t> data
            if self._is_current(data) and self.watched[fd].stream == NULL:
                key = self.keys[fd]
                ready.append((key, poll_events(events[i].events) & <int> key.events))
        return left

    cdef int _expect(self, uint64_t next, uint64_t after_next) noexcept:
        """Of many connections none is in the cache: fetch what is needed first while another one is being read."""
        cdef Watched *watched
        if self._is_current(after_next):
            watched = &self.watched[<uint32_t> after_next]
            if watched.stream != NULL:
                pf_prefetch(watched.stream)
                pf_prefetch(watched.context)
        if self._is_current(next):
            watched = &self.watched[<uint32_t> next]
            if watched.stream != NULL:
                pf_prefetch(<void*> (<ByteStream> watched.stream).handler)
        return 0

    # --- the interface of Poller

    cdef int watch(self, ByteStream stream, int fd, int events, long long spin) except -1:
        cdef Watched *slot
        if self.epoll_fd < 0:
            if events:
                raise RuntimeError("Event loop is closed")
            return 0
        if fd < 0:
            if events:
                raise OSError(EBADF, os.strerror(EBADF))
            return 0
        slot = self._slot(fd)
        if slot.stream != <void*> stream or events & ~slot.events & POLL_READ:
            if events:
                return self._watch_anew(stream, fd, events, spin)
            return 0
        if events == 0:
            return self._forget(fd)
        if slot.events != <uint32_t> events:
            self._control(EPOLL_CTL_MOD, fd, events)
            slot.events = <uint32_t> events
        slot.spin = spin
        return 0

    cdef int _watch_anew(self, ByteStream stream, int fd, int events, long long spin) except -1:
        """Watch for a stream that was not watched, or not for reading: it is called in another context from now on."""
        cdef Watched *slot
        cdef int operation
        # Making it can run Python code (a collection of garbage), which may watch and close other streams.
        watcher = (stream, PyContext_CopyCurrent())
        former = self.streams.get(fd)
        slot = self._slot(fd)
        operation = EPOLL_CTL_MOD if slot.stream == <void*> stream else EPOLL_CTL_ADD
        self.streams[fd] = watcher
        try:
            self._control(operation, fd, events)
        except BaseException:
            if former is None:
                del self.streams[fd]
            else:
                self.streams[fd] = former
            raise
        # Whoever had the descriptor's number before has lost it, or the kernel would not have added it again. A file
        # object's key is forgotten; a stream's entry is replaced, and freed at the end of this method.
        slot.stream = <void*> stream
        slot.context = <void*> watcher[1]
        slot.events = <uint32_t> events
        slot.spin = spin
        if operation == EPOLL_CTL_ADD:
            self.keys.pop(fd, None)
        return 0

    cdef int _forget_stream(self, int fd) except -1:
        """A file object has been added under this number: a stream that had it has lost its descriptor."""
        cdef Watched *slot = self._slot(fd)
        slot.stream = slot.context = NULL
        slot.events = 0
        self.streams.pop(fd, None)
        return 0

    cdef bint _is_current(self, uint64_t event_data) noexcept:
        """Whether its descriptor is still watched by who it was watched by when the event came."""
        cdef uint32_t fd = <uint32_t> event_data
        return fd < <uint32_t> self.watched_size and self.watched[fd].generation == <uint32_t> (event_data >> 32)

    cdef int _call(self, uint64_t event_data, uint32_t happened) noexcept:
        """Tell a stream what it is ready for. Returns PollResults, or -1 if that raised: _call_failed() must follow."""
        cdef uint32_t fd = <uint32_t> event_data
        cdef Watched *watched = &self.watched[fd]
        cdef bint edge = (watched.events & POLL_EDGE) != 0
        cdef int result
        cdef ByteStream stream = <ByteStream> watched.stream
        cdef void *outer = watched.entered
        if outer == <void*> stream:     # by a loop that was run inside its callback
            watched.missed = True
            return 0
        if watched.context != <void*> self.context:
            context = <object> watched.context
            if self._switch(context) < 0:
                self.failed = stream
                return -1
            # The former context may have been freed, and with it what runs Python code.
            if not self._is_current(event_data):
                return 0
            watched = &self.watched[fd]
        watched.entered = <void*> stream
        result = (<try_t> call_stream)(
            stream, (happened & ~<uint32_t> EPOLLOUT) != 0, (happened & ~<uint32_t> EPOLLIN) != 0
        )
        watched = &self.watched[fd]     # the callback may have moved them
        watched.entered = outer
        # A read that stopped at an end, or that raised, may have left something, too.
        if watched.missed or edge and result & (POLL_LEFT | POLL_CAME) and (
            result & POLL_LEFT or happened & ~<uint32_t> (EPOLLIN | EPOLLOUT)
        ):
            watched.missed = False
            self._call_again(fd)
        if result < 0:
            self.failed = stream
        return result

    cdef int _call_again(self, uint32_t fd) noexcept:
        """Have the stream called in the next wait, if it is ready for anything, whatever events have told."""
        cdef Watched *watched
        if fd < <uint32_t> self.watched_size:
            watched = &self.watched[fd]
            if watched.stream != NULL and watched.events & POLL_EDGE:
                pf_epoll_control(
                    self.epoll_fd, EPOLL_CTL_MOD, <int> fd, epoll_mask(<int> watched.events),
                    <uint64_t> watched.generation << 32 | fd,
                )
        return 0

    cdef int _call_failed(self) except -1:
        """What _call() raised goes to the loop's exception handler, or to who runs the loop."""
        cdef ByteStream stream = self.failed
        context = self.context
        self.failed = None
        try:
            pf_raised()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            failure = error
        self._leave()       # the loop enters it to run the handler
        loop = stream.loop
        loop.call_exception_handler({
            "message": f"Exception in callback of {stream!r}",
            "exception": failure,
            "handle": Handle(stream._on_readable, (), loop, context),
        })
        return 0

    cdef bint _read_hot(self) except -1:
        """Have who received last read, whether or not there is anything. Returns whether something came of it: bytes,
        the end, what it scheduled."""
        cdef int result
        if not self._is_current(self.hot):
            self.hot = HOT_NOBODY
            return False
        result = self._call(self.hot, EPOLLIN)
        if result < 0:
            self._call_failed()
        return (result & POLL_CAME) != 0 or not self._is_current(self.hot) or len(self.scheduled) > 0

    cdef int _switch(self, object context) noexcept:
        """Have what follows run in this context; -1: it raised. The context is left when another one's turn comes, and
        at select()'s end: for one stream that is called again and again it is entered once."""
        if self.context is not None and try_to_leave(self.context) < 0:
            return -1
        self.context = None
        if try_to_enter(context) < 0:
            return -1
        self.context = context
        return 0

    cdef int _leave(self) except -1:
        context = self.context
        if context is not None:
            self.context = None
            PyContext_Exit(context)
        return 0

    cdef object _stream_key(self, int fd):
        """A key as add_reader and add_writer make it."""
        stream, context = self.streams[fd]
        return SelectorKey(fd, fd, <int> self.watched[fd].events, (
            Handle(stream._on_readable, (), self.loop, context),
            Handle(stream._on_writable, (), self.loop, context),
        ))

    # --- descriptors

    cdef int _descriptor(self, fileobj) except -1:
        """The descriptor of a file object, also of one that is registered and closed."""
        cdef int fd = -1
        if isinstance(fileobj, int):
            fd = fileobj
        else:
            try:
                fd = int(fileobj.fileno())
            except (AttributeError, TypeError, ValueError):
                pass
        if fd < 0:
            for key in self.keys.values():
                if key.fileobj is fileobj:
                    return key.fd
            raise ValueError(f"Invalid file object: {fileobj!r}")
        return fd

    def _registered(self, fileobj):
        cdef int fd = self._descriptor(fileobj)
        if fd not in self.keys:
            raise KeyError(f"{fileobj!r} is not registered")
        return fd

    cdef Watched *_slot(self, int fd) except NULL:
        cdef int size
        cdef Watched *larger
        if fd >= self.watched_size:
            size = max(2 * self.watched_size, fd + 1, 64)
            larger = <Watched*> PyMem_Realloc(self.watched, <size_t> size * sizeof(Watched))
            if larger == NULL:
                raise MemoryError()
            memset(larger + self.watched_size, 0, <size_t> (size - self.watched_size) * sizeof(Watched))
            self.watched = larger
            self.watched_size = size
        return &self.watched[fd]

    cdef int _control(self, int operation, int fd, int events) except -1:
        cdef Watched *slot = self._slot(fd)
        cdef uint32_t generation = slot.generation
        if operation == EPOLL_CTL_ADD:
            generation += 1
        if pf_epoll_control(
            self.epoll_fd, operation, fd, epoll_mask(events), <uint64_t> generation << 32 | <uint32_t> fd
        ) < 0:
            raise OSError(errno, os.strerror(errno))
        slot.generation = generation
        return 0

    cdef int _forget(self, int fd) except -1:
        cdef Watched *slot = self._slot(fd)
        slot.generation += 1
        slot.stream = slot.context = NULL
        slot.events = 0
        # Fails if it was closed before.
        pf_epoll_control(self.epoll_fd, EPOLL_CTL_DEL, fd, 0, 0)
        self.streams.pop(fd, None)
        return 0


class _KeyMap(collections.abc.Mapping):
    """File objects and their keys, as a selector's get_map() shows them."""

    def __init__(self, selector):
        self._selector = selector

    def __len__(self):
        return len((<LoopSelector> self._selector).keys)

    def __iter__(self):
        return iter((<LoopSelector> self._selector).keys)

    def __getitem__(self, fileobj):
        cdef LoopSelector selector = self._selector
        try:
            return selector.keys[selector._descriptor(fileobj)]
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None

    def get(self, fileobj, default=None):
        cdef LoopSelector selector = self._selector
        return selector.keys.get(selector._descriptor(fileobj), default)


# As a function: BaseSelector.register is the selector's own method.
ABCMeta.register(selectors.BaseSelector, LoopSelector)
