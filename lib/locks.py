"""Folders that one process works in at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lib.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def working_in(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be, and goes again if nothing was put into it.

    While another process holds it, wait and say so, or raise InputError. The system frees the lock when its process
    ends, however it ends. Where there are no such locks (Windows, some network drives), go on, and say so.
    """
    made, file = not folder.exists(), None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = _take(folder, wait)
    except OSError as error:
        print(f"{folder} cannot be locked ({error}): let no other process work in it", file=sys.stderr)
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()
        if file is not None:
            os.close(file)


def _take(folder: Path, wait: bool) -> int:
    """The open folder, locked: nothing is left in it."""
    if fcntl is None:
        raise OSError("no such locks on this system")
    file = os.open(folder, os.O_RDONLY)
    try:
        _lock(file, folder, wait)
    except BaseException:
        os.close(file)
        raise
    return file


def _lock(file: int, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise InputError(f"another process works in {folder}: wait until it has ended, or stop it") from None
        print(f"waiting for another process that works in {folder}", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
