"""What `compare` finds out, and its JSON. Imported when the models are loaded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gpt2cli.analysis.compare import (
    Divergence,
    Opinion,
    Run,
    WordTable,
    divergence,
    given_words,
    likeliest_words,
    opinion,
    run_grid,
)
from gpt2cli.cli.compare_request import CompareRequest, Variation
from gpt2cli.core.engine import Engine
from gpt2cli.options import SamplingOptions
from gpt2cli.remote.asking import SentOptions
from gpt2cli.terminal.jsonout import json_line

if TYPE_CHECKING:
    from gpt2cli.cli.compare_remotely import RemoteWriter

LIMITS = (
    "What this shows: how these models continue exactly these prompts. The probabilities are the model's "
    "own, before any sampling option, and come out the same every time; the texts repeat with their seeds. "
    "What it cannot show: why a model does so; how it would do with other wordings, names or languages; "
    "from a few seeds, whether texts differ by more than chance; or that a model is fair where it shows no "
    "difference. A difference here is a reason to look further, not a measure of bias."
)
"""What --vary says of itself."""


AXES = ("model", "prompt", "setting", "seed_index")


@dataclass(frozen=True, slots=True)
class Entry:
    """One run with what it is held against, and what the other models think of it."""

    run: Run
    reference: int | None
    """The number of the run that it is held against."""
    parts: Divergence | None
    opinions: dict[int, Opinion]
    """What each model thinks of it, without the one that wrote it."""


@dataclass(frozen=True, slots=True)
class Words:
    """The next words of some prompts, by one model."""

    model: int
    prompts: tuple[int, ...]
    labels: tuple[str, ...]
    template: str | None
    table: WordTable


class Comparison:
    """All runs of a request. They are made when they are asked for, once."""

    def __init__(self, request: CompareRequest, engines: Sequence[Engine | RemoteWriter]) -> None:
        self.request, self.engines = request, engines
        self.names = [found.name for found in request.models]
        self.labels = short_names(self.names)
        self.axis = _axis(request)
        self.entries: list[Entry] = []
        self.words: list[Words] = []

    def events(self) -> Iterator[str]:
        """JSON lines: ``start``, a ``run`` for each text as it is made, ``words``, ``summary``."""
        yield json_line({"event": "start", **self._head()})
        for entry in self._run():
            yield json_line({"event": "run", **self._run_document(entry)})
        for words in self._find_words():
            yield json_line({"event": "words", **self._words_document(words)})
        yield json_line({"event": "summary", **self._tail()})

    def finish(self) -> None:
        """Make all runs, and find the next words."""
        for _ in itertools.chain(self._run(), self._find_words()):
            pass
        self.request.terminal.live("")

    def document(self) -> dict[str, Any]:
        """The whole report, finished, as one document."""
        return {
            **self._head(),
            "runs": [self._run_document(entry) for entry in self.entries],
            "words": [self._words_document(words) for words in self.words],
            **self._tail(),
        }

    def summary_line(self) -> str:
        """How much was run, and with which seeds."""
        number = len(self.entries)
        seeds = list(dict.fromkeys(e.run.seed for e in self.entries if e.run.seed is not None))
        parts = [f"{number} text{'' if number == 1 else 's'}"]
        if seeds:
            shown = ", ".join(map(str, seeds[:8])) + (" …" if len(seeds) > 8 else "")
            parts.append(f"seed{'' if len(seeds) == 1 else 's'} {shown}")
        return " · ".join(parts)

    def setting_label(self, run: Run) -> str:
        """The values of the options that differ between settings."""
        return " · ".join(
            f"{name.replace('_', '-')} {getattr(run.options, name):g}" for name in self.request.varied
        )

    def variation_of(self, prompt: int) -> tuple[Variation, str] | None:
        """The template that a prompt comes from, and what is varied in it."""
        for variation in self.request.variations:
            if prompt in variation.prompts:
                return variation, variation.labels[prompt - variation.prompts[0]]
        return None

    def place(self, run: Run) -> tuple[int, ...]:
        """Runs of the same place differ only along ``axis``: each is held against the first of them."""
        place = [getattr(run, name) for name in AXES if name != self.axis]
        if self.axis == "prompt":
            variation = self.variation_of(run.prompt)
            place.append(-1 - run.prompt if variation is None else variation[0].prompts[0])
        return tuple(place)

    def _run(self) -> Iterator[Entry]:
        request = self.request
        firsts: dict[tuple[int, ...], int] = {}
        made = run_grid(self.engines, request.prompts, request.settings, request.seeds)
        for number, run in enumerate(made):
            first = firsts.setdefault(self.place(run), number)
            reference = None if first == number else first
            parts = None if reference is None else divergence(self.engines, run, self.entries[first].run)
            others = [model for model in range(len(self.engines)) if model != run.model]
            opinions = {
                model: opinion(self.engines, request.prompts[run.prompt], run, model) for model in others
            }
            entry = Entry(run, reference, parts, opinions)
            self.entries.append(entry)
            if request.output.format != "jsonl":
                request.terminal.live(f"{len(self.entries)} texts")
            yield entry

    def _find_words(self) -> Iterator[Words]:
        request = self.request
        if not (request.next_words or request.given_words):
            return
        groups: list[tuple[tuple[int, ...], tuple[str, ...], str | None]] = [
            (variation.prompts, variation.labels, variation.template) for variation in request.variations
        ]
        own = tuple(n for n in range(len(request.prompts)) if self.variation_of(n) is None)
        if own:
            groups.append((own, tuple(request.prompts[n] for n in own), None))
        special = bool(request.settings[0].get("special_tokens"))
        for model, engine in enumerate(self.engines):
            if not isinstance(engine, Engine):
                continue
            for places, labels, template in groups:
                prompts = [request.prompts[place] for place in places]
                if request.given_words:
                    table = given_words(engine, prompts, request.given_words, special_tokens=special)
                else:
                    table = likeliest_words(engine, prompts, request.next_words, special_tokens=special)
                words = Words(model, places, labels, template, table)
                self.words.append(words)
                yield words

    def _head(self) -> dict[str, Any]:
        request = self.request
        return {
            "models": [found.head() for found in request.models],
            "prompts": list(request.prompts),
            "templates": [
                {"template": v.template, "prompts": list(v.prompts), "labels": list(v.labels)}
                for v in request.variations
            ],
            "seeds": list(request.seeds),
        }

    def _tail(self) -> dict[str, Any]:
        note = {"note": LIMITS} if self.request.variations else {}
        engines = [
            asdict(engine.info) if isinstance(engine, Engine) else engine.document()
            for engine in self.engines
        ]
        return {**note, "runs_made": len(self.entries), "engines": engines}

    def _run_document(self, entry: Entry) -> dict[str, Any]:
        run, parts = entry.run, entry.parts
        options = {name: option_of(run, name) for name in SamplingOptions.__dataclass_fields__}
        return {
            "model": self.names[run.model],
            "prompt": run.prompt,
            "seed": run.seed,
            "options": {**options, "max_new_tokens": run.options.max_new_tokens},
            "text": run.choice.text,
            "token_ids": run.choice.token_ids,
            "finish_reason": run.choice.finish_reason,
            **_opinion(run.own),
            "others": [{"model": self.names[m], **_opinion(o)} for m, o in entry.opinions.items()],
            "reference": entry.reference,
            "parts": None if parts is None else asdict(parts),
        }

    def _words_document(self, words: Words) -> dict[str, Any]:
        return {
            "model": self.names[words.model],
            "template": words.template,
            "prompts": list(words.prompts),
            "words": [
                {"word": word, "probabilities": list(row)}
                for word, row in zip(words.table.words, words.table.probabilities, strict=True)
            ],
            "finished": words.table.finished,
        }


def option_of(run: Run, name: str) -> Any:
    """An option of a run; None where it was left to a server."""
    sent = run.options.given if isinstance(run.options, SentOptions) else None
    return getattr(run.options, name) if sent is None or name in sent else None


def _axis(request: CompareRequest) -> str:
    """What runs beside each other differ in: the first of these that there are several of."""
    if len(request.models) > 1:
        return "model"
    if request.variations:
        return "prompt"
    return "setting" if len(request.settings) > 1 else "seed_index"


def short_names(names: Sequence[str]) -> list[str]:
    """Names for headings: of a long path its end, where that tells them apart."""
    short = [
        name if name.count("/") < 2 else "…/" + "/".join(name.rstrip("/").split("/")[-2:]) for name in names
    ]
    return short if len(set(short)) == len(names) else list(names)


def _opinion(opinion: Opinion) -> dict[str, Any]:
    logprob = None if opinion.logprob == float("-inf") else opinion.logprob
    return {
        "logprob": logprob,
        "tokens": opinion.tokens,
        "bytes": opinion.bytes,
        "bits_per_byte": None if logprob is None else opinion.bits_per_byte,
        "same_tokens": opinion.same_tokens,
        "refused": opinion.refused,
    }
