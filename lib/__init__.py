"""An open, reproducible study of UmeTrack: unified multi-view end-to-end hand tracking for VR (SIGGRAPH Asia 2022).

Conventions, stated once: metres, radians and seconds unless a name ends in another unit (`_mm`, `_px`, `_deg`);
camera axes x right, y down, z forward; pixel centres at integer coordinates; transforms are 4x4 matrices acting on
column vectors and named by their frames, so that frames touch when they compose:
`world_from_wrist = world_from_camera @ camera_from_wrist`. Hand 0 is the left, hand 1 the right hand.
"""

import os

__version__ = "0.1.0"

# Threads that wait for one another sleep instead of spinning: where another process holds a core, spinning costs up to
# six times. OpenMP reads this when it is loaded, so it is said before anything is imported that loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
