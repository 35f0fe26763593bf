"""Who is next: keys by turns, and the connections of a key by turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Entries of connections, each of a key. Who has many does not keep another waiting.

    The next entry is the first of the connection that has waited longest for its turn, of the key that has
    waited longest for its own. Entries of one connection keep their order.
    """

    def __init__(self) -> None:
        self._keys: OrderedDict[Hashable, OrderedDict[Hashable, deque[T]]] = OrderedDict()
        self._last: tuple[Hashable, Hashable] | None = None
        """Whose turn was the last one: who comes back at once comes after those that are there."""

    def __len__(self) -> int:
        return sum(len(entries) for connections in self._keys.values() for entries in connections.values())

    def __iter__(self) -> Iterator[T]:
        """All entries, in no order."""
        for connections in self._keys.values():
            for entries in connections.values():
                yield from entries

    def push(self, key: Hashable, connection: Hashable, entry: T) -> None:
        """Put an entry behind the others of its connection."""
        self._keys.setdefault(key, OrderedDict()).setdefault(connection, deque()).append(entry)

    def first(self) -> T | None:
        """The next entry, which stays."""
        if not self._keys:
            return None
        _, _, entries = self._turn()
        return entries[0]

    def pop(self) -> T:
        """Take the next entry out. Raises IndexError where there is none."""
        if not self._keys:
            raise IndexError("nothing waits")
        key, connection, entries = self._turn()
        self._last = key, connection
        connections, entry = self._keys[key], entries.popleft()
        connections.move_to_end(connection)
        self._keys.move_to_end(key)
        if not entries:
            del connections[connection]
        if not connections:
            del self._keys[key]
        return entry

    def _turn(self) -> tuple[Hashable, Hashable, deque[T]]:
        """The key and the connection that are next, and the connection's entries."""
        key = next(iter(self._keys))
        if self._last is not None and key == self._last[0] and len(self._keys) > 1:
            self._keys.move_to_end(key)
            key = next(iter(self._keys))
        connections = self._keys[key]
        connection = next(iter(connections))
        if self._last == (key, connection) and len(connections) > 1:
            connections.move_to_end(connection)
            connection = next(iter(connections))
        return key, connection, connections[connection]

    def remove(self, unwanted: Callable[[T], bool]) -> None:
        """Take out all ``unwanted`` entries."""
        for key, connections in list(self._keys.items()):
            for connection, entries in list(connections.items()):
                kept = deque(entry for entry in entries if not unwanted(entry))
                if kept:
                    connections[connection] = kept
                else:
                    del connections[connection]
            if not connections:
                del self._keys[key]
