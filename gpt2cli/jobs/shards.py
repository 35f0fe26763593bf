"""Parts of one job, for machines that know nothing of each other."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpt2cli.errors import UsageError
from gpt2cli.options import shown

MAX_SHARDS = 100_000


@dataclass(frozen=True, slots=True)
class Shard:
    """The part ``number`` of ``of``; the first is 1. Row *i*, from 0, belongs to the part i % of + 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str | None) -> Shard | None:
        """``I/N``. Raises `UsageError`."""
        if text is None:
            return None
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, of = (int(part) for part in found.groups()) if found else (0, 0)
        if not 1 <= number <= of <= MAX_SHARDS:
            raise UsageError(
                f"--shard: {shown(text)} is not I/N",
                hint="--shard 1/3, --shard 2/3 and --shard 3/3 are the parts of one job",
            )
        return cls(number, of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index % self.of == self.number - 1
