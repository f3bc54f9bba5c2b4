"""Tar archives that users bring: members with known names are read into memory, within limits; nothing is extracted.

Links, devices and members of other names are passed over. A size that an archive claims is refused before it is read,
so that sparse members and compressed zeros fill no memory. Pictures of a plain tar stay in it until they are asked for.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.files import refuse_pointer

MAX_MEMBER, MAX_ARCHIVE, MAX_MEMBERS = 1 << 25, 1 << 30, 100_000
"""Bytes of a member and of all that is read, or unpacked, and how many members: a clip takes about a tenth of each."""
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


@dataclass(frozen=True)
class StoredMember:
    """A member of a plain tar, still in it."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Its content. Raises InputError if the archive is not what it was."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error
        if len(content) != self.size:
            raise InputError(f"{self.path} ends at byte {self.offset + len(content)}: it has become shorter")
        return content


def read_members(path: Path, names: re.Pattern, later: re.Pattern | None = None) -> dict[str, bytes | StoredMember]:
    """The content of the members of a tar, plain or compressed, whose whole name matches `names`.

    Of a plain tar those that match `later`, too, are not read yet. Raises InputError if the archive is broken or
    exceeds a limit.
    """
    try:
        refuse_pointer(path)
        with path.open("rb") as file:
            unpack = _COMPRESSED.get(file.read(2), open)
        plain = unpack is open
        end = max(MAX_ARCHIVE, path.stat().st_size) if plain else MAX_ARCHIVE
        with unpack(path, "rb") as file, tarfile.open(fileobj=_Limited(file, end), mode="r:") as tar:
            return _read(tar, names, path, later if plain else None)
    except (OSError, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a clip that can be read (a .tar of frames): {error}") from error


def _read(
    tar: tarfile.TarFile, names: re.Pattern, path: Path, later: re.Pattern | None
) -> dict[str, bytes | StoredMember]:
    members, total = {}, 0
    for number, member in enumerate(tar):
        name = member.name.removeprefix("./")
        if number >= MAX_MEMBERS:
            raise tarfile.TarError(f"more than {MAX_MEMBERS} members")
        if not 0 <= member.size <= MAX_MEMBER:
            raise tarfile.TarError(f"{name:.80} takes {member.size} bytes, expected at most {MAX_MEMBER}")
        if not member.isfile() or not names.fullmatch(name):
            continue
        if later is not None and later.fullmatch(name) and not member.issparse():
            members[name] = StoredMember(path, member.offset_data, member.size)
            continue
        total += member.size
        if total > MAX_ARCHIVE:
            raise tarfile.TarError(f"more than {MAX_ARCHIVE} bytes to read")
        members[name] = tar.extractfile(member).read()
    return members


class _Limited:
    """A file that refuses to be read in larger pieces than a member, or beyond the `end` of the largest archive."""

    def __init__(self, file, end: int):
        self.file, self.end = file, end
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_MEMBER + tarfile.RECORDSIZE:
            raise tarfile.TarError(f"a header of {size} bytes, expected at most {MAX_MEMBER}")
        return self.file.read(size)

    def seek(self, position: int) -> int:
        if not 0 <= position <= self.end:
            raise tarfile.TarError(f"more than {self.end} bytes, unpacked")
        return self.file.seek(position)
