"""How kernels are compiled: the renderer's, and those of the kinematic fit."""

import hashlib
import inspect
from pathlib import Path

from numba import config, njit

# Kernels are cached apart for every version of the modules that hold any: numba itself looks only at the file of the
# function that is called, and would run old versions of those that it calls.
_HERE = Path(__file__).parent
_TEXTS = [path.read_bytes() for path in sorted(_HERE.rglob("*.py"))]
_KERNELS = hashlib.sha256(b"".join(text for text in _TEXTS if b"@compiled" in text or b"@inlined" in text)).hexdigest()
config.CACHE_DIR = config.CACHE_DIR or str(_HERE / "__pycache__" / f"kernels-{_KERNELS[:16]}")


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
