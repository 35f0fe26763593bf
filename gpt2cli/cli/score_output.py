"""How scores are shown: lines for a person, tab-separated lines for a pipe, JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.table import tab_separated
from gpt2cli.text.sanitize import one_line, sanitize
from gpt2cli.text.visible import quoted

if TYPE_CHECKING:
    from gpt2cli.analysis.logprobs import TokenScore
    from gpt2cli.analysis.totals import Totals
    from gpt2cli.text.tokenizer import Tokenizer

TOKEN_HEADER = "    token    logprob  probability    rank  entropy  text"
TEXT_HEADER = "   line  tokens          nll     mean nll   perplexity  text"


def finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None


def token_document(place: int, score: TokenScore, text_of: Callable[[int], str]) -> dict[str, Any]:
    """One token, ``place`` in its text."""
    document: dict[str, Any] = {
        "place": place,
        "token_id": score.token,
        "token": text_of(score.token),
        "logprob": finite(score.logprob),
        "probability": math.exp(score.logprob),
        "rank": score.rank,
        "entropy": score.entropy,
    }
    if score.top:
        document["top"] = [
            {"token_id": token, "token": text_of(token), "logprob": finite(logprob)}
            for token, logprob in score.top
        ]
    return document


def token_line(document: Mapping[str, Any], *, aligned: bool) -> str:
    """A token's line."""
    d, shown = document, quoted if aligned else written_token
    others = [
        cell
        for other in d.get("top", ())
        for cell in (shown(other["token"]), f"{math.exp(other['logprob'] or 0.0):.4f}")
    ]
    logprob = -math.inf if d["logprob"] is None else d["logprob"]
    if not aligned:
        cells = [str(d["token_id"]), f"{logprob:.6f}", f"{d['probability']:.6g}", str(d["rank"])]
        return tab_separated([[*cells, f"{d['entropy']:.6f}", shown(d["token"]), *others]])
    numbers = (
        f"{d['token_id']:>9} {logprob:>10.4f} {d['probability']:>12.6f} {d['rank']:>7} {d['entropy']:>8.4f}"
    )
    return f"{numbers}  {shown(d['token']):<16} {' '.join(others)}".rstrip() + "\n"


def written_token(text: str) -> str:
    """A token for another program: as Python writes it, line ends as escapes."""
    return sanitize(repr(text))


def text_document(record: Any, totals: Totals, *, with_text: bool) -> dict[str, Any]:
    """One text of many, or the only one."""
    head: dict[str, Any] = {"index": record.index}
    if record.id is not None:
        head["id"] = record.id
    if with_text:
        head["text"] = record.text
    return {**head, **totals.document()}


def text_line(record: Any, totals: Totals, *, aligned: bool, width: int) -> str:
    """One text of many: where it stands, tokens, nll, mean nll, perplexity, the text."""
    name = str(record.id) if record.id is not None else str(record.index + 1)
    numbers = [totals.nll if totals.tokens else None, totals.mean_nll, totals.perplexity]
    if not aligned:
        cells = ["" if number is None else f"{number:.6f}" for number in numbers]
        return tab_separated([[name, str(totals.tokens), *cells, record.text]])
    cells = [f"{'-' if n is None else f'{n:.4f}':>12}" for n in numbers]
    line = f"{one_line(name):>7} {totals.tokens:>7} {' '.join(cells)}  {one_line(record.text)}"
    return line[: max(60, width - 1)] + "\n"


def totals_lines(totals: Totals, windows: Mapping[str, int] | None) -> Iterable[str]:
    """The figures of one text, for a person or a pipe."""
    whole = totals.tokens + totals.unscored
    yield _figure("tokens scored", f"{totals.tokens}", f"of {whole}" if totals.unscored else "")
    yield _figure("nll", f"{totals.nll:.4f}", "nats")
    for name, value, note in (
        ("nll per token", totals.mean_nll, "nats"),
        ("perplexity", totals.perplexity, "per token"),
        ("perplexity per word", totals.perplexity_per_word, f"{totals.words} words"),
        ("bits per byte", totals.bits_per_byte, f"{totals.bytes} bytes"),
    ):
        if value is not None:
            yield _figure(name, f"{value:.4f}", note)
    if windows is not None:
        yield _figure("windows", f"{totals.windows}", f"of {windows['window']}, stride {windows['stride']}")
        if totals.guide_perplexity is not None:
            yield _figure(
                "guide's perplexity", f"{totals.guide_perplexity:.4f}", "as the Hugging Face guide sums"
            )


def _figure(name: str, value: str, note: str) -> str:
    return f"{name:<20} {value:>14}" + (f"  {note}" if note else "") + "\n"


def text_of(tokenizer: Tokenizer | None) -> Callable[[int], str]:
    """A function from a token to its text."""
    if tokenizer is None:
        return lambda token: ""
    decode = tokenizer.decode
    return lambda token: decode([token])


def write_document(write: Callable[[str], None], document: Mapping[str, Any]) -> None:
    """The one document of ``--json``."""
    write(json_line(document))
