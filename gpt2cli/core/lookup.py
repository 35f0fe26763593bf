"""Drafts from the text itself: what followed the last time that it ended as it does now.

Prompt lookup (Saxena 2023, "Prompt Lookup Decoding"), with the longest match first, as in SuffixDecoding
(Oliaro et al. 2024, arXiv 2411.04975). It costs microseconds, and pays where a text repeats: code, JSON, a
letter that is edited, quotations, a greedy text that goes round in circles.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

MIN_MATCH = 2
"""Tokens that must agree before anything is proposed."""
MAX_MATCH = 32
"""Longer matches are not told apart."""
CANDIDATES = 8
"""Earlier places, the latest first, that are compared."""
FOLLOWED = 8
"""A match of so many tokens is gone on with, and no better one is looked for."""

LENGTHS = (3, 4, 6, 9, 13, 21, 32)
"""Matches are told apart by these lengths: 2, 3, 4-5, 6-8, …, 32 and more."""
FIRST_ODDS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)
"""How often the next token is the one that followed, by the length of the match, before it was seen."""
NEWS = 0.15
"""The weight of the latest token in what is known of the odds."""


class Lookup:
    """The index of one text, which may only grow.

    What follows the longest match is compared with each token that really comes, whether it was proposed or
    not. So the odds of a proposal are known for nothing, and a text that does not repeat costs no pass.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], list[int]] = {}
        self._indexed = 0
        self._next: int | None = None
        """The place of what should follow the text."""
        self._match = 0
        self._odds = [*FIRST_ODDS]

    def update(self, ids: Sequence[int], prompt: int) -> None:
        """Take in what has come since the last call; the first ``prompt`` ids say nothing of the odds."""
        while self._indexed < len(ids):
            place = self._indexed
            self._indexed += 1
            if place >= prompt:
                self._follow(ids, place)
            if place == 0:
                continue
            places = self._places.setdefault((ids[place - 1], ids[place]), [])
            if self._indexed == len(ids) and (self._next is None or self._match < FOLLOWED):
                self._search(ids, places)
            places.append(place + 1)

    def propose(self, ids: Sequence[int], limit: int, least: float) -> tuple[list[int], list[float]]:
        """Up to ``limit`` tokens that may follow ``ids``, each with the chance that it is right, and so all
        before it; those below ``least`` are left out.

        At the end of the text it reads on in what it proposes, so that a period can go on.
        """
        drafts: list[int] = []
        odds: list[float] = []
        if self._next is None:
            return drafts, odds
        chance = 1.0
        for n in range(limit):
            chance *= self._odds[bisect_right(LENGTHS, self._match + n)]
            if chance < least:
                break
            place = self._next + n
            drafts.append(ids[place] if place < len(ids) else drafts[place - len(ids)])
            odds.append(chance)
        return drafts, odds

    def _follow(self, ids: Sequence[int], place: int) -> None:
        """Compare the token at ``place`` with what should have come there."""
        if self._next is None:
            return
        right = ids[self._next] == ids[place]
        length = bisect_right(LENGTHS, self._match)
        self._odds[length] += NEWS * (right - self._odds[length])
        if right:
            self._next, self._match = self._next + 1, self._match + 1
        else:
            self._next = None

    def _search(self, ids: Sequence[int], places: list[int]) -> None:
        """Find the longest match of the end of ``ids`` that ends before one of ``places``."""
        longest = self._match if self._next is not None else 0
        end = len(ids)
        for place in places[: -CANDIDATES - 1 : -1]:
            match = MIN_MATCH
            while match < MAX_MATCH and match < place and ids[place - match - 1] == ids[end - match - 1]:
                match += 1
            if match > longest:
                longest, self._next = match, place
        self._match = longest
