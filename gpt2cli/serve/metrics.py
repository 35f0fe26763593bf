"""What was done, as Prometheus reads it: vLLM's names under our prefix."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

PREFIX = "gpt2cli"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
TOKENS = (1, 8, 32, 64, 128, 256, 512, 1024, 4096)


class Histogram:
    """How many values were at most each of the ``bounds``."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts = bounds, [0] * (len(bounds) + 1)
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value
        self._count += 1

    def lines(self, name: str) -> Iterator[str]:
        """Its samples."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {self._count}"


@dataclass
class Metrics:
    """Counters and histograms. The event loop's thread alone writes them."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By path and status."""
    finished: Counter[str] = field(default_factory=Counter)
    """Texts, by the reason why they ended."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    first_token: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(SHORT))
    whole: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    tokens_read: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    tokens_drawn: Histogram = field(default_factory=lambda: Histogram(TOKENS))

    def text(self, gauges: Mapping[str, tuple[float, str]]) -> str:
        """Everything, with the ``gauges`` of this moment: name to value and meaning."""
        return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Mapping[str, tuple[float, str]]) -> Iterator[str]:
        for name, (value, meaning) in gauges.items():
            yield from _head(name, "gauge", meaning)
            yield f"{PREFIX}:{name} {value:g}"
        for name, count, meaning in (
            ("prompt_tokens_total", self.prompt_tokens, "Tokens of prompts."),
            ("generation_tokens_total", self.generation_tokens, "Tokens drawn."),
            ("prefix_cache_queries_total", self.prompt_tokens, "Tokens of prompts that were looked up."),
            ("prefix_cache_hits_total", self.cached_tokens, "Tokens of prompts that were there already."),
        ):
            yield from _head(name, "counter", meaning)
            yield f"{PREFIX}:{name} {count}"
        yield from _head("request_success_total", "counter", "Texts, by the reason why they ended.")
        for reason, count in sorted(self.finished.items()):
            yield f'{PREFIX}:request_success_total{{finished_reason="{reason}"}} {count}'
        yield from _head("http_requests_total", "counter", "Answers, by path and status.")
        for (path, status), count in sorted(self.answers.items()):
            yield f'{PREFIX}:http_requests_total{{path="{path}",status="{status}"}} {count}'
        for name, histogram, meaning in (
            ("time_to_first_token_seconds", self.first_token, "From the request to its first token."),
            ("inter_token_latency_seconds", self.between_tokens, "The mean from token to token of a text."),
            ("e2e_request_latency_seconds", self.whole, "From the request to the end of its answer."),
            ("request_prompt_tokens", self.tokens_read, "Tokens of the prompts of a request."),
            ("request_generation_tokens", self.tokens_drawn, "Tokens drawn for a request."),
        ):
            yield from _head(name, "histogram", meaning)
            yield from histogram.lines(f"{PREFIX}:{name}")


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}:{name} {meaning}"
    yield f"# TYPE {PREFIX}:{name} {kind}"
