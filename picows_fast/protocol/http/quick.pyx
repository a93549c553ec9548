# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""One pass over the head of an upgrade request as nearly all of them are (RFC 6455 4.1).

Owns the quick way only: it takes a head in which nothing has to be thought about, and leaves every other one, right
or wrong, to ``http.messages`` and ``upgrade``. What it takes, these take, too, and make the same of it. It never
says what is wrong with a request. Performs no I/O.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

cdef enum:
    TOKEN = 1       # RFC 9110 5.6.2
    VALUE = 2       # a field's value, obs-text included: RFC 9110 5.5
    TARGET = 4      # of a request, but for its fragment, which has no place there: RFC 9112 3.2
    HOST = 8        # host and port: RFC 3986 3.2.2
    BASE64 = 16     # but for the padding: RFC 4648 4

cdef enum Field:
    # Each of the first five has to be there once.
    HOST_FIELD = 1
    UPGRADE_FIELD = 2
    CONNECTION_FIELD = 4
    KEY_FIELD = 8
    VERSION_FIELD = 16
    NEEDED = 31
    OFFER_FIELD = 32        # subprotocols, extensions
    BODY_FIELD = 64         # what says that there is a body, and how long it is
    OTHER_FIELD = 128

cdef uint8_t[256] kinds

cdef int set_kinds() except -1:
    alphanumeric = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    for kind, characters in (
        (TOKEN, alphanumeric + b"!#$%&'*+-.^_`|~"),
        (VALUE, b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))),
        (TARGET, bytes(set(range(0x21, 0x7F)) - {0x23})),
        (HOST, alphanumeric + b"-._~!$&'()*+,;=%:[]"),
        (BASE64, alphanumeric + b"+/"),
    ):
        for character in characters:
            kinds[<int> character] |= <uint8_t> <int> kind
    return 0

set_kinds()


cdef bint equals(const uint8_t *text, Py_ssize_t size, const char *lower, Py_ssize_t lower_size) noexcept:
    """Whether an ASCII text is this one, whatever case it is written in."""
    cdef Py_ssize_t i
    cdef uint8_t character
    if size != lower_size:
        return False
    for i in range(size):
        character = text[i]
        if c"A" <= character <= c"Z":
            character |= 0x20
        if character != <uint8_t> lower[i]:
            return False
    return True


cdef bint consists_of(const uint8_t *text, Py_ssize_t size, uint8_t kind) noexcept:
    cdef Py_ssize_t i
    for i in range(size):
        if not kinds[text[i]] & kind:
            return False
    return True


cdef bint has_upgrade(const uint8_t *text, Py_ssize_t size) noexcept:
    """Whether a list of connection options has `upgrade` (RFC 9110 7.6.1)."""
    cdef Py_ssize_t start = 0
    cdef Py_ssize_t end = 0
    cdef Py_ssize_t next_start
    while start <= size:
        end = start
        while end < size and text[end] != c",":
            end += 1
        next_start = end + 1
        while start < end and (text[start] == c" " or text[start] == c"\t"):
            start += 1
        while end > start and (text[end - 1] == c" " or text[end - 1] == c"\t"):
            end -= 1
        if equals(text + start, end - start, b"upgrade", 7):
            return True
        start = next_start
    return False


cdef int field_of(const uint8_t *name, Py_ssize_t size) noexcept:
    if size == 4:
        if equals(name, size, b"host", 4):
            return HOST_FIELD
    elif size == 7:
        if equals(name, size, b"upgrade", 7):
            return UPGRADE_FIELD
    elif size == 10:
        if equals(name, size, b"connection", 10):
            return CONNECTION_FIELD
    elif size == 14:
        if equals(name, size, b"content-length", 14):
            return BODY_FIELD
    elif size == 17:
        if equals(name, size, b"sec-websocket-key", 17):
            return KEY_FIELD
        if equals(name, size, b"transfer-encoding", 17):
            return BODY_FIELD
    elif size == 21:
        if equals(name, size, b"sec-websocket-version", 21):
            return VERSION_FIELD
    elif size == 22:
        if equals(name, size, b"sec-websocket-protocol", 22):
            return OFFER_FIELD
    elif size == 24:
        if equals(name, size, b"sec-websocket-extensions", 24):
            return OFFER_FIELD
    return OTHER_FIELD


cdef bint is_right(int field, const uint8_t *value, Py_ssize_t size) noexcept:
    """Whether a field has the value that an upgrade needs."""
    if field == HOST_FIELD:
        return consists_of(value, size, HOST)
    if field == UPGRADE_FIELD:
        return equals(value, size, b"websocket", 9)
    if field == CONNECTION_FIELD:
        return has_upgrade(value, size)
    if field == KEY_FIELD:
        return size == 24 and value[22] == c"=" and value[23] == c"=" and consists_of(value, 22, BASE64)
    if field == VERSION_FIELD:
        return size == 2 and value[0] == c"1" and value[1] == c"3"
    return field != BODY_FIELD


def read_upgrade(bytes data not None, Py_ssize_t max_size, Py_ssize_t max_count):
    """Read the head of an upgrade request, if it is there whole and as nearly all are.

    That is: GET, a path, HTTP/1.1; no line that is not well-formed, nothing about a body; Host, Upgrade, Connection,
    Sec-WebSocket-Key and Sec-WebSocket-Version once each, and right (RFC 6455 4.2.1). What it offers, subprotocols and
    extensions, is not looked at.

    :param max_size: bytes that the head may have
    :param max_count: header lines that it may have
    :returns: None, if it is anything else; or (bytes of the head; path and query, bytes; headers, list of (name,
        value); the key, str; whether it offers anything)
    """
    cdef const uint8_t *text = <const uint8_t*> PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = min(PyBytes_GET_SIZE(data), max_size)
    cdef Py_ssize_t at = 4
    cdef Py_ssize_t start, end, name_start, name_size
    cdef Py_ssize_t count = 0
    cdef int seen = 0
    cdef int field
    cdef uint8_t bits
    cdef list headers = []
    cdef str value
    key = None
    if size < 16 or memcmp(text, b"GET /", 5) != 0:
        return None
    while at < size and kinds[text[at]] & TARGET:
        at += 1
    if size - at < 11 or memcmp(text + at, b" HTTP/1.1\r\n", 11) != 0:
        return None
    target = PyBytes_FromStringAndSize(<const char*> text + 4, at - 4)
    at += 11
    while True:
        if size - at < 2:
            return None
        if text[at] == c"\r":
            if text[at + 1] != c"\n" or seen & NEEDED != NEEDED:
                return None
            return at + 2, target, headers, key, seen & OFFER_FIELD != 0
        count += 1
        name_start = at
        while at < size and kinds[text[at]] & TOKEN:
            at += 1
        name_size = at - name_start
        if name_size == 0 or at == size or text[at] != c":" or count > max_count:
            return None
        at += 1
        while at < size and (text[at] == c" " or text[at] == c"\t"):
            at += 1
        start = at
        bits = 0
        while at < size and kinds[text[at]] & VALUE:
            bits |= text[at]
            at += 1
        if size - at < 2 or text[at] != c"\r" or text[at + 1] != c"\n":
            return None
        end = at
        at += 2
        while end > start and (text[end - 1] == c" " or text[end - 1] == c"\t"):
            end -= 1
        field = field_of(text + name_start, name_size)
        if field & seen & NEEDED or not is_right(field, text + start, end - start):
            return None
        seen |= field
        if bits < 0x80:
            value = PyUnicode_DecodeASCII(<const char*> text + start, end - start, NULL)
        else:
            value = PyUnicode_DecodeUTF8(<const char*> text + start, end - start, "surrogateescape")
        if field == KEY_FIELD:
            key = value
        headers.append((PyUnicode_DecodeASCII(<const char*> text + name_start, name_size, NULL), value))
