"""The model card: what happened in a training, in Markdown. Every figure in it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from gpt2cli import __version__
from gpt2cli.train.facts import Facts, Sample
from gpt2cli.train.options import Recipe
from gpt2cli.train.trainer import Score

CURVE_POINTS = 20

_TITLES = {
    "train": "A GPT-2 model trained from scratch",
    "finetune": "A fine-tuned GPT-2 model",
    "distill": "A distilled GPT-2 model",
}


def write_card(facts: Facts, samples: Sequence[Sample]) -> str:
    """The content of README.md, metadata of the Hugging Face Hub first."""
    sections = [
        _front_matter(facts),
        _introduction(facts),
        _figures(facts),
        _data(facts),
        _training(facts),
        _curve(facts.curve),
        _samples(facts, samples),
        _use(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(facts: Facts) -> str:
    export = facts.recipe.export
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [gpt2, gpt2cli]"]
    if export.license:
        lines.append(f"license: {json.dumps(export.license)}")
    if facts.recipe.base_name and facts.recipe.base_name.count("/") == 1:
        lines.append(f"base_model: {json.dumps(facts.recipe.base_name)}")
    return "\n".join([*lines, "---"])


def _introduction(facts: Facts) -> str:
    recipe = facts.recipe
    parts = [f"# {export_title(recipe)}"]
    if recipe.export.description:
        parts.append(recipe.export.description.strip())
    made = f"Made with `gpt2cli {recipe.command}` {__version__}"
    if recipe.command == "finetune":
        made += f" from {recipe.base_name or recipe.base}"
        if recipe.lora:
            made += f", by low-rank adaptation of rank {recipe.lora.rank} (arXiv 2106.09685)"
            made += f": {facts.trainable:,} weights were trained, then merged"
    elif recipe.command == "distill":
        made += f" from the teacher {recipe.base_name or recipe.base} (as in arXiv 1910.01108)"
    parts.append(f"{made}. {facts.parameters:,} parameters.")
    return "\n\n".join(parts)


def export_title(recipe: Recipe) -> str:
    """The first heading: the title asked for, else one that says what was done."""
    return recipe.export.title or _TITLES[recipe.command]


def _figures(facts: Facts) -> str:
    lines = [
        "## Figures",
        "",
        f"Measured with the weights as saved ({facts.recipe.export.save_precision}), in fp32, in windows of "
        f"{facts.plan.window} tokens side by side; the cost of end-of-text tokens is included, the bytes are "
        "those of the text.",
        "",
        "| text | bytes | bits per byte | perplexity per token |",
        "|---|--:|--:|--:|",
    ]
    if facts.start is not None and facts.recipe.command != "train":
        lines.append(_score_row("validation, before training", facts.start))
    lines.append(_score_row("validation", facts.final))
    lines += [_score_row(f"test: {_cell(test.file)}", test.score) for test in facts.tests]
    if facts.acceptance is not None:
        lines += [
            "",
            "It guesses ahead for its teacher (`--draft`): given the validation text so far, it draws the "
            f"teacher's token {facts.acceptance:.0%} of the time, by the teacher's own sampling options.",
        ]
    return "\n".join(lines)


def _score_row(what: str, score: Score) -> str:
    return f"| {what} | {score.size:,} | {score.bits_per_byte:.4f} | {score.perplexity:.3f} |"


def _data(facts: Facts) -> str:
    tokens, plan = facts.tokens, facts.plan
    seen = facts.steps_done * plan.tokens_per_step / plan.tokens
    held = "whole documents" if facts.split_by_document else "the end of each document"
    if any(entry["use"] == "validation" for entry in facts.data):
        held = "files of their own"
    lines = [
        "## Data",
        "",
        f"Trained on {tokens.train.size:,} bytes ({tokens.train.tokens:,} tokens), seen {seen:.2f} times; "
        f"{tokens.validation.size:,} bytes held back for validation ({held}).",
    ]
    if facts.excluded_documents:
        lines += ["", f"{facts.excluded_documents} documents left out: they are in validation or test data."]
    lines += ["", "| use | file | bytes | sha256 |", "|---|---|--:|---|"]
    lines += [
        f"| {entry['use']} | {_cell(entry['file'])} | {entry['bytes']:,} | `{entry['sha256']}` |"
        for entry in facts.data
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _training(facts: Facts) -> str:
    plan = facts.plan
    minutes = facts.training_s / 60
    lines = [
        "## Training",
        "",
        f"{facts.steps_done:,} of {plan.steps:,} steps of {plan.tokens_per_step:,} tokens on {facts.device}, "
        f"matrix products in {'bf16' if facts.bf16 else 'fp32'}; {minutes:.1f} minutes in training steps.",
        "",
        "| option | value |",
        "|---|---|",
        *(f"| {name} | {_cell(str(value))} |" for name, value in _options(facts.recipe)),
    ]
    return "\n".join(lines)


def _options(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """The options that decide the result, those left open left out."""
    for part in (recipe.shape, recipe.train, recipe.lora, recipe.distill):
        for field in fields(part) if part is not None else ():
            value = getattr(part, field.name)
            if value is not None and field.name not in ("device", "threads", "keep"):
                yield field.name.replace("_", "-"), value
    yield "save-precision", recipe.export.save_precision


def _curve(curve: Sequence[dict[str, Any]]) -> str:
    points = [event for event in curve if event["event"] == "evaluation"]
    if not points:
        return ""
    loss_at = {event["step"]: event["loss"] for event in curve if event["event"] == "step"}
    every = -(-len(points) // CURVE_POINTS)
    chosen = [point for n, point in enumerate(points) if (len(points) - 1 - n) % every == 0]
    lines = [
        "## Curve",
        "",
        "| step | training loss | validation loss | bits per byte |",
        "|--:|--:|--:|--:|",
    ]
    for point in chosen:
        training = loss_at.get(point["step"])
        shown = f"{training:.4f}" if training is not None else ""
        lines.append(f"| {point['step']:,} | {shown} | {point['loss']:.4f} | {point['bits_per_byte']:.4f} |")
    return "\n".join(lines)


def _samples(facts: Facts, samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    export = facts.recipe.export
    start = f"after the prompt {json.dumps(export.sample_prompt)}" if export.sample_prompt else "from nothing"
    drawn = {"temperature": 1.0, "top_k": 50, **export.sampling}
    by = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in drawn.items())
    lines = [
        "## Samples",
        "",
        f"Unselected: {len(samples)} texts of at most {export.sample_tokens} tokens {start}, {by}, with the "
        f"seeds 1 to {len(samples)} of `gpt2cli generate --seed`.",
    ]
    for sample in samples:
        lines += ["", f"Seed {sample.seed}:", "", *_quoted(export.sample_prompt + sample.text)]
    return "\n".join(lines)


def _quoted(text: str) -> list[str]:
    """``text`` as an indented block, which Markdown shows as it is."""
    clean = "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
    return [f"    {line}".rstrip() for line in clean.split("\n")]


def _use() -> str:
    return (
        "## Use\n\n"
        '```\ngpt2cli generate -m DIRECTORY "Once upon a time"\n```\n\n'
        "or with transformers: `GPT2LMHeadModel.from_pretrained(DIRECTORY)`, "
        "`AutoTokenizer.from_pretrained(DIRECTORY)`."
    )
