"""Arrays on the disk that the stages of de-duplication hand to each other: memory stays bounded, and what is there is complete.

Every shard of documents leaves tables of columns, sorted by a 64-bit hash. A task of the next stage takes one range of hashes out of the
tables of all shards: what belongs together (equal texts, equal lines, one cluster) has the same hash, so no task needs another's range.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tinygpt.storage.durable import replace_file

Array = Any  # of NumPy, of any type
PARTITION_BYTES = 32 << 20  # of the tables, for one task: what it makes of them takes a few times as much


def hash_of(text: str) -> int:
    """64 bits, the same in every process: blake2b."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _path(folder: Path, table: str, shard: int, column: str) -> Path:
    return folder / f"{table}-{shard:05d}-{column}.npy"


def save(path: Path, array: Array) -> None:
    """An array as .npy: under its name only when all of it is on the disk."""
    array = np.ascontiguousarray(array)
    header = {"descr": npy.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    replace_file(path, _npy(header, array), writer=f"{os.getpid()}-")


def load(path: Path) -> Array:
    """What `save` wrote, still on the disk: read where it is used. Raises ValueError for an array of objects: those are pickles."""
    return npy.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]


def _npy(header: Mapping[str, object], array: Array) -> Iterator[bytes | Array]:
    head = io.BytesIO()
    npy.write_array_header_1_0(head, header)  # type: ignore[arg-type]
    yield head.getvalue()
    yield array.view(np.uint8).reshape(-1) if array.size else b""


def write_table(folder: Path, table: str, shard: int, hashes: NDArray[np.uint64], **columns: Array) -> NDArray[np.intp]:
    """Saves columns of equal length, sorted by hash (rows of equal hash stay in their order); returns that order."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.argsort(hashes, kind="stable")
    for name, column in {"hash": hashes, **columns}.items():
        save(_path(folder, table, shard, name), column[order])
    return order


def n_partitions(folder: Path, table: str, most_bytes: int = PARTITION_BYTES) -> int:
    """Into how many ranges of hashes the tables of all shards are divided, so that each is small."""
    return 1 + sum(path.stat().st_size for path in folder.glob(f"{table}-*.npy")) // most_bytes


def partition_of(hashes: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """The range, of n equal ones, that each hash lies in."""
    return ((hashes >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(np.int64)


def range_of(partition: int, n: int) -> tuple[np.uint64, np.uint64]:
    """The smallest and the largest hash of one of n ranges."""
    first, after = (-(-(p << 32) // n) << 32 for p in (partition, partition + 1))
    return np.uint64(first), np.uint64(after - 1)


def rows_of(folder: Path, table: str, shard: int, partition: int, n: int) -> slice:
    """The rows of a shard's table whose hashes lie in one of n ranges."""
    hashes = load(_path(folder, table, shard, "hash"))
    lowest, highest = range_of(partition, n)
    return slice(int(np.searchsorted(hashes, lowest)), int(np.searchsorted(hashes, highest, side="right")))


def column(folder: Path, table: str, shard: int, name: str, rows: slice = slice(None)) -> Array:
    """Some rows of a column, still on the disk: they are read where they are used."""
    return load(_path(folder, table, shard, name))[rows]


def read_partition(folder: Path, table: str, n_shards: int, partition: int, n: int, columns: Sequence[str]) -> dict[str, Array]:
    """One range of hashes, out of the tables of all shards: {"shard": ..., and each column}. Shards in order, hashes sorted within each."""
    parts: dict[str, list[Array]] = {name: [] for name in ("shard", *columns)}
    for shard in range(n_shards):
        rows = rows_of(folder, table, shard, partition, n)
        for name in columns:
            parts[name].append(np.array(column(folder, table, shard, name, rows)))
        parts["shard"].append(np.full(rows.stop - rows.start, shard, dtype=np.uint32))
    return {name: np.concatenate(found) for name, found in parts.items()}
