"""What `inspect --explain` puts out about one step, in each format. Imported when the model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt2cli.analysis.explain import Candidate, Explanation, FilterEffect, explain
from gpt2cli.cli.formats import Output
from gpt2cli.cli.inspect_report import percent
from gpt2cli.core.engine import Engine
from gpt2cli.likelihood import bits
from gpt2cli.options import GenerateOptions
from gpt2cli.terminal import page, views
from gpt2cli.terminal.canvas import SVG_WIDTH, Canvas, draw_svg
from gpt2cli.terminal.csvout import csv_text
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.visible import quoted, token_text

SHOWN_CONTEXT = 40
"""Characters of the text before the step that a heading has."""
BAR = 12
MOVED = "moved: the probability that went from some tokens to others"

_OPTIONS = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "no_repeat_ngram_size"),
)
_EFFECTS = ("option", "value", "removed", "left", "moved", "entropy (bits)")
_CANDIDATES = ("token", "rank", "model", "drawn with", "")


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of drawing."""

    model: Mapping[str, Any]
    engine: Mapping[str, Any]
    tokenizer: Tokenizer
    before: str
    sampling: GenerateOptions
    step: Explanation

    @classmethod
    def of(
        cls,
        engine: Engine,
        ids: Sequence[int],
        before: int,
        sampling: GenerateOptions,
        model: Mapping[str, Any],
        *,
        top: int,
    ) -> StepReport:
        """Explain the step after the first ``before`` of ``ids``. Raises `Gpt2cliError`."""
        assert engine.tokenizer is not None
        step = explain(
            engine.backend,
            ids[:before],
            sampling,
            actual=ids[before] if before < len(ids) else None,
            seed=sampling.seed,
            top=top,
        )
        text = engine.tokenizer.decode(ids[:before])
        return cls(model, asdict(engine.info), engine.tokenizer, text, sampling, step)

    def render(self, output: Output) -> str:
        """The whole report in the format of ``output``."""
        match output.format:
            case "json":
                return json_line(self._document())
            case "jsonl":
                return "".join(map(json_line, self._events()))
            case "csv":
                return self._csv()
            case "html":
                return self._page()
            case "svg":
                title = f"gpt2cli inspect --explain: {self.model['model']}"
                return draw_svg(self._drawn(), width=SVG_WIDTH, title=title, theme=output.theme)
        return Canvas(output.terminal, on_screen=output.on_screen).draw(self._drawn())

    def _title(self) -> str:
        end = self.before[-SHOWN_CONTEXT:]
        dots = "…" if len(self.before) > len(end) else ""
        return f"The token after {quoted(dots + end)}"

    def _remarks(self) -> Iterator[str]:
        step = self.step
        yield (
            f"{step.vocabulary} tokens, {bits(step.entropy):.2f} bits of uncertainty by the model alone; "
            f"{step.left} can be drawn"
        )
        if step.drawn is not None:
            by = "greedy decoding takes" if step.noise is None else f"seed {self.sampling.seed} draws"
            why = "" if step.noise is None else f": its score and its noise of {step.noise:+.3f} sum highest"
            yield f"{by} {self._name(step.drawn)}{why}"
        if step.actual is not None:
            gone = step.actual.removed_by
            fate = (
                f"; {_flag(gone)} removed it" if gone else f", {percent(step.actual.after)} after all options"
            )
            yield f"in the text stands {self._name(step.actual)}: {percent(step.actual.before)}{fate}"

    def _drawn(self) -> Iterator[Any]:
        yield views.heading(self._title())
        for line in self._remarks():
            yield views.remark(line)
        if self.step.effects:
            yield ""
            yield views.Listing(_EFFECTS, self._effect_rows(), right={1, 2, 3, 4, 5})
            yield views.remark(MOVED)
        else:
            yield views.remark("no sampling option is active: tokens are drawn as the model has them")
        yield ""
        yield views.Listing(_CANDIDATES, self._candidate_rows(), right={1, 2, 3}, folded={0, 4})

    def _effect_rows(self) -> Iterator[tuple[str, ...]]:
        for effect in self.step.effects:
            yield (
                _flag(effect.option),
                f"{effect.value:g}",
                str(effect.removed),
                str(effect.left),
                percent(effect.moved),
                f"{bits(effect.entropy):.2f}",
            )

    def _candidate_rows(self) -> Iterator[tuple[str, ...]]:
        likeliest = max((c.after for c in self.step.candidates), default=0.0)
        for candidate in self.step.candidates:
            bar = "█" * round(BAR * candidate.after / likeliest) if likeliest else ""
            yield (
                self._name(candidate),
                str(candidate.rank),
                percent(candidate.before),
                "-" if candidate.removed_by else percent(candidate.after),
                f"removed by {_flag(candidate.removed_by)}" if candidate.removed_by else bar,
            )

    def _name(self, candidate: Candidate) -> str:
        return quoted(token_text(self.tokenizer, candidate.token))

    def _head(self) -> dict[str, Any]:
        return {
            **self.model,
            "text": self.before,
            "position": self.step.position,
            "options": {name: getattr(self.sampling, name) for name in _OPTIONS},
            "vocabulary": self.step.vocabulary,
            "entropy": self.step.entropy,
        }

    def _result(self) -> dict[str, Any]:
        step = self.step
        drawn = None if step.drawn is None else {**self._entry(step.drawn), "noise": step.noise}
        return {
            "left": step.left,
            "actual": None if step.actual is None else self._entry(step.actual),
            "drawn": drawn,
            "seed": self.sampling.seed,
            "engine": self.engine,
        }

    def _document(self) -> dict[str, Any]:
        effects = [_effect(effect) for effect in self.step.effects]
        candidates = [self._entry(candidate) for candidate in self.step.candidates]
        return {**self._head(), "effects": effects, "candidates": candidates, **self._result()}

    def _events(self) -> Iterator[dict[str, Any]]:
        yield {"event": "start", **self._head()}
        for effect in self.step.effects:
            yield {"event": "effect", **_effect(effect)}
        for candidate in self.step.candidates:
            yield {"event": "candidate", **self._entry(candidate)}
        yield {"event": "summary", **self._result()}

    def _entry(self, candidate: Candidate) -> dict[str, Any]:
        return {
            "token_id": candidate.token,
            "token": self.tokenizer.decode([candidate.token]),
            "rank": candidate.rank,
            "probability": candidate.before,
            "probability_after": candidate.after,
            "removed_by": candidate.removed_by,
        }

    def _csv(self) -> str:
        header = ("token_id", "token", "rank", "probability", "probability_after", "removed_by")
        rows = [
            (c.token, token_text(self.tokenizer, c.token), c.rank, c.before, c.after, c.removed_by)
            for c in self.step.candidates
        ]
        return csv_text(header, rows)

    def _page(self) -> str:
        parts = [page.paragraph(str(self.model["model"]), "dim"), page.section(self._title())]
        parts += [page.paragraph(line, "dim") for line in self._remarks()]
        if self.step.effects:
            parts.append(page.table(_EFFECTS, [*self._effect_rows()], right=(1, 2, 3, 4, 5)))
            parts.append(page.paragraph(MOVED, "dim"))
        parts.append(page.section("The likeliest tokens"))
        parts.append(page.table(_CANDIDATES, [*self._candidate_rows()], right=(1, 2, 3)))
        return page.page("gpt2cli inspect --explain", parts)


def _effect(effect: FilterEffect) -> dict[str, Any]:
    return asdict(effect)


def _flag(option: str | None) -> str:
    return (option or "").replace("_", "-")
