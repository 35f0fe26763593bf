"""What `compare` puts out, in each format: for a terminal, as an SVG, as a page, as CSV, as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpt2cli.analysis.compare import Divergence, Opinion
from gpt2cli.cli.compare_report import LIMITS, Comparison, Entry, Words, option_of
from gpt2cli.cli.inspect_report import percent
from gpt2cli.options import SamplingOptions
from gpt2cli.terminal import page, views
from gpt2cli.terminal.canvas import SVG_WIDTH, Canvas, draw_svg
from gpt2cli.terminal.csvout import csv_text
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.text.visible import visible

SHOWN_PROMPT = 200


@dataclass(frozen=True, slots=True)
class Block:
    """Texts that belong beside each other: they differ in one thing only."""

    title: str
    columns: tuple[views.Column, ...]


def blocks_of(comparison: Comparison) -> list[Block]:
    """The runs, those beside each other that are held against the same one."""
    groups: dict[tuple[int, ...], list[Entry]] = {}
    for entry in comparison.entries:
        groups.setdefault(comparison.place(entry.run), []).append(entry)
    return [
        Block(_title(comparison, entries[0]), tuple(_column(comparison, entry) for entry in entries))
        for entries in groups.values()
    ]


def _title(comparison: Comparison, entry: Entry) -> str:
    run, axis = entry.run, comparison.axis
    variation = comparison.variation_of(run.prompt)
    by_template = axis == "prompt" and variation is not None
    prompt = variation[0].template if by_template and variation else comparison.request.prompts[run.prompt]
    parts = [prompt if len(prompt) <= SHOWN_PROMPT else f"…{prompt[-SHOWN_PROMPT:]}"]
    if axis != "setting" and comparison.request.varied:
        parts.append(comparison.setting_label(run))
    if axis != "seed_index" and not (run.seed is None and "temperature" in comparison.request.varied):
        parts.append("greedy" if run.seed is None else f"seed {run.seed}")
    return " · ".join(parts)


def _column(comparison: Comparison, entry: Entry) -> views.Column:
    run = entry.run
    variation = comparison.variation_of(run.prompt)
    titles = {
        "model": comparison.labels[run.model],
        "prompt": variation[1] if variation else comparison.request.prompts[run.prompt],
        "setting": comparison.setting_label(run),
        "seed_index": "greedy" if run.seed is None else f"seed {run.seed}",
    }
    remarks = [f"{_figures(run.own)} · {run.choice.finish_reason}"]
    for model, opinion in entry.opinions.items():
        remarks.append(f"under {comparison.labels[model]}: {_figures(opinion)}")
    if entry.parts is not None:
        remarks.append(_parting(entry.parts))
    shared = None if entry.parts is None else entry.parts.characters
    return views.Column(titles[comparison.axis], run.choice.text, shared, tuple(remarks))


def _figures(opinion: Opinion) -> str:
    """What a model thinks of a text."""
    if opinion.refused:
        return f"no opinion: {opinion.refused}"
    assert opinion.logprob is not None
    parts = [] if opinion.bits_per_byte is None else [f"{opinion.bits_per_byte:.2f} bits per byte"]
    if opinion.same_tokens:
        parts.append(f"log-probability {opinion.logprob:.2f}")
    parts.append(f"{opinion.tokens} tokens{'' if opinion.same_tokens else ' of its own'}")
    return " · ".join(parts)


def _parting(parts: Divergence) -> str:
    if parts.identical:
        return "the same text"
    tokens = "" if parts.tokens is None else f", {parts.tokens} tokens"
    return f"{views.PARTS} parts after {parts.characters} characters{tokens}"


def render(comparison: Comparison) -> str:
    """The whole report in the format that is asked for."""
    kind = comparison.request.output.format
    if kind == "jsonl":
        return "".join(comparison.events())
    comparison.finish()
    match kind:
        case "json":
            return json_line(comparison.document())
        case "csv":
            return csv_of(comparison)
        case "html":
            return page_of(comparison)
    return draw(comparison)


def draw(comparison: Comparison) -> str:
    """The report for a terminal, a pipe or an SVG."""
    output = comparison.request.output
    if output.format == "svg":
        items = _items(comparison, SVG_WIDTH)
        return draw_svg(items, width=SVG_WIDTH, title="gpt2cli compare", theme=output.theme)
    canvas = Canvas(output.terminal, on_screen=output.on_screen)
    return canvas.draw(_items(comparison, canvas.width))


def _items(comparison: Comparison, width: int) -> Iterator[Any]:
    for words in comparison.words:
        yield views.heading(_words_title(comparison, words))
        header, rows = _words_table(words)
        numbers = set(range(1, len(header)))
        yield views.Listing(header, rows, right=numbers, folded={0, *numbers})
        if not words.table.finished:
            yield views.remark("the search was cut short: a likelier word may be missing")
        yield ""
    for block in blocks_of(comparison):
        yield views.heading(block.title)
        yield from views.side_by_side(block.columns, width)
        yield ""
    if comparison.request.variations:
        yield views.remark(LIMITS)


def _words_title(comparison: Comparison, words: Words) -> str:
    what = "next words" if comparison.request.given_words else "likeliest next words"
    return f"{words.template or 'Prompts'} · {what} by {comparison.labels[words.model]}"


def _words_table(words: Words) -> tuple[list[str], list[list[str]]]:
    table = words.table
    rows = [
        [visible(word.strip(" ")) or visible(word), *map(percent, row)]
        for word, row in zip(table.words, table.probabilities, strict=True)
    ]
    return ["", *words.labels], rows


def page_of(comparison: Comparison) -> str:
    """A page."""
    parts = []
    for words in comparison.words:
        header, rows = _words_table(words)
        parts.append(page.section(_words_title(comparison, words)))
        parts.append(page.table(header, rows, right=range(1, len(header))))
        if not words.table.finished:
            parts.append(page.paragraph("The search was cut short: a likelier word may be missing.", "dim"))
    for block in blocks_of(comparison):
        parts.append(page.section(block.title))
        parts.append(page.columns((c.title, c.text, c.shared or 0, c.remarks) for c in block.columns))
    if comparison.request.variations:
        parts.append(page.paragraph(LIMITS, "dim"))
    return page.page("gpt2cli compare", parts)


_CSV_RUN = (
    *("kind", "model", "prompt", "seed", *SamplingOptions.__dataclass_fields__),
    *("text", "finish_reason", "tokens", "logprob", "bits_per_byte"),
    *("parts_at_character", "parts_at_token", "probability"),
)


def csv_of(comparison: Comparison) -> str:
    """A row for each text (``kind`` text), and for each next word of each prompt (``kind`` word)."""
    judges = [
        f"{figure}_under_{name}" for name in comparison.names for figure in ("logprob", "bits_per_byte")
    ]
    rows: list[list[object]] = []
    prompts = comparison.request.prompts
    for entry in comparison.entries:
        run, parts = entry.run, entry.parts
        options = [option_of(run, name) for name in SamplingOptions.__dataclass_fields__]
        row: list[object] = ["text", comparison.names[run.model], prompts[run.prompt], run.seed, *options]
        row += [run.choice.text, run.choice.finish_reason, run.own.tokens]
        row += [run.own.logprob, run.own.bits_per_byte]
        row += [parts.characters if parts else None, parts.tokens if parts else None, None]
        for model in range(len(comparison.names)):
            opinion = entry.opinions.get(model, run.own)
            row += [opinion.logprob if opinion.same_tokens else None, opinion.bits_per_byte]
        rows.append(row)
    at = {name: number for number, name in enumerate(_CSV_RUN)}
    for words in comparison.words:
        for word, probabilities in zip(words.table.words, words.table.probabilities, strict=True):
            for prompt, probability in zip(words.prompts, probabilities, strict=True):
                row = [None] * (len(_CSV_RUN) + len(judges))
                row[at["kind"]], row[at["model"]] = "word", comparison.names[words.model]
                row[at["prompt"]], row[at["text"]] = prompts[prompt], word
                row[at["probability"]] = probability
                rows.append(row)
    return csv_text([*_CSV_RUN, *judges], rows)
