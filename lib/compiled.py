"""How kernels are compiled: the renderer's, and those of the kinematic fit."""

import inspect

from numba import njit


def compiled(function):
    """Compile with numba: cached on disk, without the interpreter's lock, exact arithmetic (no fastmath).

    Division by zero gives infinities as in NumPy, which lets loops be vectorised. Where the import hook of jaxtyping
    has wrapped the function in checks, the function inside is compiled. Where no folder may be written, it is compiled
    anew by every process.
    """
    function, options = inspect.unwrap(function), {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)


def inlined(function):
    """Compile into the compiled functions that call it: one called for every pixel need not be handed its arrays."""
    return njit(inline="always", error_model="numpy")(inspect.unwrap(function))
