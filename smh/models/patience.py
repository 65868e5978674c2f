"""Long computations that show their progress, and that ctrl-C ends.

Python hears an interrupt only between its own instructions. So loops over blocks keep each block short, and functions
of LAPACK, which take minutes, run in a thread that leaves Python's global lock to others.
"""

from __future__ import annotations

import contextvars
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from smh.errors import SmhError

Tick = Callable[[str, float], None]
"""Is told what is being done, and which share of it is done."""

_WAIT = 0.2  # seconds


def track(tick: Tick, what: str, values: Sequence[int], first: float = 0.0, last: float = 1.0) -> Iterator[int]:
    """Iterate over values, and tell how far this is on the way from one share to another."""
    for k, value in enumerate(values):
        tick(what, first + (last - first) * k / len(values))
        yield value


def interruptible(fn: Callable[[], Any], waiting: Callable[[], None] = lambda: None) -> Any:
    """Return what a function returns that does not look at signals; ``waiting`` is called some times a second.

    The function runs in a thread that does not outlive the process, so an interrupt ends the wait at once.
    """
    future: Future[Any] = Future()
    context = contextvars.copy_context()  # NumPy's treatment of floating-point errors is part of it

    def run() -> None:
        try:
            future.set_result(context.run(fn))
        except BaseException as error:  # handed over, whatever it is
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_WAIT)
    while thread.is_alive():
        waiting()
        thread.join(_WAIT)
    return future.result()


def largest_eigenvectors(matrix: np.ndarray, count: int) -> np.ndarray:
    """Return the eigenvectors of the ``count`` largest eigenvalues, shape (count, n), the largest first.

    ``matrix`` is symmetric, float64 and in Fortran order: its upper triangle is read, and all of it overwritten.
    """
    n, info = len(matrix), np.zeros((), dtype=np.intc)
    vectors, work, more_work = np.empty((n, count), order="F"), np.empty(33 * n), np.empty(10 * n, dtype=np.intc)
    problem = [b"V", b"I", b"U", n, matrix, n, 0.0, 0.0, n - count + 1, n, 0.0]
    solution = [0, np.empty(n), vectors, n, np.empty(2 * n, dtype=np.intc)]
    _call_lapack("dsyevr", *problem, *solution, work, len(work), more_work, len(more_work), info)
    if info:
        raise SmhError(f"LAPACK found no eigenvectors of a matrix of {n} rows; got code {info} from dsyevr")
    return vectors.T[::-1]


def _call_lapack(name: str, *arguments: Any) -> None:
    """Call a function through the pointer that SciPy offers: ``scipy.linalg.eigh`` would hold Python's global lock."""
    from scipy.linalg import cython_lapack

    capsule = cython_lapack.__pyx_capi__[name]
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = name_of(capsule)
    if signature is None or b"int *" not in signature:
        raise SmhError(f"fitting needs a SciPy whose LAPACK has integers of 32 bits; got {signature!r}")
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(arguments))(address_of(capsule, signature))
    arrays = [np.asarray(x, dtype=np.intc if isinstance(x, int) else None) for x in arguments]
    function(*(x.ctypes.data for x in arrays))
