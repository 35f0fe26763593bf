"""Which text is trained on and which is held back: decided by content, so that nothing leaks.

Where there are documents enough, whole documents are held back, chosen by the hash of their text: a
document that comes twice is twice on the same side. Where there are few, the end of each is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpt2cli.errors import UsageError
from gpt2cli.train.documents import DocumentPiece, Survey

MIN_DOCUMENTS = 20
"""The fewest different documents that are divided whole; with fewer, the ends of documents are held back."""


@dataclass(frozen=True, slots=True)
class Split:
    """How pieces are divided.

    ``held_back`` are the keys of the documents for validation; None: the last ``share`` of every document
    is. ``excluded`` documents are on neither side, because they are in validation or test data given
    apart.
    """

    share: float
    held_back: frozenset[bytes] | None
    excluded: frozenset[bytes] = frozenset()

    @property
    def by_document(self) -> bool:
        """Whether whole documents are held back."""
        return self.held_back is not None


def make_split(found: Survey, share: float, excluded: frozenset[bytes] = frozenset()) -> Split:
    """Hold back ``share`` of the bytes. A share of 0 holds back nothing."""
    if not share:
        return Split(0.0, frozenset(), excluded)
    size_of: dict[bytes, int] = {}
    for key, size in zip(found.keys, found.sizes, strict=True):
        if key not in excluded:
            size_of[key] = size_of.get(key, 0) + size
    if len(size_of) < MIN_DOCUMENTS:
        return Split(share, None, excluded)
    wanted, taken, held_back = share * sum(size_of.values()), 0, set()
    # Keys are hashes: their order is a shuffle that depends on nothing but the texts.
    for key in sorted(size_of):
        if taken >= wanted:
            break
        if taken + size_of[key] <= 2 * wanted:
            held_back.add(key)
            taken += size_of[key]
    # One giant document among small ones: they alone would be too little.
    return Split(share, frozenset(held_back) if taken >= wanted / 2 else None, excluded)


def divide(
    pieces: Iterator[DocumentPiece], found: Survey, split: Split
) -> Iterator[tuple[DocumentPiece, bool]]:
    """Each piece, and whether it is held back. ``pieces`` are read in the order of ``found``.

    Raises `UsageError` when there are more documents than were found.
    """
    number, offset, held, skipped = -1, 0, False, False
    seen: set[bytes] = set()
    for piece in pieces:
        if piece.starts:
            number, offset = number + 1, 0
            if number >= len(found.keys):
                raise UsageError("the data has changed while it was read")
            key = found.keys[number]
            # A copy of a text whose end is held back would bring that end back in.
            skipped = key in split.excluded or (split.held_back is None and key in seen)
            seen.add(key)
            held = split.held_back is not None and key in split.held_back
        if skipped:
            continue
        if split.held_back is not None:
            yield piece, held
            continue
        for part, is_end in _divide_end(piece, offset, found.sizes[number], split.share):
            # What is held back of a document is a document of its own.
            yield (DocumentPiece(part.text, not held), True) if is_end else (part, False)
            held = held or is_end
        offset += len(piece.text.encode())


def _divide_end(
    piece: DocumentPiece, offset: int, size: int, share: float
) -> Iterator[tuple[DocumentPiece, bool]]:
    """``piece``, which begins at byte ``offset`` of a document of ``size`` bytes, divided near a line end."""
    data = piece.text.encode()
    wanted = round(share * size)
    here = size - wanted - offset
    if here >= len(data):
        yield piece, False
    elif here <= 0:
        yield piece, True
    else:
        # Not so far back that more than twice the share is held back.
        low = max(0, here - wanted)
        at = data.rfind(b"\n", low, here) + 1 or data.rfind(b" ", low, here) + 1 or _character(data, here)
        head, tail = data[:at].decode(), data[at:].decode()
        if head.strip():
            yield DocumentPiece(head.rstrip("\n"), piece.starts), False
        if tail.strip():
            yield DocumentPiece(tail.strip("\n"), False), True


def _character(data: bytes, at: int) -> int:
    """Where the UTF-8 character begins that byte ``at`` belongs to."""
    while data[at] & 0xC0 == 0x80:
        at -= 1
    return at
