"""Tar archives that users bring: members with known names are read into memory, within limits; nothing is extracted.

Links, devices and members of other names are passed over. A size that an archive claims is refused before it is read,
so that sparse members and compressed zeros fill no memory.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from pathlib import Path

from lib.errors import InputError
from lib.files import refuse_pointer

MAX_MEMBER, MAX_ARCHIVE, MAX_MEMBERS = 1 << 25, 1 << 30, 100_000
"""Bytes of a member and of a whole archive, unpacked, and how many members: a clip takes about a tenth of each."""
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def read_members(path: Path, names: re.Pattern) -> dict[str, bytes]:
    """The content of the members of a tar, plain or compressed, whose whole name matches `names`.

    Raises InputError if the archive is broken or exceeds a limit.
    """
    try:
        refuse_pointer(path)
        with path.open("rb") as file:
            unpack = _COMPRESSED.get(file.read(2), open)
        with unpack(path, "rb") as file, tarfile.open(fileobj=_Limited(file), mode="r:") as tar:
            return _read(tar, names)
    except (OSError, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a clip that can be read (a .tar of frames): {error}") from error


def _read(tar: tarfile.TarFile, names: re.Pattern) -> dict[str, bytes]:
    members = {}
    for number, member in enumerate(tar):
        name = member.name.removeprefix("./")
        if number >= MAX_MEMBERS:
            raise tarfile.TarError(f"more than {MAX_MEMBERS} members")
        if not 0 <= member.size <= MAX_MEMBER:
            raise tarfile.TarError(f"{name:.80} takes {member.size} bytes, expected at most {MAX_MEMBER}")
        if member.isfile() and names.fullmatch(name):
            members[name] = tar.extractfile(member).read()
    return members


class _Limited:
    """A file that refuses to be read in larger pieces than a member, or beyond the end of the largest archive."""

    def __init__(self, file):
        self.file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_MEMBER + tarfile.RECORDSIZE:
            raise tarfile.TarError(f"a header of {size} bytes, expected at most {MAX_MEMBER}")
        return self.file.read(size)

    def seek(self, position: int) -> int:
        if not 0 <= position <= MAX_ARCHIVE:
            raise tarfile.TarError(f"more than {MAX_ARCHIVE} bytes, unpacked")
        return self.file.seek(position)
