"""The logger of a connection or a server, whose errors stay out of the data path.

A log handler is the application's code, and ``logging`` passes on what its ``emit`` raises. Here it
goes to the event loop's exception handler instead: nothing that was begun stops in the midst.
Decides nothing of what is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import traceback
from typing import Any, Final

__all__ = ["SafeLogger", "resolve_logger"]

_ROOT_LOGGER: Final = "picows_fast"


class SafeLogger:
    """Logs to ``logger``, and raises no Exception of its handlers.

    :param logger: a :class:`logging.Logger` or anything that has the methods of one
    """

    __slots__ = ("logger",)

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - as logging calls it
        """Whether messages of this level are logged. False if the logger cannot tell."""
        try:
            return bool(self.logger.isEnabledFor(level))
        except Exception as error:
            _report(error)
            return False

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Log a message, which ``%`` puts together with its arguments."""
        try:
            self.logger.log(level, message, *arguments)
        except Exception as error:
            _report(error)

    def debug(self, message: str, *arguments: object) -> None:
        try:
            self.logger.debug(message, *arguments)
        except Exception as error:
            _report(error)

    def info(self, message: str, *arguments: object) -> None:
        try:
            self.logger.info(message, *arguments)
        except Exception as error:
            _report(error)

    def warning(self, message: str, *arguments: object) -> None:
        try:
            self.logger.warning(message, *arguments)
        except Exception as error:
            _report(error)

    def error(
        self, message: str, *arguments: object, exc_info: BaseException | bool | None = None
    ) -> None:
        """Log an error; ``exc_info`` is the exception whose traceback goes with it, True: the one
        that is handled now."""
        try:
            self.logger.error(message, *arguments, exc_info=exc_info)
        except Exception as error:
            _report(error)


def resolve_logger(logger_name: str | Any | None, default_suffix: str) -> SafeLogger:
    """Return the logger that a ``logger_name`` setting stands for.

    A name gives ``picows_fast.<name>``, None gives ``picows_fast.<default_suffix>``, and a
    logger-like object is used as it is.
    """
    if logger_name is None:
        logger_name = default_suffix
    if isinstance(logger_name, str):
        logger_name = logging.getLogger(f"{_ROOT_LOGGER}.{logger_name}")
    return SafeLogger(logger_name)


def _report(error: Exception) -> None:
    """Tell of what a log handler raised. The loop's exception handler may log, and raise, too."""
    loop = asyncio._get_running_loop()
    if loop is not None:
        with contextlib.suppress(Exception):
            loop.call_exception_handler({"message": "a log handler raised", "exception": error})
            return
    if logging.raiseExceptions and sys.stderr is not None:
        with contextlib.suppress(Exception):
            traceback.print_exception(type(error), error, error.__traceback__)
