"""What a preset does for a command: it stands in for flags that are not given, and makes the prompt.

A command takes presets by having `PresetFlags` among its flags, or `TemplateFlags` if it has a prompt, the
options of `gpt2cli.cli.params` for them, and one call of `use_preset` after its settings are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from gpt2cli.cli.flags import PresetFlags, PromptFlags, TemplateFlags
from gpt2cli.cli.prompt import clean_typed, read_prompt, read_text_file
from gpt2cli.errors import UsageError
from gpt2cli.options import shown
from gpt2cli.presets.preset import Preset, check_field_name
from gpt2cli.presets.store import find_preset
from gpt2cli.presets.template import INPUT, Template
from gpt2cli.remote.address import is_address
from gpt2cli.terminal.streams import Terminal

F = TypeVar("F", bound=PresetFlags)

_RIVALS = {"max_length": "max_new_tokens", "max_new_tokens": "max_length", "temperature": "greedy"}
"""Options that do not go together: a flag of the one keeps the preset's other one out."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """How an input becomes a prompt: by a template, or, without one, as it is."""

    template: Template | None
    fields: Mapping[str, str]

    def read(self, terminal: Terminal, flags: PromptFlags) -> str:
        """The prompt of a command line. Raises `UsageError`."""
        if self.template is not None and INPUT not in self.template.names:
            named = bool(flags.words) or flags.prompt is not None or flags.file is not None
            return self.fill(read_prompt(terminal, flags) if named else None)
        return self.fill(read_prompt(terminal, flags))

    def fill(self, text: str | None, fields: Mapping[str, str] | None = None) -> str:
        """The prompt of an input, which may have fields of its own. Raises `UsageError`."""
        if self.template is None:
            if fields:
                raise UsageError("there are fields, and no template that has them", hint="--preset names one")
            return text or ""
        values = {**self.fields, **(fields or {})}
        if INPUT in values:
            raise UsageError(f"{INPUT} is the prompt, and no other field")
        return self.template.fill(values if text is None else {**values, INPUT: text})

    def document(self) -> dict[str, Any]:
        """What tells the prompts that it makes from others; empty without a template."""
        return {} if self.template is None else {"template": self.template.parts, "fields": dict(self.fields)}


def use_preset(terminal: Terminal, flags: F, *, command: str) -> tuple[F, Prompts]:
    """``flags`` with what the preset says where no flag was given, and how an input becomes a prompt.

    ``command`` is warned for of what the preset says and it has no flag for. Raises `UsageError`.
    """
    preset = find_preset(flags.preset).preset if flags.preset is not None else Preset()
    assert preset is not None
    if (preset.task is not None) != (command == "score") and flags.preset is not None:
        if preset.task is not None:
            raise UsageError(
                f"{flags.preset} is a preset for score", hint=f"gpt2cli score --preset {flags.preset} FILE"
            )
        raise UsageError(f"{flags.preset} is no preset for score", hint="those with a task are")
    flags, unused = _with_values(flags, preset)
    if not isinstance(flags, TemplateFlags):
        if preset.template is not None:
            unused.append("template")
        prompts = Prompts(None, {})
    else:
        prompts = _prompts(terminal, flags, preset)
    if unused:
        names = ", ".join(unused)
        terminal.warn(f"the preset {flags.preset} also says {names}, which {command} does not use")
    return flags, prompts


def _with_values(flags: F, preset: Preset) -> tuple[F, list[str]]:
    """``flags`` with the preset's values, and the options among these that no flag is there for."""
    there = {field.name for field in fields(flags)}
    values: dict[str, Any] = {**preset.options}
    if preset.stop:
        values["stop"] = list(preset.stop)
    unused = [name for name in values if name not in there]
    for name in ("model", "system", "format", "task"):
        if getattr(preset, name) is not None:
            values[name] = getattr(preset, name)
    if getattr(flags, "endpoint", None) is not None and is_address(preset.model):
        # The flag names another server.
        del values["model"]
    missing = {
        name: value
        for name, value in values.items()
        if name in there
        and not _given(getattr(flags, name))
        and not _given(getattr(flags, _RIVALS.get(name, name), None))
    }
    return replace(flags, **missing), unused


def _given(value: object) -> bool:
    """Whether a flag was given; Typer has an empty list, or an empty tuple, for a list that was not."""
    return value is not None and not (isinstance(value, list | tuple) and not value)


def _prompts(terminal: Terminal, flags: TemplateFlags, preset: Preset) -> Prompts:
    strict = bool(getattr(flags, "strict", False))
    given = read_fields(terminal, flags.field, flags.field_file, strict=strict)
    template = preset.parsed_template
    if template is None:
        if given:
            hint = "--preset names a preset with one" if flags.preset is None else None
            raise UsageError("--field is for the fields of a template, and there is none", hint=hint)
        return Prompts(None, {})
    for name in given:
        if name not in template.names:
            names = ", ".join(n for n in template.names if n != INPUT) or "none"
            raise UsageError(
                f"the template of {flags.preset} has no field {shown(name)}", hint=f"its fields: {names}"
            )
    return Prompts(template, {**preset.fields, **given})


def read_fields(
    terminal: Terminal, typed: Sequence[str] | None, files: Sequence[str] | None, *, strict: bool = False
) -> dict[str, str]:
    """The values of ``--field`` and ``--field-file``, cleaned as prompts are. Raises `UsageError`."""
    values: dict[str, str] = {}
    for flag, texts in (("--field", typed), ("--field-file", files)):
        for text in texts or ():
            name, found, value = text.partition("=")
            if not found:
                raise UsageError(
                    f"{flag}: {shown(text)} is not KEY={'VALUE' if flag == '--field' else 'FILE'}"
                )
            check_field_name(name)
            if name == INPUT:
                raise UsageError(f"{flag}: {INPUT} is the prompt", hint="give it as words, or with --prompt")
            if name in values:
                raise UsageError(f"the field {name} is given twice")
            values[name] = (
                clean_typed(terminal, value, strict=strict)
                if flag == "--field"
                else read_text_file(terminal, Path(value), strict=strict)
            )
    return values
