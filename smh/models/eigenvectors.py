"""Eigenvectors of a large symmetric matrix, computed while other threads go on.

``scipy.linalg.eigh`` holds Python's global lock until LAPACK returns, which can take minutes: no interrupt is heard and
no progress is shown. SciPy also offers LAPACK's functions as pointers (``scipy.linalg.cython_lapack``). Called through
ctypes, they leave the lock to others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from smh.errors import SmhError

_INT = b"int *"


def largest_eigenvectors(matrix: np.ndarray, count: int) -> np.ndarray:
    """Return the eigenvectors of the largest eigenvalues, the largest first.

    Parameters
    ----------
    matrix : numpy.ndarray, shape (n, n), float64, in Fortran order
        Its upper triangle is read, and all of it overwritten.
    count : int
        How many, 1 to n.

    Returns
    -------
    numpy.ndarray, shape (count, n), float64

    Raises
    ------
    SmhError
        If LAPACK finds none.

    Examples
    --------
    >>> import numpy as np
    >>> np.abs(largest_eigenvectors(np.asfortranarray(np.diag([1.0, 3.0, 2.0])), 2))
    array([[0., 1., 0.],
           [0., 0., 1.]])
    """
    n = len(matrix)
    found, values, vectors = ctypes.c_int(), np.empty(n), np.empty((n, count), order="F")
    support, info = np.empty(2 * n, dtype=np.intc), ctypes.c_int()
    floats, integers, sizes = np.empty(1), np.empty(1, dtype=np.intc), (-1, -1)
    dsyevr = _lapack(b"dsyevr")
    for _ in range(2):  # first for the sizes of the workspaces
        dsyevr(
            *(ctypes.byref(ctypes.c_char(option)) for option in (b"V", b"I", b"U")),
            _int(n),
            _pointer(matrix),
            _int(n),
            *(ctypes.byref(ctypes.c_double(0.0)) for _ in range(2)),
            _int(n - count + 1),
            _int(n),
            ctypes.byref(ctypes.c_double(0.0)),
            ctypes.byref(found),
            _pointer(values),
            _pointer(vectors),
            _int(n),
            _pointer(support),
            _pointer(floats),
            _int(sizes[0]),
            _pointer(integers),
            _int(sizes[1]),
            ctypes.byref(info),
        )
        if info.value:
            raise SmhError(f"LAPACK found no eigenvectors of a matrix of {n} rows; got code {info.value} from dsyevr")
        if sizes[0] < 0:
            sizes = int(floats[0]), int(integers[0])
            floats, integers = np.empty(sizes[0]), np.empty(sizes[1], dtype=np.intc)
    return vectors.T[::-1]


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _pointer(x: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.ctypes.data)


def _lapack(name: bytes) -> Callable[..., None]:
    """Return a function of LAPACK that takes pointers only."""
    from scipy.linalg import cython_lapack

    capsule = cython_lapack.__pyx_capi__[name.decode()]
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = name_of(capsule)
    if signature is None or _INT not in signature:
        raise SmhError(f"fitting needs a SciPy whose LAPACK has integers of 32 bits; got {signature!r}")
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (signature.count(b",") + 1))(address_of(capsule, signature))
