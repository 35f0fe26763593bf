"""What runs rows: the seam between the file of rows and whatever answers them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from gpt2cli.api.errors import ApiError

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Row:
    """One request. ``body`` is whole: the defaults of the run and a seed are in it.

    ``key`` tells it from all others of its file, by its id and what it asks for; hexadecimal digits.
    """

    id: str
    key: str
    url: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finished:
    """What has come of a row: the answer and its status, as over HTTP."""

    id: str
    key: str
    status: int
    body: Mapping[str, Any]

    @classmethod
    def refused(cls, id: str, key: str, error: ApiError) -> Finished:
        """A row that came to nothing."""
        return cls(id, key, error.status, error.document())

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.status != 200


class Beat(NamedTuple):
    """What happened since the last one: rows that have finished, maybe none, and tokens that were drawn."""

    finished: Sequence[Finished]
    tokens: int


class Engine(Protocol):
    """Something that runs rows, many at once."""

    def run(self, rows: Iterable[Row]) -> Iterator[Beat]:
        """Run them all, in any order, each exactly once; several beats a second, so that a caller can stop.

        ``rows`` is read as there is room, not at once: a caller may compute them. A row that cannot be
        answered is a `Finished` with an error; what is wrong with the engine itself is raised, as a
        `Gpt2cliError`. The caller may close the iterator early, and all that was not yielded is lost.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
