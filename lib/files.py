"""Files: JSON and arrays that users bring, atomic writes, folders that one process works in at a time."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from lib.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MM = 1000.0
"""The public files store millimetres; they become metres when read and nowhere else."""
MAX_TEXT = 1 << 29
"""Bytes of a JSON, JSONL or CSV file: two hours of labels."""
MAX_ARRAYS = 1 << 30
"""Bytes that the arrays of an .npz file may take in memory."""
BROKEN_ARRAYS = (
    OSError, ValueError, KeyError, EOFError, TypeError, MemoryError, OverflowError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise for damaged files."""


class describing:
    """Turns what a malformed file, or a part of it, raises into an InputError that names it."""

    def __init__(self, path: Path | str):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, InputError):
            raise InputError(f"{self.path}: {error}") from error
        if isinstance(error, KeyError):
            raise InputError(f"{self.path}: the field {error} is missing") from error
        if isinstance(error, TypeError | ValueError | AttributeError | ArithmeticError | IndexError | RecursionError):
            raise InputError(f"{self.path}: not in the expected form: {error}") from error


def read_json(path: Path):
    """The content of a JSON file. Raises InputError if there is none or it is malformed."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def read_text(path: Path) -> str:
    """The content of a text file. Raises InputError if there is none, it is no text, or larger than 512 MiB."""
    try:
        refuse_pointer(path)
        if path.stat().st_size > MAX_TEXT:
            raise InputError(f"{path} holds {path.stat().st_size} bytes, expected at most {MAX_TEXT}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid JSON or CSV: it is no text in UTF-8: {error}") from error


def refuse_pointer(path: Path) -> None:
    """Raise InputError if a file is but the pointer that Git LFS leaves in its place."""
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs.github.com/spec"):
            raise InputError(f"{path} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")


def load_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file, or all; nothing is unpickled. Raises one of `BROKEN_ARRAYS`, or InputError for
    a Git LFS pointer."""
    refuse_pointer(path)
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_ARRAYS:
        raise ValueError(f"its arrays take {size} bytes, expected at most {MAX_ARRAYS}")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in (stored.files if names is None else names)}


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file, under its final name, whatever its suffix, only when complete."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # np.savez would append .npz to a name without it
            np.savez(file, **arrays)

    write_atomically(path, write)


def check_shapes(arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple]) -> None:
    """Raise ValueError unless arrays have the expected (type, lengths...), and finite values.

    A length with a name may be any, but is the same throughout.
    """
    lengths: dict[str, int] = {}
    for name, (dtype, *shape) in expected.items():
        array = arrays[name]
        known = [
            lengths.setdefault(e, a) if isinstance(e, str) else e for e, a in zip(shape, array.shape, strict=False)
        ]
        if array.dtype != dtype or array.ndim != len(shape) or list(array.shape) != known:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {tuple(shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")


def refuse_overwriting(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path]) -> None:
    """Raise InputError if an output is a folder, one of the inputs or another output, by whatever name or link.

    Both are named as the message shall name them; None: there is none.
    """
    taken = dict(inputs)
    for name, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise InputError(f"{path} is a folder, expected the name of a file to write")
        for other, used in taken.items():
            if path.resolve() == used.resolve() or (path.exists() and used.exists() and path.samefile(used)):
                raise InputError(f"{name} {path} is {other}, which it would overwrite: name another file")
        taken[name] = path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path` and rename the result; on failure nothing is left behind.

    The temporary name keeps the suffix, by which many writers choose their format. What processes of this machine left
    that were killed while they wrote the same file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.stem}.{_MACHINE}-"
    temporary = path.with_name(f"{prefix}{os.getpid()}{path.suffix}")
    for left in path.parent.glob(f"{glob.escape(prefix)}*{glob.escape(path.suffix)}"):
        if not _is_alive(left.name.removeprefix(prefix).removesuffix(path.suffix)):
            left.unlink(missing_ok=True)
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_MACHINE = re.sub(r"\W", "_", platform.node())
"""In temporary names, since other machines may write to the same folder: their processes cannot be asked after."""


def _is_alive(pid: str) -> bool:
    """Whether a process of this machine is running; of what is no number, and on Windows, nothing is known."""
    if not pid.isdecimal() or os.name == "nt":  # where signal 0 is Ctrl+C
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(sha256: Mapping[str, str]) -> str:
    """A short name for the content of files, from their hashes by path."""
    return hashlib.sha256(json.dumps(dict(sorted(sha256.items()))).encode()).hexdigest()[:16]


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
