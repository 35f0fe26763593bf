"""Texts longer than the context, cut into overlapping windows as in the Hugging Face perplexity guide.

A window of ``size`` tokens moves on by ``stride``; of each, only the tokens that no window before it
held are scored. The first token of a text is never scored: nothing stands before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2cli.options import check_whole


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """``size`` tokens a window, ``stride`` from one to the next. Raises `InvalidOption`.

    The last token of a window is only predicted, so that ``size`` may be the model's context and one more.
    """

    size: int
    stride: int

    @classmethod
    def of(cls, context: int, size: int | None = None, stride: int | None = None) -> WindowOptions:
        """The options for a model's ``context``: as in the guide, windows of it and strides of half."""
        if size is None:
            size = context
        check_whole("window", size, 2, context + 1, f"2 to {context + 1} (the model's context and one)")
        if stride is None:
            stride = size // 2
        check_whole("stride", stride, 1, size, f"1 to {size} (the window)")
        return cls(size, stride)


@dataclass(frozen=True, slots=True)
class Window:
    """A window of one text. ``tag`` is whatever the caller knows the text by."""

    tag: Any
    begin: int
    """The place of its first token in the text."""
    ids: Sequence[int]
    first: int
    """The first token that is scored, at least 1."""
    fresh: int
    """The tokens that no earlier window held: ``trg_len`` of the guide."""
    last: bool
    """Whether the text ends with it."""

    @property
    def scored(self) -> int:
        """How many tokens are scored: all fresh ones but the first of a window."""
        return max(0, len(self.ids) - self.first)


def windows(
    tag: Any, chunks: Iterable[Sequence[int]], options: WindowOptions, *, begin: int = 0, held: int = 0
) -> Iterator[Window]:
    """The windows of a text whose ids come in ``chunks``; no more than a window and a chunk is kept.

    To go on where another run stopped, ``begin`` is the place of the next window and of the first id of
    ``chunks``, ``held`` the tokens that the windows before it held. There is always a last window, be it
    empty.
    """
    source = iter(chunks)
    buffer: list[int] = []
    while True:
        while len(buffer) <= options.size and (more := next(source, None)) is not None:
            buffer.extend(more)
        ids = buffer[: options.size]
        last = len(buffer) <= options.size
        end = begin + len(ids)
        yield Window(tag, begin, ids, max(held - begin, 1), end - held, last)
        if last:
            return
        held, begin = end, begin + options.stride
        del buffer[: options.stride]


def from_token(chunks: Iterable[Sequence[int]], skip: int) -> Iterator[Sequence[int]]:
    """``chunks`` without their first ``skip`` ids."""
    for chunk in chunks:
        if skip >= len(chunk):
            skip -= len(chunk)
            continue
        yield chunk[skip:] if skip else chunk
        skip = 0
