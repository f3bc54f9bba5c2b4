"""Archives that are broken or hostile: refused without filling the memory, and nothing leaves them."""

import bz2
import gzip
import io
import lzma
import random
import re
import tarfile
import tracemalloc

import pytest

from lib.errors import InputError
from lib.formats import archives
from lib.formats.archives import MAX_MEMBER, read_members

NAMES = re.compile(r"[a-z]\.json")
COMPRESS = {"tar": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def tar_of(*members: tuple[str, bytes], **header) -> bytes:
    """A tar, uncompressed; `header` changes the entries of each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in header.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = tar_of(("a.json", b"1" * 3000), ("other.txt", b"no"), ("./b.json", b"2"))


@pytest.mark.parametrize("kind", COMPRESS)
def test_known_members_come_back(tmp_path, kind):
    path = tmp_path / "clip.tar"
    path.write_bytes(COMPRESS[kind](GOOD))
    assert read_members(path, NAMES) == {"a.json": b"1" * 3000, "b.json": b"2"}


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("seed", range(12))
def test_damaged_archives(tmp_path, kind, seed):
    """Refused, or read where the damage lies elsewhere."""
    content, rng = bytearray(COMPRESS[kind](GOOD)), random.Random(seed)
    start = rng.randrange(min(len(content), 2000))
    content[start : start + 8] = rng.randbytes(8)
    path = tmp_path / "clip.tar"
    path.write_bytes(content[: rng.choice((len(content), len(content) // 2))])
    try:
        found, message = set(read_members(path, NAMES)), ""
    except InputError as error:
        found, message = set(), str(error)
    assert found <= {"a.json", "b.json"}
    assert not message or f"{path} is not a clip that can be read" in message


def sparse_header(size: int) -> bytes:
    info = tarfile.TarInfo("a.json")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def long_name_header(size: int) -> bytes:
    info = tarfile.TarInfo("a.json")
    info.size, info.type = size, tarfile.GNUTYPE_LONGNAME
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("header", [sparse_header, long_name_header])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["tar", "gz"])
def test_sizes_beyond_the_limit_are_not_read(tmp_path, header, compress):
    """A member, or the name of one, of 8 GB."""
    path = tmp_path / "clip.tar"
    path.write_bytes(compress(header(8 << 30) + bytes(1 << 20)))
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"{8 << 30} bytes, expected at most {MAX_MEMBER}"):
        read_members(path, NAMES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_MEMBERS", 2, "than 2 members"),
        ("MAX_ARCHIVE", 2048, "than 2048 bytes"),
        ("MAX_MEMBER", 2000, "takes 3000"),
    ],
)
def test_limits(tmp_path, monkeypatch, limit, value, message):
    path = tmp_path / "clip.tar"
    path.write_bytes(GOOD)
    monkeypatch.setattr(archives, limit, value)
    with pytest.raises(InputError, match=message):
        read_members(path, NAMES)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_passed_over(tmp_path, kind):
    path = tmp_path / "clip.tar"
    path.write_bytes(tar_of(("a.json", b""), type=kind, linkname="/etc/hostname"))
    assert read_members(path, NAMES) == {}


def test_a_git_lfs_pointer_is_named(tmp_path):
    path = tmp_path / "clip.tar"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(InputError, match=r"clip\.tar is a Git LFS pointer.*git lfs pull"):
        read_members(path, NAMES)
