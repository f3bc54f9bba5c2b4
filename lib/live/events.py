"""Pinches as events: when they begin and end.

A pinch begins in the frame in which the fingertips come nearer than one distance, and ends in the one in which they are
farther apart than a larger one (`lib.live.hands`), or the hand is lost. It is told in these frames, without a look
ahead. The two distances cost nothing where a pinch begins; its end is later by as long as the fingers take from the
one to the other.
"""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from lib.hands import HANDS
from lib.tracking import Pinch


def updated(pinches: tuple[Pinch, ...], pinching: Bool[Tensor, "2"], time: float) -> tuple[Pinch, ...]:
    """The pinches up to a frame at a `time` (s), from those up to the frame before and the hands that pinch in it."""
    known = tuple(p._replace(end=time) if p.end is None and not pinching[p.hand] else p for p in pinches)
    going_on = {p.hand for p in known if p.end is None}
    return known + tuple(Pinch(hand, time) for hand in range(HANDS) if pinching[hand] and hand not in going_on)
