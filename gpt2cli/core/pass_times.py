"""How long a pass takes, by the number of its tokens: what decides whether drafts pay."""

from __future__ import annotations


class PassTimes:
    """Seconds of a pass by the number of its tokens, as measured lately.

    A number that was not measured lately is judged by its neighbours, and so is tried again from time to
    time.
    """

    NEWS, LATELY, SLOPE = 0.25, 256, 0.12
    """The weight of the latest pass; passes after which one counts no more; what a further token adds
    to a pass of one, before that was measured."""

    def __init__(self) -> None:
        self._seconds: dict[int, tuple[float, int]] = {}
        self._passes = 0

    def record(self, tokens: int, seconds: float) -> None:
        """A pass took so long."""
        # One that was interrupted says little.
        if self.known(tokens):
            old = self._seconds[tokens][0]
            seconds = old + self.NEWS * (min(seconds, 1.5 * old) - old)
        elif any(map(self.known, self._seconds)):
            seconds = min(seconds, 2 * self.of(tokens))
        self._passes += 1
        self._seconds[tokens] = seconds, self._passes

    def known(self, tokens: int) -> bool:
        """Whether a pass over so many tokens was measured lately."""
        return tokens in self._seconds and self._passes - self._seconds[tokens][1] < self.LATELY

    def of(self, tokens: int) -> float:
        """Seconds of a pass over so many tokens; in any unit as long as nothing was measured."""
        if self.known(tokens):
            return self._seconds[tokens][0]
        lower = max((n for n in self._seconds if n < tokens and self.known(n)), default=None)
        upper = min((n for n in self._seconds if n > tokens and self.known(n)), default=None)
        if lower is None:
            first = 1.0 if upper is None else self._seconds[upper][0] / (1 + self.SLOPE * (upper - 1))
            return first * (1 + self.SLOPE * (tokens - 1))
        low = self._seconds[lower][0]
        if upper is None:
            return low * (1 + self.SLOPE * (tokens - 1)) / (1 + self.SLOPE * (lower - 1))
        share = (tokens - lower) / (upper - lower)
        return low + share * (self._seconds[upper][0] - low)
