"""Prompt templates: a text with named fields, filled in with texts and nothing else.

``{name}`` is a field; ``{{`` and ``}}`` are braces. There is no code, no attribute, no format: what stands
between the braces is a name, and any other brace is an error. A value is put in as it is and never read as a
template itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gpt2cli.errors import UsageError
from gpt2cli.options import shown

INPUT = "input"
"""The field that the prompt of a command line fills."""
MAX_TEMPLATE = 2**20
"""Characters."""
MAX_FILLED = 32 * 2**20
"""Characters of a text that was made of a template."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_TOKEN = re.compile(rf"\{{\{{|\}}\}}|\{{({NAME.pattern})\}}|[{{}}]")


@dataclass(frozen=True, slots=True)
class Template:
    """A template that was read: texts, and the name of the field after each, None after the last."""

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template. Raises `UsageError` for a brace that is none of a field's."""
        if len(text) > MAX_TEMPLATE:
            raise UsageError(f"the template is longer than {MAX_TEMPLATE:,} characters")
        parts: list[tuple[str, str | None]] = []
        literal, end = "", 0
        for found in _TOKEN.finditer(text):
            literal, end = literal + text[end : found.start()], found.end()
            if found[1] is not None:
                parts.append((literal, found[1]))
                literal = ""
            elif found[0] in ("{{", "}}"):
                literal += found[0][0]
            else:
                raise UsageError(
                    f"the template: the {found[0]} at character {found.start() + 1} belongs to no field",
                    hint="a field is {input} or {name}; {{ and }} are braces",
                )
        return cls((*parts, (literal + text[end:], None)))

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, each once, in the order of their first places."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with ``values`` in the places of the fields.

        Raises `UsageError` for a field without a value, a value without a field, and a text that would be
        longer than `MAX_FILLED`.
        """
        names = self.names
        for name in values:
            if name not in names:
                fields = ", ".join(names) or "none"
                raise UsageError(
                    f"the template has no field {shown(name)}", hint=f"the fields of the template: {fields}"
                )
        for name in names:
            if name not in values:
                how = "give a prompt" if name == INPUT else f"--field {name}=VALUE gives it"
                raise UsageError(f"the field {name} of the template has no value", hint=how)
        size = sum(len(text) + (len(values[name]) if name is not None else 0) for text, name in self.parts)
        if size > MAX_FILLED:
            raise UsageError(f"the template makes a prompt of more than {MAX_FILLED >> 20} Mi characters")
        return "".join(text + (values[name] if name is not None else "") for text, name in self.parts)
