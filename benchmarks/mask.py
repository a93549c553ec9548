"""Masking in place, without anything around it: GB/s of picows_fast, picows and memcpy.

Payloads lie one behind the other in 256 KiB, as in a receive buffer; larger ones are masked again
and again. picows' function is the one that its own dispatcher picks on this CPU, on aligned sizes
and addresses, where it needs no help of slower loops before and after. Runs in this process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from .measuring import OURS, Case, Settings, UnavailableError, contestants
from .processes import HERE, ROOT, compiled, cores, pinned

SIZES = tuple(4**power for power in range(3, 11))  # 64 B to 1 MiB


def _library() -> ctypes.CDLL:
    wire = ROOT / "picows_fast"
    library = ctypes.CDLL(str(compiled(HERE / "mask.c", "-shared", "-fPIC", f"-I{wire}")))
    for name in ("time_ours", "time_peer", "time_memcpy"):
        getattr(library, name).restype = ctypes.c_double
    return library


def _picows_function() -> ctypes.c_void_p:
    try:
        import picows.picows

        find = ctypes.CDLL(picows.picows.__file__).get_apply_mask_fast_fn
    except ImportError:
        raise UnavailableError("picows is not installed") from None
    except AttributeError:
        raise UnavailableError("this picows does not show its masking function") from None
    find.restype = ctypes.c_void_p
    return ctypes.c_void_p(find())


def measure(name: str, size: int, offset: int, seconds: float) -> float:
    """Gigabytes a second."""
    library = _library()
    sized = (ctypes.c_size_t(size), ctypes.c_size_t(offset))
    if name == "picows":
        function, arguments = library.time_peer, (_picows_function(), *sized)
    else:
        function = library.time_ours if name == OURS else library.time_memcpy
        arguments = sized
    core, _ = cores()
    with pinned(core):
        calls = max(1, int(seconds * 1e9 / max(1, function(*arguments, ctypes.c_long(100))) / 4))
        return float(size / function(*arguments, ctypes.c_long(calls)))


def cases(settings: Settings) -> Iterator[Case]:
    for size in SIZES[::2] if settings.quick else SIZES:
        # A payload of a client begins 6, 8 or 14 bytes behind whatever the frame begins at.
        for offset in (0,) if settings.quick else (0, 6):
            names = ("memcpy", *(("picows",) if offset == 0 else ()))
            yield Case(
                "mask",
                {"size": str(size), "offset": str(offset)},
                "GB/s",
                contestants(
                    settings,
                    names,
                    measure,
                    size=size,
                    offset=offset,
                    seconds=min(settings.seconds, 0.1),
                ),
            )
