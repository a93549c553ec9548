"""What the application gives to be called is called plainly: a coroutine function is refused where
nothing awaits it.

Owns the finding out, and the words of the errors. A coroutine that nobody awaits does nothing, and
frames that it should have handled vanish: so that is told when it is given, not when it is called.
"""

from __future__ import annotations

import asyncio.coroutines
import functools
import inspect
import weakref
from typing import Any

__all__ = [
    "async_method_error",
    "check_factory",
    "check_listener_class",
    "discard_awaitable",
    "is_async",
    "is_coroutine_function",
]

# How functions that return coroutines were marked before inspect.markcoroutinefunction().
_MARKER = getattr(asyncio.coroutines, "_is_coroutine", None)
# Classes of listeners that were found to be right.
_checked: weakref.WeakSet[type] = weakref.WeakSet()


def is_async(function: Any) -> bool:
    """Whether a call returns a coroutine or an asynchronous generator: for functions, methods,
    partial() and objects with __call__, as far as that is known without calling."""
    return is_coroutine_function(function) or _is_async_generator(function)


def is_coroutine_function(function: Any) -> bool:
    """Whether a call returns a coroutine, as `is_async` finds it out."""
    function = _plain(function)
    if inspect.iscoroutinefunction(function):
        return True
    if _MARKER is not None and getattr(function, "_is_coroutine", None) is _MARKER:
        return True
    return inspect.iscoroutinefunction(_call_of(function))


def _is_async_generator(function: Any) -> bool:
    function = _plain(function)
    return inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(_call_of(function))


def _plain(function: Any) -> Any:
    while isinstance(function, (functools.partial, functools.partialmethod)):
        function = function.func
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    return function


def _call_of(function: Any) -> Any:
    """What is run when an object that is no function is called; None for functions and classes."""
    if isinstance(function, type) or inspect.isroutine(function):
        return None
    return getattr(type(function), "__call__", None)  # noqa: B004 - of the class, as a call looks


def check_factory(
    factory: object, name: str, returns: str, base: type, *, is_awaited: bool = False
) -> None:
    """Raise TypeError if a factory of listeners is not callable, is a coroutine function although
    what it returns is not awaited, is an asynchronous generator function, or is a class of
    listeners with a method that is a coroutine function.

    `name`: of the parameter. `returns`: what the factory has to return. `base`: WSListener.
    """
    if not callable(factory):
        raise TypeError(f"{name} must be callable, got {type(factory).__name__}")
    if isinstance(factory, type):
        if issubclass(factory, base):
            check_listener_class(factory, base)
    elif is_awaited:
        if _is_async_generator(factory):
            raise TypeError(
                f"{name} must be a function that returns {returns}, or a coroutine function, "
                f"got an asynchronous generator function: {_name_of(factory)}"
            )
    elif is_async(factory):
        raise TypeError(
            f"{name} must be a plain function that returns {returns}, "
            f"got a coroutine function: {_name_of(factory)}"
        )


def check_listener_class(cls: type, base: type) -> None:
    """Raise TypeError if a method that is called plainly is a coroutine function.

    `base`: WSListener. The methods are its public ones, and those of its subclasses in this
    package.
    """
    if cls in _checked:
        return
    names = _methods(cls, base)
    seen: set[str] = set()
    for ancestor in cls.__mro__:
        for name in names & (vars(ancestor).keys() - seen):
            if is_async(vars(ancestor)[name]):
                raise async_method_error(cls, name)
            seen.add(name)
    _checked.add(cls)


def discard_awaitable(result: object) -> str:
    """Say what a plain function should not have returned, and end it if it is to be awaited."""
    if inspect.iscoroutine(result):
        result.close()
    elif isinstance(result, asyncio.Future):
        result.cancel()
    else:
        return type(result).__name__
    return f"{type(result).__name__}, which is not awaited"


def _methods(cls: type, base: type) -> set[str]:
    package = base.__module__.partition(".")[0]
    return {
        name
        for ancestor in cls.__mro__
        if issubclass(ancestor, base) and ancestor.__module__.partition(".")[0] == package
        for name, value in vars(ancestor).items()
        # What is a coroutine function there is awaited by its callers.
        if not name.startswith("_") and callable(value) and not is_async(value)
    }


def _name_of(function: object) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def async_method_error(cls: type, name: str) -> TypeError:
    """What is wrong with a method that is a coroutine function."""
    return TypeError(
        f"{cls.__qualname__}.{name} must be a plain method, got a coroutine function: it would be "
        "called and never awaited; let it start a task with asyncio.create_task()"
    )
