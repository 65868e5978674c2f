"""Long computations that show their progress, and that ctrl-C ends.

Python hears an interrupt only between its own instructions. So loops over blocks keep each block short, and what takes
LAPACK minutes is done in steps. A thread would not do: left behind in OpenBLAS, it can hang the process as it ends.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from smh.errors import SmhError

T = TypeVar("T")
Tick = Callable[[str, float], None]
"""Receives the present task and its progress from 0 to 1."""

_PANEL = 32  # columns that are reduced at a time
_COLUMNS = 128  # eigenvectors that are turned at a time


def track(tick: Tick, what: str, values: Sequence[T], first: float = 0.0, last: float = 1.0) -> Iterator[T]:
    """Iterate over values, and tell how far this is on the way from one share to another."""
    for k, value in enumerate(values):
        tick(what, first + (last - first) * k / len(values))
        yield value


def largest_eigenvectors(matrix: np.ndarray, count: int, tick: Tick, what: str) -> np.ndarray:
    """Return the eigenvectors of the ``count`` largest eigenvalues, shape (count, n), the largest first.

    ``matrix`` is symmetric, float64 and in Fortran order: its upper triangle is read, and overwritten.
    """
    from scipy.linalg import eigh_tridiagonal

    n, info = len(matrix), np.zeros((), dtype=np.intc)
    off_diagonal, tau, panel = np.empty(n), np.empty(n), np.empty((n, _PANEL), order="F")
    for stop in track(tick, what, range(n, _PANEL, -_PANEL), 0.0, 0.6):  # as dsytrd does, but for the pauses
        first = stop - _PANEL
        _call("dlatrd", b"U", stop, _PANEL, matrix, n, off_diagonal, tau, panel, n)
        _call("dsyr2k", b"U", b"N", first, _PANEL, -1.0, matrix[:, first:], n, panel, n, 1.0, matrix, n)
    _call("dsytd2", b"U", (n - 1) % _PANEL + 1, matrix, n, np.empty(n), off_diagonal, tau, info)
    del panel
    vectors, work, more_work = np.empty((n, count), order="F"), np.empty(18 * n), np.empty(10 * n, dtype=np.intc)
    diagonal = np.diagonal(matrix)
    problem = [b"V", b"I", n, diagonal.copy(), off_diagonal.copy(), 0.0, 0.0, n - count + 1, n]
    solution = [0, np.empty(n), vectors, n, count, np.empty(2 * n, dtype=np.intc), 1]
    _call("dstemr", *problem, *solution, work, len(work), more_work, len(more_work), info)
    if info:  # dsyevr failed; the slower routine does not
        found = eigh_tridiagonal(diagonal, off_diagonal[:-1], select="i", select_range=(n - count, n - 1))[1]
        vectors = np.asfortranarray(found)
    del problem, solution, work, more_work
    work = np.empty(64 * (_COLUMNS + 65))
    for c in track(tick, what, range(0, count, _COLUMNS), 0.7):
        some = vectors[:, c : c + _COLUMNS]
        _call("dormtr", b"L", b"U", b"N", n, some.shape[1], matrix, n, tau, some, n, work, len(work), info)
    return vectors.T[::-1]


def _call(name: str, *arguments: Any) -> None:
    """Call a function of BLAS or LAPACK through SciPy's pointer, which leaves Python's global lock to others."""
    from scipy.linalg import cython_blas, cython_lapack

    capsule = cython_lapack.__pyx_capi__.get(name) or cython_blas.__pyx_capi__[name]
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = name_of(capsule)
    if signature is None or b"int *" not in signature:
        raise SmhError(f"fitting needs a SciPy whose LAPACK has integers of 32 bits; got {signature!r}")
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(arguments))(address_of(capsule, signature))
    arrays = [np.asarray(x, dtype=np.intc if isinstance(x, int) else None) for x in arguments]
    function(*(x.ctypes.data for x in arrays))
