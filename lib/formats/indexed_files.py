"""Indexed files: `.torch.bin` holds arrays or msgpack messages back to back, `.torch.idx` their places.

Nothing is unpickled. Source: the published reader, `idxbinfile.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Int64, UInt8

from lib.errors import InputError
from lib.files import describing, refuse_pointer, write_atomically

MAGIC, VERSION = 0x584449544E54, 1
ARRAYS = {kind: np.dtype(f"<{name}") for kind, name in enumerate(("u1", "i1", "i2", "i4", "i8", "f4", "f8"), start=1)}
"""Types of arrays by their code in the index."""
MSGPACK = 8
"""Code of msgpack messages."""
HEADER = 6
"""Words of an index before its offsets: magic, version, type code, item size, elements, sizes."""
MAX_INDEX, MAX_MESSAGE = 1 << 28, 1 << 24
"""Bytes of an index and of a message: millions of clips, thousands of frames."""
MAX_RANK, MAX_ITEMS = 32, 1 << 48
"""Dimensions of an array, and the product of those that are not zero."""
MAX_LENGTH, MAX_PARTS, UNCOUNTED = 1 << 14, 1 << 20, 1 << 22
"""Entries of a list or map in a message; lists and maps in a message, which are not counted in one of few bytes: there,
a list takes a byte at least. What is unpacked takes less than 1 GiB."""

Element = np.ndarray | Mapping[str, Any]


def index_and_content(stem: Path) -> tuple[Path, Path]:
    """Index and content."""
    return Path(f"{stem}.torch.idx"), Path(f"{stem}.torch.bin")


class IndexedFile:
    """The elements of `stem`.torch.bin, all of them arrays of one type or all msgpack maps.

    Both files are mapped into memory, nothing is read before it is asked for. Pickled, it is but its path: another
    process opens it anew. `dtype` is None for maps.
    """

    def __init__(self, stem: Path):
        """Raises InputError unless both files are there, the index is consistent, and the content as long as it says.

        An index cannot tell types of one item size apart, nor shapes of one product.
        """
        self.stem = stem
        self.index_path, self.path = index_and_content(stem)
        with describing(self.index_path):
            self.dtype, self._dims, self._offsets, self._sizes = _read_index(self.index_path)
        item = np.dtype(np.uint8) if self.dtype is None else self.dtype
        expected = int(self._offsets[-1]) * item.itemsize
        size = _size(self.path)
        if size != expected:
            raise InputError(f"{self.path} holds {size} bytes, expected {expected} as its .idx says: truncated?")
        self._content = _mapped(self.path, item)

    def __reduce__(self):
        return type(self), (self.stem,)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an element, from the index alone; of a map, ()."""
        self._check(index)
        return tuple(self._sizes[self._dims[index] : self._dims[index + 1]].tolist())

    def __getitem__(self, index: int) -> np.ndarray | dict:
        """An array, a view of the file that cannot be written to, or a map. Raises InputError for a broken message."""
        self._check(index)
        part = self._content[self._offsets[index] : self._offsets[index + 1]]
        if self.dtype is not None:
            return part.reshape(self.shape(index))
        with describing(f"{self.path}: clip {index}"):
            return _unpacked(part)

    @property
    def holds(self) -> str:
        """What the elements are, in words."""
        return type_name(self.dtype)

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"no element {index}: {self.path} holds {len(self)}")


def type_name(dtype: np.dtype | None) -> str:
    return "msgpack maps" if dtype is None else f"arrays of {dtype}"


def _size(path: Path) -> int:
    """Bytes of a file. Raises InputError if there is none or it is a Git LFS pointer."""
    try:
        if not path.is_file():
            raise InputError(f"no file {path}: an indexed file is a .torch.bin and a .torch.idx of the same name")
        refuse_pointer(path)
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """The items of a file, mapped into memory."""
    try:
        if path.stat().st_size == 0:  # cannot be mapped
            return np.frombuffer(b"", dtype)
        return np.asarray(np.memmap(path, dtype, mode="r"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


_Words = Int64[np.ndarray, "_"]


def _read_index(path: Path) -> tuple[np.dtype | None, _Words, _Words, _Words]:
    """Type, offsets into the sizes, offsets into the content, and sizes of an index; all consistent."""
    size = _size(path)
    if size > MAX_INDEX or size % 8 or size < 8 * HEADER:
        raise InputError(f"{size} bytes, expected {8 * HEADER} to {MAX_INDEX}, a multiple of 8: truncated?")
    words = _mapped(path, np.dtype("<i8"))
    magic, version, kind, item, count, sizes = words[:HEADER].tolist()
    if (magic, version) != (MAGIC, VERSION):
        raise InputError(f"begins with {magic:#x}, version {version}, expected {MAGIC:#x}, version {VERSION}: no index")
    if kind not in ARRAYS and kind != MSGPACK:
        raise InputError(f"type code {kind}, expected {min(ARRAYS)} to {MSGPACK}")
    dtype = ARRAYS.get(kind)
    if item != (1 if dtype is None else dtype.itemsize):
        raise InputError(f"item size {item} does not belong to type code {kind} ({type_name(dtype)})")
    if count < 0 or sizes < 0 or len(words) != HEADER + 2 * (count + 1) + sizes:
        raise InputError(f"{len(words)} words, which is not what {count} elements with {sizes} sizes take: truncated?")
    dims, offsets, shapes = np.split(words[HEADER:], [count + 1, 2 * (count + 1)])
    for name, values in {"dimension": dims, "data": offsets}.items():
        if values[0] != 0 or (values[1:] < values[:-1]).any():
            raise InputError(f"{name} offsets, expected to begin with 0 and never to decrease")
    if dims[-1] != (0 if dtype is None else sizes):
        raise InputError(f"dimension offsets end at {dims[-1]}, expected {sizes} sizes (none for msgpack)")
    if sizes and dtype is None:
        raise InputError(f"{sizes} sizes, expected none for msgpack")
    if dtype is not None:
        _check_shapes(dims, offsets, shapes)
    return dtype, dims, offsets, shapes


def _check_shapes(dims: _Words, offsets: _Words, sizes: _Words) -> None:
    """The product of each shape is the length of its element."""
    ranks = np.diff(dims)
    if (ranks > MAX_RANK).any() or (sizes < 0).any():
        raise InputError(f"more than {MAX_RANK} dimensions, or sizes below zero")
    with np.errstate(over="ignore"):
        largest = _products(np.maximum(sizes, 1).astype(float), dims)
    products = _products(sizes, dims)
    wrong = (largest > MAX_ITEMS) | (products != np.diff(offsets))
    if wrong.any():
        first = int(wrong.argmax())
        shape = tuple(sizes[dims[first] : dims[first + 1]].tolist())
        items = int(offsets[first + 1] - offsets[first])
        raise InputError(f"element {first} has the shape {shape} and {items} items: they do not fit")


def _products(sizes: np.ndarray, dims: _Words) -> np.ndarray:
    """The product of the sizes of each element."""
    products = np.multiply.reduceat(np.append(sizes, sizes.dtype.type(1)), dims[:-1])
    return np.where(np.diff(dims) > 0, products, 1)


def _unpacked(message: bytes | UInt8[np.ndarray, "_"]) -> dict:
    """A msgpack map. Raises InputError if it is none or exceeds a limit."""
    if len(message) > MAX_MESSAGE:
        raise InputError(f"a message of {len(message)} bytes, expected at most {MAX_MESSAGE}: cut shorter clips")
    parts = 0

    def counted(part):
        nonlocal parts
        parts += 1
        if parts > MAX_PARTS:
            raise InputError(f"a message of more than {MAX_PARTS} lists and maps")
        return part

    limits = {f"max_{kind}_len": min(MAX_LENGTH, len(message)) for kind in ("array", "map")}
    if len(message) > UNCOUNTED:
        limits |= {"list_hook": counted, "object_hook": counted}
    try:
        content = msgpack.unpackb(message, max_ext_len=0, **limits)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise InputError(f"no msgpack that can be read: {error or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise InputError(f"expected a map, got a {type(content).__name__}")
    return content


def write_indexed(stem: Path, elements: Iterable[Element]) -> None:
    """Write arrays of one type, of any shapes, or maps of what msgpack can hold to `stem`.torch.bin and .torch.idx.

    Elements are taken one at a time. Both files get their names when they are complete, the index last; on failure
    nothing changes. Raises InputError if there is no element or a map exceeds what is read back.
    """
    write_together([stem], ([element] for element in elements))


def write_together(stems: Sequence[Path], rows: Iterable[Sequence[Element]]) -> None:
    """`write_indexed` of several files at once: each row has an element for each."""
    indices, contents = (list(paths) for paths in zip(*map(index_and_content, stems), strict=True))

    def write(temporary: list[Path]) -> None:
        writers = [_Writer() for _ in stems]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in temporary[len(stems) :]]
            for row in rows:
                for writer, file, element in zip(writers, files, row, strict=True):
                    file.write(writer.add(element))
        for writer, path, stem in zip(writers, temporary[: len(stems)], stems, strict=True):
            if len(writer.offsets) == 1:
                raise InputError(f"nothing to write to {stem}.torch.bin: expected at least one element")
            path.write_bytes(writer.index())
        for path in indices:
            path.unlink(missing_ok=True)  # from here on an old index would belong to new content

    _write_all([*indices, *contents], write)


def _write_all(paths: Sequence[Path], write: Callable[[list[Path]], None]) -> None:
    """`write_atomically` of several files; they get their names from the last to the first."""
    if not paths:
        write([])
    else:
        write_atomically(paths[0], lambda first: _write_all(paths[1:], lambda rest: write([first, *rest])))


@dataclass
class _Writer:
    """What an index will say of the elements so far."""

    kind: int | None = None
    dims: list[int] = field(default_factory=lambda: [0])
    offsets: list[int] = field(default_factory=lambda: [0])
    sizes: list[int] = field(default_factory=list)

    def add(self, element: Element) -> bytes:
        """The bytes of an element. Raises ValueError if it is of another type than the first, or cannot be stored."""
        if isinstance(element, Mapping):
            kind, shape, content = MSGPACK, (), msgpack.packb(element)
            _unpacked(content)  # what is written can be read
        else:
            kinds = [code for code, dtype in ARRAYS.items() if element.dtype.newbyteorder("<") == dtype]
            if not kinds:
                raise ValueError(f"arrays of {element.dtype}, expected {', '.join(map(str, ARRAYS.values()))}")
            kind, shape, content = kinds[0], element.shape, element.astype(ARRAYS[kinds[0]], copy=False).tobytes()
        if self.kind not in (None, kind):
            raise ValueError(f"an element of type code {kind} after those of {self.kind}: expected one type")
        self.kind = kind
        self.sizes += shape
        self.dims.append(len(self.sizes))
        self.offsets.append(self.offsets[-1] + len(content) // self._item_size)
        return content

    @property
    def _item_size(self) -> int:
        return ARRAYS[self.kind].itemsize if self.kind in ARRAYS else 1

    def index(self) -> bytes:
        header = MAGIC, VERSION, self.kind, self._item_size, len(self.offsets) - 1, len(self.sizes)
        return np.array([*header, *self.dims, *self.offsets, *self.sizes], "<i8").tobytes()
