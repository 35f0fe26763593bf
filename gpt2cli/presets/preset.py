"""A preset: what one TOML file says of a model, of options, and of the form of a prompt."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from gpt2cli.errors import InvalidOption, UsageError
from gpt2cli.options import ChatFormat, GenerateOptions, ScoreTask, check_choice, shown
from gpt2cli.presets.template import INPUT, NAME, Template
from gpt2cli.text.reading import clean

OPTION_NAMES = tuple(
    option.name
    for option in fields(GenerateOptions)
    # A seed, and how a text is computed and reported, belong to a run.
    if option.name not in ("seed", "draft", "logprobs", "num_return_sequences", "logit_bias", "stop")
)
"""What a preset may say of `GenerateOptions`, besides ``stop``."""
_SWITCHES = frozenset({"ignore_eos", "special_tokens"})
_TEXTS = ("about", "limits", "model", "template", "system", "format", "task")
_OPEN = frozenset({"template", "system"})
"""Texts that may be empty."""
KEYS = ("about", "reported", "limits", "model", "task", *OPTION_NAMES, "stop", "format", "system", "template")
"""The keys of a file, in the order in which they are written; the table ``fields`` comes last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a file says; None where it says nothing. Raises `UsageError` for what cannot be."""

    about: str | None = None
    """What it is for, in one sentence."""
    reported: tuple[str, ...] = ()
    """Results that were published for it, each with the size of the model and the source."""
    limits: str | None = None
    """What a model is not good at here."""
    model: str | None = None
    task: str | None = None
    """The task of `score` that it stands for."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """By the names of `GenerateOptions`."""
    stop: tuple[str, ...] = ()
    format: str | None = None
    """How `chat` makes one text of a conversation."""
    system: str | None = None
    """What stands above a conversation."""
    template: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    """Values of the template's fields, where a command line does not give others."""

    def __post_init__(self) -> None:
        parsed = self.parsed_template
        names = parsed.names if parsed is not None else ()
        for name, value in self.fields.items():
            if name == INPUT:
                raise UsageError(f"fields: {INPUT} is what a command line gives, and has no value of its own")
            if name not in names:
                raise UsageError(
                    f"fields: the template has no field {shown(name)}",
                    hint=f"the fields of the template: {', '.join(names) or 'none'}",
                )
            _check_text(f"fields: {name}", value)
        for name in _SWITCHES & self.options.keys():
            if not isinstance(self.options[name], bool):
                raise UsageError(f"{name}: {shown(self.options[name])} is not true or false")
        try:
            if self.format is not None:
                check_choice("format", self.format, get_args(ChatFormat))
            if self.task is not None:
                check_choice("task", self.task, get_args(ScoreTask))
            GenerateOptions(**self.options, stop=self.stop)
        except InvalidOption as error:
            raise UsageError(f"{error.option}: {error.reason}") from None

    @property
    def parsed_template(self) -> Template | None:
        """The template, read; None where there is none."""
        return None if self.template is None else Template.parse(self.template)

    @property
    def used_by(self) -> str:
        """The commands that it is for, in words."""
        if self.task is not None:
            return "score"
        if self.template is not None:
            return "generate, batch"
        return "chat" if self.system is not None or self.format is not None else "generate, chat, batch"

    def document(self) -> dict[str, Any]:
        """What it says, by the keys of its file; what it does not say is left out."""
        said = {name: getattr(self, name) for name in KEYS if name not in OPTION_NAMES} | {**self.options}
        ordered = {name: said[name] for name in KEYS if name in said}
        if self.fields:
            ordered["fields"] = dict(self.fields)
        lists = ("stop", "reported")
        return {
            name: list(value) if name in lists else value
            for name, value in ordered.items()
            if value is not None and value != ()
        }


def read_preset(text: str) -> Preset:
    """The preset in a TOML text. Raises `UsageError`."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is not TOML: {error}", hint="edit the file, or remove it") from None
    return preset_of(raw)


def preset_of(raw: Mapping[str, Any]) -> Preset:
    """The preset of keys and their values. Raises `UsageError`."""
    for key in raw:
        if key not in KEYS and key != "fields":
            raise UsageError(f"{shown(key)} is no key of a preset", hint=f"keys: {', '.join(KEYS)}, fields")
    given: dict[str, Any] = {}
    for key in _TEXTS:
        if key in raw:
            _check_text(key, raw[key])
            if not raw[key] and key not in _OPEN:
                raise UsageError(f"{key}: the text is empty")
            given[key] = raw[key]
    for key in ("stop", "reported"):
        texts = raw.get(key, [])
        if not isinstance(texts, list):
            raise UsageError(f"{key}: {shown(texts)} is not a list of texts")
        for text in texts:
            _check_text(key, text)
        given[key] = tuple(texts)
    table = raw.get("fields", {})
    if not isinstance(table, Mapping):
        raise UsageError(f"fields: {shown(table)} is not a table of texts")
    for name in table:
        check_field_name(name)
    options = {key: raw[key] for key in OPTION_NAMES if key in raw}
    return Preset(**given, options=options, fields=dict(table))


def check_field_name(name: str) -> None:
    """Raise `UsageError` unless ``name`` can stand in a template."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{shown(name)} is not the name of a field",
            hint="a name has letters, digits and _, and begins with no digit",
        )


def _check_text(where: str, text: object) -> None:
    if not isinstance(text, str):
        raise UsageError(f"{where}: {shown(text)} is not a text")
    if clean(text)[1]:
        raise UsageError(f"{where}: the text has a character that is NUL or no Unicode")
