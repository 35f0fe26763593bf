"""``gpt2cli preset``: options and a prompt's form, kept under a name."""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2cli.cli import params, sampling_params
from gpt2cli.cli.flags import LengthFlags, SamplingFlags, check_greedy, read_flags, read_settings
from gpt2cli.cli.presets import read_fields
from gpt2cli.cli.prompt import clean_typed, read_text_file
from gpt2cli.errors import UsageError
from gpt2cli.hub.resolve import split_adapter
from gpt2cli.options import ChatFormat, Overflow, Rng
from gpt2cli.presets.preset import OPTION_NAMES, Preset
from gpt2cli.presets.store import Named, all_presets, find_preset, remove_preset, save_preset
from gpt2cli.remote.address import is_address
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.terminal.table import aligned, tab_separated
from gpt2cli.text.sanitize import one_line, sanitize

EXAMPLES = """Examples:

  gpt2cli preset list

  gpt2cli preset show answer

  gpt2cli preset save letters --temperature 0.7 --template "Dear {name}, {input}" --field name=Ann

  gpt2cli generate --preset letters --field name=Bob "thank you for"

  gpt2cli generate -m gpt2-xl --preset summarise -f article.txt
"""

app = typer.Typer(
    help="Save, list, show and remove presets: options and a prompt's form under a name. A flag overrides "
    "the preset, which overrides the environment and config.toml.",
    epilog=EXAMPLES,
    invoke_without_command=True,
)

_PROMPT, _CHAT = "Prompt", "Conversation"
PresetName = Annotated[str, typer.Argument(metavar="NAME", help="The preset's name.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON document.")]


def _value(panel: str, *names: str, metavar: str | None, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


@app.callback()
def root(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        ctx.get_help()


@app.command("save")
def save(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Small letters, digits, - and _.", show_default=False),
    ],
    about: Annotated[
        str | None, _value("Preset", "--about", metavar="TEXT", help="What the preset is for.")
    ] = None,
    like: Annotated[
        str | None,
        _value("Preset", "--from", metavar="NAME", help="Begin with what this preset says."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", metavar="", help="Write it anew if it is there.", rich_help_panel="Preset"),
    ] = False,
    template: Annotated[
        str | None,
        _value(
            _PROMPT,
            "--template",
            metavar="TEXT",
            help="The form of a prompt: {input} is what is given, {name} a field; {{ and }} are braces.",
        ),
    ] = None,
    template_file: Annotated[
        Path | None,
        _value(
            _PROMPT,
            "--template-file",
            metavar="FILE",
            help="The same from a file, of which one final newline is dropped.",
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        _value(
            _PROMPT,
            "--field",
            metavar="KEY=VALUE",
            help="The value that a field has if no other is given; may be given several times.",
        ),
    ] = None,
    field_file: Annotated[
        list[str] | None,
        _value(_PROMPT, "--field-file", metavar="KEY=FILE", help="The same from a file."),
    ] = None,
    system: Annotated[
        str | None,
        _value(_CHAT, "--system", metavar="TEXT", help="The text above all turns of a chat."),
    ] = None,
    format: Annotated[
        ChatFormat | None,
        _value(_CHAT, "--format", metavar=None, help="How a chat becomes one text."),
    ] = None,
    model: params.RemoteModel = None,
    max_new_tokens: sampling_params.MaxNewTokens = None,
    max_length: sampling_params.MaxLength = None,
    max_sentences: sampling_params.MaxSentences = None,
    stop: sampling_params.Stop = None,
    ignore_eos: sampling_params.IgnoreEos = None,
    overflow: sampling_params.OverflowMode = None,
    temperature: sampling_params.Temperature = None,
    top_k: sampling_params.TopK = None,
    top_p: sampling_params.TopP = None,
    min_p: sampling_params.MinP = None,
    typical_p: sampling_params.TypicalP = None,
    repetition_penalty: sampling_params.RepetitionPenalty = None,
    no_repeat_ngram_size: sampling_params.NoRepeatNgramSize = None,
    presence_penalty: sampling_params.PresencePenalty = None,
    frequency_penalty: sampling_params.FrequencyPenalty = None,
    greedy: sampling_params.Greedy = None,
    rng: sampling_params.RngKind = None,
    special_tokens: params.SpecialTokens = None,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Save a preset: what is given here, and nothing else."""
    terminal: Terminal = ctx.obj
    flags = read_flags(SaveFlags, ctx.params)
    read_settings(terminal, flags.quiet)
    base = Preset()
    if flags.like is not None:
        found = find_preset(flags.like).preset
        assert found is not None
        base = found
    preset = _preset_of(terminal, flags, base)
    if preset == Preset():
        raise UsageError("there is nothing to save", hint="give options, as for generate, or a --template")
    terminal.note(f"saved {save_preset(flags.name, preset, force=flags.force)}")


@dataclass(frozen=True, kw_only=True)
class SaveFlags(SamplingFlags, LengthFlags):
    """The flags of `preset save`."""

    name: str
    about: str | None
    like: str | None
    force: bool
    template: str | None
    template_file: Path | None
    field: list[str] | None
    field_file: list[str] | None
    system: str | None
    format: ChatFormat | None
    model: str | None
    max_length: int | None
    max_sentences: int | None
    overflow: Overflow | None
    presence_penalty: float | None
    frequency_penalty: float | None
    rng: Rng | None
    special_tokens: bool | None
    quiet: bool | None


def _preset_of(terminal: Terminal, flags: SaveFlags, base: Preset) -> Preset:
    """The preset ``base`` with what the flags say. Raises `UsageError`."""
    check_greedy(flags.greedy, flags.temperature)
    if flags.template is not None and flags.template_file is not None:
        raise UsageError("the template is given twice: by --template and by --template-file")
    template = None if flags.template is None else clean_typed(terminal, flags.template, strict=True)
    if flags.template_file is not None:
        template = read_text_file(terminal, flags.template_file, strict=True)
    given = {name: getattr(flags, name) for name in OPTION_NAMES if getattr(flags, name) is not None}
    if flags.greedy:
        given["temperature"] = 0.0
    options = {**base.options, **given}
    for one, other in (("max_length", "max_new_tokens"), ("max_new_tokens", "max_length")):
        if one in given and other not in given:
            options.pop(other, None)
    fields = {} if template is not None else dict(base.fields)
    fields.update(read_fields(terminal, flags.field, flags.field_file, strict=True))
    said: dict[str, Any] = {
        "about": flags.about and clean_typed(terminal, flags.about, strict=True),
        "model": flags.model and _lasting(flags.model),
        "format": flags.format,
        "system": None if flags.system is None else clean_typed(terminal, flags.system, strict=True),
        "template": template,
        "stop": tuple(flags.stop) if flags.stop else None,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if said.get("template") not in (None, base.template) or base.task is not None:
        # What was published holds for the form as it was.
        said |= {"reported": (), "limits": None}
    return replace(base, **said, options=options, fields=fields)


def _lasting(model: str) -> str:
    """A model's name; that of a directory is its whole path, so that it is found from anywhere."""
    if is_address(model):
        return model
    return "+".join(_whole(part) for part in split_adapter(model) if part is not None)


def _whole(name: str) -> str:
    """The whole path of a directory; anything else as it is."""
    expanded = os.path.expanduser(name)
    return str(Path(expanded).resolve()) if os.path.isdir(expanded) else name


@app.command("list")
def list_presets(ctx: typer.Context, json: Json = False) -> None:
    """List the presets: your own, and those of the GPT-2 paper's tasks, which are built in."""
    terminal: Terminal = ctx.obj
    found = all_presets()
    if json:
        terminal.write(json_line({"presets": [_document(named) for named in found]}))
        return
    rows = [
        (
            named.name,
            "built-in" if named.builtin else "yours",
            named.preset.used_by if named.preset is not None else "damaged",
            one_line((named.preset.about if named.preset is not None else named.problem) or ""),
        )
        for named in found
    ]
    if not terminal.stdout_is_terminal:
        terminal.write(tab_separated(rows))
        return
    head, *lines = aligned(("NAME", "KIND", "FOR", "ABOUT"), rows)
    room = max(40, terminal.width - 1)
    lines = [line if len(line) <= room else line[: room - 1] + "…" for line in lines]
    terminal.write(terminal.dim(head) + "\n" + "".join(f"{line}\n" for line in lines))


@app.command("show")
def show(ctx: typer.Context, preset: PresetName, json: Json = False) -> None:
    """Show a preset: what it says, what the paper reports for it, and what a model is not good at there."""
    terminal: Terminal = ctx.obj
    named = find_preset(preset)
    if json:
        terminal.write(json_line(_document(named)))
        return
    assert named.preset is not None
    terminal.write(
        sanitize(_shown(named, max(40, terminal.width - 1) if terminal.stdout_is_terminal else None))
    )


def _shown(named: Named, width: int | None) -> str:
    """A preset for a person, wrapped at ``width``; a text of several lines is indented as it stands."""
    assert named.preset is not None
    kind = "built-in" if named.builtin else f"yours, {named.path}"
    if named.hides:
        kind += "; it comes before the built-in one of this name"
    lines = [f"{named.name} ({kind}), for {named.preset.used_by}"]
    document = named.preset.document()
    fields = document.pop("fields", {})
    for key, value in document.items():
        if key == "reported":
            lines.append("the paper reports:" if named.builtin else "reported:")
            lines += [line for text in value for line in _wrapped(f"    {text}", width)]
        elif key in ("about", "limits"):
            lines += _wrapped(f"{'not good at' if key == 'limits' else key}: {one_line(value)}", width)
        else:
            lines += _entry(key, value)
    for name, value in fields.items():
        lines += _entry(f"{{{name}}}", value)
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int | None) -> list[str]:
    """A line, which is wrapped between words where there is a ``width``; the rest of it is indented."""
    return [text] if width is None else textwrap.wrap(text, width, subsequent_indent="    ")


def _entry(label: str, value: Any) -> list[str]:
    if isinstance(value, list):
        value = ", ".join(map(repr, value))
    elif isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, str) and "\n" in value:
        return [f"{label}:", *(f"    {line}" for line in value.split("\n"))]
    return [f"{label}: {value}"]


@app.command("rm")
def rm(ctx: typer.Context, preset: PresetName) -> None:
    """Remove one of your presets. It is not asked again; the built-in ones stay."""
    read_settings(ctx.obj, None)
    ctx.obj.note(f"removed {remove_preset(preset)}")


def _document(named: Named) -> dict[str, Any]:
    """A preset as JSON has it."""
    said = named.preset.document() if named.preset is not None else None
    return {
        "name": named.name,
        "builtin": named.builtin,
        "path": str(named.path),
        "used_by": named.preset.used_by.split(", ") if named.preset is not None else [],
        "problem": named.problem,
        "preset": said,
    }
