"""``gpt2cli list`` and ``gpt2cli show``: the models on this disk, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2cli import paths
from gpt2cli.adapter import Adapter, is_adapter
from gpt2cli.cli import params
from gpt2cli.cli.flags import read_settings
from gpt2cli.hub.card import Card, read_card
from gpt2cli.hub.garbage import find_garbage
from gpt2cli.hub.inventory import (
    LocalModel,
    all_models,
    as_stored,
    default_directory,
    describe,
    disk_use,
    published_as,
)
from gpt2cli.hub.registry import OTHERS, PUBLISHED, SOURCES, PublishedModel
from gpt2cli.hub.resolve import locate_reference
from gpt2cli.hub.store import unreadable_manifests
from gpt2cli.settings import Settings
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.terminal.table import aligned, shown_age, shown_bytes, shown_count, tab_separated
from gpt2cli.text.sanitize import one_line

LIST_EXAMPLES = """Examples:

  gpt2cli list

  gpt2cli list --available

  gpt2cli list | cut -f 1,5

  gpt2cli list --json | jq .disk_use
"""

SHOW_EXAMPLES = """Examples:

  gpt2cli show gpt2

  gpt2cli show path/to/model --json | jq .parameters
"""

_COLUMNS = ("NAME", "REVISION", "PARAMETERS", "PRECISION", "SIZE", "LAST USED", "SOURCE", "DEFAULT")
_AVAILABLE = (
    *("NAME", "PARAMETERS", "PUBLISHED", "SHAPE", "CONTEXT"),
    *("SIZE", "WIKITEXT", "HERE"),
)


def list_models(
    ctx: typer.Context,
    available: Annotated[
        bool,
        typer.Option("--available", help="List the published models instead, with what is known about them."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """List the models on this disk: in the store, in the Hugging Face cache, in the package."""
    terminal: Terminal = ctx.obj
    settings = read_settings(terminal, quiet)
    models = [describe(model) for model in all_models()]
    if available:
        known = {published_as(model.stored) for model in models}
        _list_available(terminal, {model.repository for model in known if model}, json)
        return
    default = default_directory(settings.value("model"))
    use = _disk_use(models)
    if json:
        documents = [_model_document(model, default) for model in models]
        terminal.write(json_line({"models": documents, "disk_use": use, "store": str(paths.store_dir())}))
        return
    if not terminal.stdout_is_terminal:
        terminal.write(tab_separated([_plain_row(model, default) for model in models]))
        return
    if models:
        lines = aligned(_COLUMNS, [_row(model, default) for model in models], right={2, 4})
        terminal.write(terminal.dim(lines[0]) + "\n" + "".join(f"{line}\n" for line in lines[1:]))
    _note_disk_use(terminal, models, use)


def _list_available(terminal: Terminal, here: set[str], json: bool) -> None:
    if json:
        documents = [
            _published_document(model) | {"on_disk": model.repository in here} for model in PUBLISHED
        ]
        others = [asdict(model) for model in OTHERS]
        terminal.write(json_line({"models": documents, "others": others, "sources": dict(SOURCES)}))
        return
    plain = not terminal.stdout_is_terminal
    rows = [_available_row(model, model.repository in here, plain) for model in PUBLISHED]
    if plain:
        terminal.write(tab_separated(rows))
        return
    # The two long columns stand below, so that a row is a line of 80 columns.
    lines = aligned(_AVAILABLE, [(*row[:7], row[9]) for row in rows], right={1, 2, 4, 5, 6})
    terminal.write(terminal.dim(lines[0]) + "\n" + "".join(f"{line}\n" for line in lines[1:]))
    for data, licence in dict.fromkeys((model.training_data, model.licence) for model in PUBLISHED):
        alike = [m.name for m in PUBLISHED if (m.training_data, m.licence) == (data, licence)]
        terminal.note(f"{', '.join(alike)}: trained on {data}; licence {licence}")
    terminal.note("PUBLISHED is how many parameters its paper or card gives it; SHAPE is layers/width/heads;")
    terminal.note("WIKITEXT is the perplexity on WikiText-103 after fine-tuning on it")
    terminal.note("of other families, by their cards:")
    for other in OTHERS:
        talks = "; it answers: gpt2cli chat" if other.talks else ""
        size = shown_bytes(other.about_bytes)
        terminal.note(
            f"  {other.name} ({other.repository}): {other.parameters} parameters, context {other.context}, "
            f"about {size}, {other.licence}{talks}"
        )
    terminal.note("gpt2cli list --available --json says where each fact comes from")


def _row(model: LocalModel, default: Path | None) -> tuple[str, ...]:
    """A row for a person."""
    return (
        model.name,
        model.stored.revision[:7],
        "damaged" if model.problem else shown_count(model.parameters or 0),
        f"{model.precision or '-'}{' adapter' if model.adapter else ''}",
        shown_bytes(model.size),
        shown_age(model.last_used),
        model.stored.source,
        "*" if _is_default(model, default) else "",
    )


def _plain_row(model: LocalModel, default: Path | None) -> tuple[str, ...]:
    """The same columns for a program: whole numbers, whole revisions, ISO times."""
    return (
        model.name,
        model.stored.revision,
        "" if model.parameters is None else str(model.parameters),
        f"{model.precision or ''}{' adapter' if model.adapter else ''}",
        str(model.size),
        model.last_used.isoformat(timespec="seconds") if model.last_used else "",
        model.stored.source,
        "default" if _is_default(model, default) else "",
    )


def _available_row(model: PublishedModel, here: bool, plain: bool) -> tuple[str, ...]:
    perplexity = model.wikitext103_perplexity
    return (
        model.name,
        str(model.parameters) if plain else shown_count(model.parameters),
        model.published_parameters,
        f"{model.n_layer}/{model.n_embd}/{model.n_head}",
        str(model.n_positions),
        str(model.download_size) if plain else shown_bytes(model.download_size),
        "" if perplexity is None else f"{perplexity:g}",
        model.training_data,
        model.licence,
        "yes" if here else "",
    )


def _is_default(model: LocalModel, default: Path | None) -> bool:
    return default is not None and model.stored.directory == default


def _disk_use(models: Sequence[LocalModel]) -> dict[str, int]:
    """Bytes by source, in total, and what ``gc --all`` would free."""
    sources = dict.fromkeys(["store", "hf-cache"], 0)
    for source in sources:
        sources[source] = disk_use(m.stored.directory for m in models if m.stored.source == source)
    # A file that both have, as a hard link, is there once.
    total = disk_use(m.stored.directory for m in models if m.stored.source in sources)
    return {**sources, "total": total, "garbage": sum(g.size for g in find_garbage(everything=True))}


def _note_disk_use(terminal: Terminal, models: Sequence[LocalModel], use: Mapping[str, int]) -> None:
    if not models:
        terminal.note("no models on this disk; gpt2cli list --available shows what is published")
    damaged = [model.name for model in models if model.problem]
    damaged += [str(path) for path in unreadable_manifests()]
    if damaged:
        terminal.warn(f"damaged: {', '.join(damaged)}; gpt2cli verify says more")
    parts = [f"{shown_bytes(use['store'])} in {paths.store_dir()}"]
    if use["hf-cache"]:
        parts.append(f"{shown_bytes(use['hf-cache'])} in the Hugging Face cache")
    if use["garbage"]:
        parts.append(f"{shown_bytes(use['garbage'])} that gpt2cli gc --all would free")
    terminal.note(" · ".join(parts))


def _model_document(model: LocalModel, default: Path | None) -> dict[str, Any]:
    stored = model.stored
    return {
        "name": model.name,
        "kind": "adapter" if is_adapter(stored.directory) else "model",
        "repository": stored.name,
        "revision": stored.revision or None,
        "refs": list(stored.refs),
        "parameters": model.parameters,
        "precision": model.precision,
        "size": model.size,
        "last_used": model.last_used.isoformat(timespec="seconds") if model.last_used else None,
        "source": stored.source,
        "default": _is_default(model, default),
        "path": str(stored.directory),
        "problem": model.problem,
    }


def _published_document(model: PublishedModel) -> dict[str, Any]:
    return {**asdict(model), "download_size": model.download_size}


def show(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="A model, or NAME@REVISION.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: params.Debug = False,
) -> None:
    """Show what is known about a model or adapter: shape, size, licence, origin, and what its card says."""
    terminal: Terminal = ctx.obj
    found = describe(as_stored(locate_reference(model)))
    default = default_directory(Settings.load(terminal.environ).value("model"))
    card = read_card(found.stored.directory)
    known = published_as(found.stored)
    if json:
        terminal.write(json_line(_show_document(found, default, card, known)))
        return
    facts = [(key, value) for key, value in _facts(found, default, card, known) if value]
    if terminal.stdout_is_terminal:
        width = max(len(key) for key, _ in facts)
        facts_text = "".join(f"{terminal.dim(f'{key:<{width}}')}  {value}\n" for key, value in _clean(facts))
    else:
        facts_text = tab_separated(facts)
    sections = "".join(
        f"\n{section.title}\n\n{section.text}\n" for section in (card.sections if card else ())
    )
    terminal.write(facts_text + sections)
    if found.problem:
        terminal.warn(f"{found.name} is damaged: {found.problem}")


def _clean(facts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(key, one_line(value)) for key, value in facts]


def _facts(
    model: LocalModel, default: Path | None, card: Card | None, known: PublishedModel | None
) -> list[tuple[str, str]]:
    """What is shown, in order; an empty value is left out."""
    stored, config = model.stored, model.config
    facts = [("name", model.name), ("repository", stored.name if stored.name != model.name else "")]
    if config is not None:
        heads = f", {config.n_head} heads" if config.n_head else ""
        facts += [
            ("architecture", f"{config.architecture}, {config.n_layer} layers, {config.n_embd} wide{heads}"),
            ("context", f"{config.n_positions} tokens"),
            ("vocabulary", f"{config.vocab_size} tokens"),
            ("parameters", "" if model.parameters is None else f"{model.parameters:,}"),
        ]
    if model.adapter is not None:
        facts += _adapter_facts(model.adapter)
    facts += [
        ("precision", model.precision or ""),
        ("size", shown_bytes(model.size)),
        ("licence", _licence(card, known) or ""),
        ("revision", f"{stored.revision}{' (' + ', '.join(stored.refs) + ')' if stored.refs else ''}"),
        ("source", _origin(model)),
        ("created", stored.created),
        ("last used", shown_age(model.last_used) if model.last_used else ""),
        ("default", "yes" if _is_default(model, default) else ""),
        ("path", str(stored.directory)),
    ]
    if known is not None:
        perplexity = known.wikitext103_perplexity
        facts += [
            ("published as", known.published_parameters),
            ("trained on", known.training_data),
            ("paper", known.paper or ""),
            ("WikiText-103", f"perplexity {perplexity:g} after fine-tuning" if perplexity else ""),
        ]
    return facts


def _adapter_facts(adapter: Adapter) -> list[tuple[str, str]]:
    config = adapter.config
    kind = "DoRA" if config.use_dora else "rsLoRA" if config.use_rslora else "LoRA"
    alphas = sorted({config.lora_alpha, *config.alpha_pattern.values()})
    alpha = " to ".join(f"{each:g}" for each in dict.fromkeys((alphas[0], alphas[-1])))
    return [
        ("adapter", f"{kind} of rank {adapter.ranks}, alpha {alpha}" if adapter.ranks else kind),
        ("made for", config.base or ""),
        ("changes", ", ".join(adapter.modules[:12]) + (", …" if len(adapter.modules) > 12 else "")),
        ("parameters", f"{adapter.parameters:,}"),
    ]


def _adapter_document(adapter: Adapter) -> dict[str, Any]:
    config = adapter.config
    return {
        "base": config.base,
        "rank": config.r,
        "alpha": config.lora_alpha,
        "rslora": config.use_rslora,
        "dora": config.use_dora,
        "updated": sorted(adapter.updates),
        "replaced": sorted(adapter.replaced),
    }


def _licence(card: Card | None, known: PublishedModel | None) -> str | None:
    """As the card has it; else what is known of a published model."""
    return (card.licence if card else None) or (known.licence if known else None)


def _origin(model: LocalModel) -> str:
    """The source, and what the manifest says of how the model came into the store."""
    manifest = model.stored.manifest
    if manifest is None or not manifest.source:
        return model.stored.source
    said = ", ".join(f"{key} {value}"[:200] for key, value in manifest.source.items() if value)
    return f"{model.stored.source} ({said})"


def _show_document(
    model: LocalModel, default: Path | None, card: Card | None, known: PublishedModel | None
) -> dict[str, Any]:
    config, manifest = model.config, model.stored.manifest
    shape = asdict(config) if config else {}
    return {
        **_model_document(model, default),
        "architecture": config.architecture if config else None,
        "context": config.n_positions if config else None,
        "config": shape or None,
        "adapter": _adapter_document(model.adapter) if model.adapter else None,
        "licence": _licence(card, known),
        "created": model.stored.created or None,
        "provenance": dict(manifest.source) if manifest else None,
        "files": [asdict(record) for record in manifest.files] if manifest else None,
        "card": [asdict(section) for section in card.sections] if card else None,
        "published": {**_published_document(known), "sources": dict(SOURCES)} if known else None,
    }
