# cython: language_level=3
# An allocator that fails: Python's own, for memory and for objects, with a shell around it that counts.

from cpython.object cimport PyObject_Call
from cpython.pythread cimport PyThread_get_thread_ident

cdef extern from "Python.h":
    ctypedef enum PyMemAllocatorDomain:
        PYMEM_DOMAIN_MEM
        PYMEM_DOMAIN_OBJ

    ctypedef struct PyMemAllocatorEx:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept
        void *(*calloc)(void *ctx, size_t count, size_t size) noexcept
        void *(*realloc)(void *ctx, void *pointer, size_t size) noexcept
        void (*free)(void *ctx, void *pointer) noexcept

    void PyMem_GetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx *allocator)
    void PyMem_SetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx *allocator)

cdef PyMemAllocatorEx originals[2]
cdef bint installed = False
cdef bint armed = False
cdef long thread = 0
cdef long counted = 0
cdef long first = 0
cdef long behind = 0
cdef size_t minimum = 0


cdef inline bint fails(size_t size) noexcept:
    global counted
    if not armed or size < minimum or PyThread_get_thread_ident() != thread:
        return False
    counted += 1
    return first <= counted < behind


cdef void *malloc_(void *ctx, size_t size) noexcept:
    cdef PyMemAllocatorEx *original = <PyMemAllocatorEx*> ctx
    return NULL if fails(size) else original.malloc(original.ctx, size)


cdef void *calloc_(void *ctx, size_t count, size_t size) noexcept:
    cdef PyMemAllocatorEx *original = <PyMemAllocatorEx*> ctx
    return NULL if fails(count * size) else original.calloc(original.ctx, count, size)


cdef void *realloc_(void *ctx, void *pointer, size_t size) noexcept:
    cdef PyMemAllocatorEx *original = <PyMemAllocatorEx*> ctx
    return NULL if fails(size) else original.realloc(original.ctx, pointer, size)


cdef void free_(void *ctx, void *pointer) noexcept:
    cdef PyMemAllocatorEx *original = <PyMemAllocatorEx*> ctx
    original.free(original.ctx, pointer)


def install():
    """Put the shell around Python's allocators, for good. What was allocated before stays right."""
    global installed, thread
    cdef PyMemAllocatorEx shell
    thread = PyThread_get_thread_ident()
    if installed:
        return
    installed = True
    PyMem_GetAllocator(PYMEM_DOMAIN_MEM, &originals[0])
    PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &originals[1])
    shell.malloc, shell.calloc, shell.realloc, shell.free = malloc_, calloc_, realloc_, free_
    shell.ctx = &originals[0]
    PyMem_SetAllocator(PYMEM_DOMAIN_MEM, &shell)
    shell.ctx = &originals[1]
    PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &shell)


def uninstall():
    global installed
    if installed:
        installed = False
        PyMem_SetAllocator(PYMEM_DOMAIN_MEM, &originals[0])
        PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &originals[1])


def start(long number, long length=1, size_t size=0):
    """Fail from the allocation of this number on, `length` times; count those of `size` bytes and more."""
    global counted, first, behind, minimum
    counted, first, behind, minimum = 0, number, number + length, size


def count():
    """Allocations since start()."""
    return counted


cdef class Armed:
    """A function in which allocations are counted, and fail."""

    cdef object function

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments, **options):
        global armed
        cdef bint before = armed
        armed = True
        try:
            return PyObject_Call(self.function, arguments, options)
        finally:
            armed = before


cdef class Unarmed(Armed):
    """A function in which they do not, called by one in which they do."""

    def __call__(self, *arguments, **options):
        global armed
        cdef bint before = armed
        armed = False
        try:
            return PyObject_Call(self.function, arguments, options)
        finally:
            armed = before


cdef class Atomic(Armed):
    """A function of somebody else's, which fails before it does anything or not at all: one allocation."""

    def __call__(self, *arguments, **options):
        global armed
        cdef bint before = armed
        if fails(minimum):
            raise MemoryError
        armed = False
        try:
            return PyObject_Call(self.function, arguments, options)
        finally:
            armed = before
