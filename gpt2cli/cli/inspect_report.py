"""What `inspect` puts out about a text, in each format. Imported when the model is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt2cli.analysis.inspect import (
    Measure,
    Summary,
    Token,
    TokenGroup,
    score_tokens,
    summarise,
    token_groups,
)
from gpt2cli.cli.formats import Output
from gpt2cli.core.engine import Engine
from gpt2cli.likelihood import bits
from gpt2cli.terminal import page, views
from gpt2cli.terminal.canvas import SVG_WIDTH, Canvas, draw_svg
from gpt2cli.terminal.csvout import csv_text
from gpt2cli.terminal.heat import SCALES, Span, heat_lines, legend
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.visible import quoted, token_text

_LISTED = ("", "token", "probability", "rank", "entropy", "likeliest")
_IN_BITS = "entropy, in bits: how uncertain the model was before the token"


@dataclass(frozen=True, slots=True)
class TextReport:
    """A text with what the model thought of each of its tokens."""

    model: Mapping[str, Any]
    engine: Mapping[str, Any]
    tokenizer: Tokenizer
    by: Measure
    top: int
    tokens: list[Token]
    groups: list[TokenGroup]
    summary: Summary

    @classmethod
    def of(
        cls,
        engine: Engine,
        ids: Sequence[int],
        model: Mapping[str, Any],
        *,
        by: Measure,
        top: int,
        stride: int | None,
    ) -> TextReport:
        """Score ``ids``, with the ``top`` likeliest tokens at each place. Raises `Gpt2cliError`."""
        assert engine.tokenizer is not None
        tokens = score_tokens(engine, ids, stride=stride, top=top)
        groups = token_groups(engine.tokenizer, tokens)
        summary = summarise(engine.tokenizer, tokens, engine.config.boundary_ids)
        return cls(model, asdict(engine.info), engine.tokenizer, by, top, tokens, groups, summary)

    def render(self, output: Output, *, marks: bool | None, listed: bool) -> str:
        """The whole report in the format of ``output``; ``listed`` adds the table of tokens."""
        match output.format:
            case "json":
                return json_line({**self._head(), "tokens": [*self._documents()], **self._tail()})
            case "jsonl":
                events = [{"event": "token", **document} for document in self._documents()]
                whole = [{"event": "start", **self._head()}, *events, {"event": "summary", **self._tail()}]
                return "".join(map(json_line, whole))
            case "csv":
                return self._csv()
            case "html":
                return self._page(listed)
            case "svg":
                items = [*self._drawn(SVG_WIDTH, True if marks is None else marks, True)]
                items += self._listing() if listed else []
                title = f"gpt2cli inspect: {self.model['model']}, by {self.by}"
                return draw_svg(items, width=SVG_WIDTH, title=title, theme=output.theme)
        canvas = Canvas(output.terminal, on_screen=output.on_screen)
        items = [*self._drawn(canvas.width, not canvas.colours if marks is None else marks, canvas.colours)]
        items += self._listing() if listed else []
        return canvas.draw(items)

    def summary_line(self) -> str:
        """The figures of the whole text."""
        found = self.summary
        unscored = found.tokens - found.scored
        count = f"{found.tokens} token{'' if found.tokens == 1 else 's'}"
        parts = [f"{count}, {'the first' if unscored == 1 else unscored} not predicted"]
        if found.perplexity is not None:
            parts.append(f"perplexity {found.perplexity:,.2f}")
        if found.bits_per_byte is not None:
            parts.append(f"{found.bits_per_byte:.3f} bits per byte")
        return " · ".join(parts)

    def _drawn(self, width: int, marks: bool, colours: bool) -> Iterator[Any]:
        spans = [Span(group.text, group.level(self.by)) for group in self.groups]
        yield from heat_lines(spans, width, marks=marks)
        yield legend(self.by, colours=colours)

    def _listing(self) -> list[Any]:
        rows = []
        for token in self.tokens:
            shown = views.Shade(self._text(token.token), TokenGroup("", (token,)).level(self.by))
            rows.append((str(token.place), shown, *_figures(token), views.Entries(self._alternatives(token))))
        table = views.Listing(_LISTED, rows, right={0, 2, 3, 4}, folded={1, 5})
        return ["", table, views.remark(_IN_BITS)]

    def _alternatives(self, token: Token) -> list[str]:
        top = token.score.top if token.score else ()
        return [f"{quoted(self._text(id))} {percent(math.exp(logprob))}" for id, logprob in top]

    def _text(self, token: int) -> str:
        return token_text(self.tokenizer, token)

    def _head(self) -> dict[str, Any]:
        return {**self.model, "text": self.tokenizer.decode([token.token for token in self.tokens])}

    def _tail(self) -> dict[str, Any]:
        return {"summary": asdict(self.summary), "engine": self.engine}

    def _documents(self) -> Iterator[dict[str, Any]]:
        for token in self.tokens:
            score = token.score
            document: dict[str, Any] = {
                "place": token.place,
                "token_id": token.token,
                "token": self.tokenizer.decode([token.token]),
                "bytes": self.tokenizer.token_bytes(token.token).hex(),
                "logprob": score.logprob if score else None,
                "rank": score.rank if score else None,
                "entropy": score.entropy if score else None,
            }
            if self.top:
                document["top_logprobs"] = [
                    {"token_id": id, "token": self.tokenizer.decode([id]), "logprob": finite(logprob)}
                    for id, logprob in (score.top if score else ())
                ]
            document["logprob"] = finite(document["logprob"])
            yield document

    def _csv(self) -> str:
        header = ["place", "token_id", "token", "logprob", "probability", "rank", "entropy"]
        for n in range(1, self.top + 1):
            header += [f"top_{n}", f"top_{n}_logprob"]
        rows = []
        for token in self.tokens:
            score = token.score
            row: list[object] = [token.place, token.token, self._text(token.token)]
            if score:
                row += [finite(score.logprob), math.exp(score.logprob), score.rank, score.entropy]
                for id, logprob in score.top:
                    row += [self._text(id), finite(logprob)]
            rows.append(row + [None] * (len(header) - len(row)))
        return csv_text(header, rows)

    def _page(self, listed: bool) -> str:
        spans = [(Span(group.text, group.level(self.by)), self._note(group)) for group in self.groups]
        parts = [
            page.paragraph(f"{self.model['model']} · {self.summary_line()}", "dim"),
            page.legend(*SCALES[self.by]),
            page.heat(spans),
        ]
        if listed:
            rows = [
                (str(t.place), self._text(t.token), *_figures(t), "  ".join(self._alternatives(t)))
                for t in self.tokens
            ]
            parts.append(page.table(_LISTED, rows, right=(0, 2, 3, 4)))
            parts.append(page.paragraph(_IN_BITS, "dim"))
        return page.page(f"gpt2cli inspect: by {self.by}", parts)

    def _note(self, group: TokenGroup) -> str:
        """What a page shows of a group where the pointer rests on it."""
        notes = []
        for token in group.tokens:
            note = f"{quoted(self._text(token.token))}: "
            if token.score is None:
                notes.append(note + "nothing predicts it")
                continue
            probability, rank, entropy = _figures(token)
            notes.append(
                "; ".join(
                    [f"{note}{probability}, rank {rank}, entropy {entropy}", *self._alternatives(token)]
                )
            )
        return " | ".join(notes)


def _figures(token: Token) -> tuple[str, str, str]:
    """Probability, rank, and entropy in bits, of the table's columns of these names."""
    score = token.score
    if score is None:
        return "", "", ""
    return percent(math.exp(score.logprob)), str(score.rank), f"{bits(score.entropy):.2f}"


def percent(probability: float) -> str:
    """A probability for a person, with as many digits as say something."""
    share = 100 * probability
    if share >= 9.995:
        return f"{share:.1f}%"
    if share >= 0.9995:
        return f"{share:.2f}%"
    if share >= 0.00095:
        return f"{share:#.2g}%"
    return f"{share:.0e}%" if share > 0 else "0%"


def finite(logprob: float | None) -> float | None:
    """JSON has no infinity: a token of probability 0 has no log-probability."""
    return None if logprob is None or logprob == float("-inf") else logprob
