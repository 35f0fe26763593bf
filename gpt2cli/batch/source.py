"""The input: read once from end to end for what is in it, and then row by row in any order.

Of each row some sixty bytes are kept, however long it is.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gpt2cli.api.errors import ApiError
from gpt2cli.batch.rows import KEY_BYTES, Asked, Defaults, key_of, read_line
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.jobs.shards import Shard
from gpt2cli.text.reading import without_mark

MAX_LINE_BYTES = 32 * 2**20
"""Of one row; a longer one is refused without being read into memory."""
Numbers = NDArray[np.int64]
Keys = NDArray[np.bytes_]


@dataclass
class Index:
    """What is known of each row, in the order of the input; blank lines are none."""

    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    """Bytes of the line; more than `MAX_LINE_BYTES` where it is too long."""
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Of the line, from 1."""
    ids: array[int] = field(default_factory=lambda: array("q"))
    """Hashes of the ids."""
    costs: array[int] = field(default_factory=lambda: array("q"))
    keys: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.offsets)

    def key_array(self) -> Keys:
        """The keys of all rows."""
        return np.frombuffer(self.keys, dtype=f"S{KEY_BYTES}")

    def repeated(self) -> Numbers:
        """The rows whose ids an earlier row has."""
        found = np.frombuffer(self.ids, dtype=np.int64)
        order = np.argsort(found, kind="stable")
        same = found[order][1:] == found[order][:-1]
        return np.sort(order[1:][same])


class Source:
    """The rows of a file that can be read from any place. Raises `UsageError` where there is none."""

    def __init__(self, file: BinaryIO, name: str, defaults: Defaults, *, as_json: bool) -> None:
        self._file, self.name, self._defaults, self._as_json = file, name, defaults, as_json
        self.index = Index()
        digest = hashlib.sha256()
        for number, offset, data, size in self._lines(digest):
            self._take(number, offset, data, size)
        self.hash = digest.hexdigest()
        if not len(self.index):
            raise UsageError(f"{name} holds no prompt")
        self._repeated = frozenset(self.index.repeated().tolist())
        for row in self._repeated:
            # Each is a row of its own, whatever is in it.
            at = row * KEY_BYTES
            self.index.keys[at : at + KEY_BYTES] = self._repeated_key(row)

    def __len__(self) -> int:
        return len(self.index)

    def part(self, shard: Shard | None) -> Numbers:
        """The rows of a shard, or all."""
        rows = np.arange(len(self.index), dtype=np.int64)
        return rows if shard is None else rows[shard.number - 1 :: shard.of]

    def by_length(self, rows: Numbers) -> Numbers:
        """``rows``, the longest first: like lengths meet, and no long one is left alone at the end."""
        costs = np.frombuffer(self.index.costs, dtype=np.int64)[rows]
        return rows[np.argsort(-costs, kind="stable")]

    def cost(self, rows: Numbers) -> int:
        """About how many tokens they are."""
        return int(np.frombuffer(self.index.costs, dtype=np.int64)[rows].sum())

    def row(self, row: int) -> Asked:
        """What a row asks for. Raises `Gpt2cliError` where it is not what it was before."""
        index = self.index
        size, number = index.sizes[row], index.numbers[row]
        key = bytes(index.keys[row * KEY_BYTES : (row + 1) * KEY_BYTES])
        if size > MAX_LINE_BYTES:
            return Asked(f"line-{number}", key).refused(_too_long())
        self._file.seek(index.offsets[row])
        asked = read_line(_content(self._file.read(size)), number, as_json=self._as_json)
        if row in self._repeated:
            error = ApiError(400, "an earlier row has the same id", param="custom_id", code="duplicate_id")
            return Asked(asked.id, key).refused(error)
        if asked.key != key:
            raise Gpt2cliError(
                f"{self.name} has changed while it was read",
                hint="the same command goes on",
            )
        return asked

    def _repeated_key(self, row: int) -> bytes:
        old = bytes(self.index.keys[row * KEY_BYTES : (row + 1) * KEY_BYTES])
        return key_of(["repeated", self.index.numbers[row], old.hex()])

    def _take(self, number: int, offset: int, data: bytes | None, size: int) -> None:
        index = self.index
        if data is None:
            asked = Asked(f"line-{number}", key_of(["too long", number, size]))
        else:
            asked = read_line(data, number, as_json=self._as_json)
        index.offsets.append(offset)
        index.sizes.append(size)
        index.numbers.append(number)
        digest = hashlib.sha256(asked.id.encode("utf-8", "surrogatepass")).digest()
        index.ids.append(int.from_bytes(digest[:8], "big", signed=True))
        index.costs.append(asked.cost(size, self._defaults))
        index.keys += asked.key

    def _lines(self, digest: hashlib._Hash) -> Iterator[tuple[int, int, bytes | None, int]]:
        """For each line that is not blank its number, where it begins, itself, and its bytes.

        Of one that is too long there is no more than its size.
        """
        number = offset = 0
        self._file.seek(0)
        while True:
            line = self._file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            digest.update(line)
            number, begin = number + 1, offset
            offset += len(line)
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = self._file.readline(2**20)
                    digest.update(line)
                    offset += len(line)
                yield number, begin, None, offset - begin
                continue
            if number == 1:
                begin += len(line) - len(without_mark(line))
            data = _content(without_mark(line) if number == 1 else line)
            if data.strip():
                yield number, begin, data, offset - begin


def says_json(file: BinaryIO) -> bool:
    """Whether the first line that is not blank is a JSON object, as far as its first character says."""
    file.seek(0)
    begin = without_mark(file.read(3))
    while begin:
        if begin.strip():
            return begin.lstrip().startswith(b"{")
        begin = file.read(2**16)
    return False


def _content(line: bytes) -> bytes:
    """A line without its end."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _too_long() -> ApiError:
    return ApiError(400, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB", code="row_too_long")
