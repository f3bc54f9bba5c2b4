"""An open, reproducible study of UmeTrack: unified multi-view end-to-end hand tracking for VR (SIGGRAPH Asia 2022).

Conventions, stated once: metres, radians and seconds unless a name ends in another unit (`_mm`, `_px`, `_deg`);
camera axes x right, y down, z forward; pixel centres at integer coordinates; transforms are 4x4 matrices acting on
column vectors and named by their frames, so that frames touch when they compose:
`world_from_wrist = world_from_camera @ camera_from_wrist`. Hand 0 is the left, hand 1 the right hand.
"""

import hashlib
import os
from pathlib import Path

# Threads that wait for one another sleep instead of spinning: where another process holds a core, spinning costs up to
# six times. OpenMP reads this when it is loaded, so it is said before anything is imported that loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Compiled kernels are cached apart for every version of the modules that hold them: numba itself looks only at the file
# of the function that is called, and would run old versions of those that it calls.
_HERE = Path(__file__).parent
_TEXTS = [path.read_bytes() for path in sorted([*_HERE.glob("*.py"), *_HERE.glob("[mr]*/*.py")])]
_KERNELS = hashlib.sha256(b"".join(text for text in _TEXTS if b"compiled" in text)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(_HERE / "__pycache__" / f"kernels-{_KERNELS}"))
