"""The chat template of a tokenizer, rendered in a sandbox: it is a program that nobody vouches for.

jinja2's `ImmutableSandboxedEnvironment` keeps it from Python's internals; a count of its steps, and
a cap on what its operators and filters may build, keep it from taking for ever or all the memory.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from gpt2cli.errors import ModelFileError
from gpt2cli.untrusted import read_capped, read_json

MAX_FILE_BYTES = 2**20
MAX_TEXT = 2**20
"""Characters of what a template renders, or builds on the way."""
MAX_STEPS = 1_000_000
"""Lines of the compiled template."""

_FILLS_SPACE = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"})
_FILTERS_THAT_FILL = ("center", "indent", "format", "wordwrap", "xmlattr")
_PAD = "\u2003"
_MARK = "\ue000{}\ue001"
_MARKED = re.compile(f"{_PAD}?\ue000([0-9]+)\ue001{_PAD}?")


class Piece(NamedTuple):
    """A text of the template, and the message that follows it."""

    text: str
    message: int | None
    """Its number; None after the last."""
    strips: bool = False
    """Whether the template takes the white space around the message away."""


class ChatTemplate:
    """A compiled template. Raises `ModelFileError` for one that is none."""

    def __init__(self, source: str, tokens: Mapping[str, str], where: Path) -> None:
        self._source, self._tokens, self._where = source, dict(tokens), where

    def render(self, roles: Sequence[str], *, prompt: bool) -> list[Piece]:
        """The text before each message, and the text after the last.

        ``prompt`` asks for what stands before an answer. Raises `ModelFileError` where the template
        fails, or does not show every message once: some leave out a system message, for instance.
        """
        # White space around the mark shows what the template does with that of a message.
        contents = [f"{_PAD}{_MARK.format(n)}{_PAD}" for n in range(len(roles))]
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        text = self._run(messages, prompt)
        pieces, end = [], 0
        for match in _MARKED.finditer(text):
            strips = not (match[0].startswith(_PAD) and match[0].endswith(_PAD))
            pieces.append(Piece(text[end : match.start()], int(match[1]), strips))
            end = match.end()
        if [piece.message for piece in pieces] != list(range(len(roles))):
            raise ModelFileError(
                f"{self._where}: the chat template does not show every message, in order: {', '.join(roles)}"
            )
        return [*pieces, Piece(text[end:], None)]

    def _run(self, messages: list[dict[str, str]], prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            with _counted_steps():
                text = ""
                given = {**self._tokens, "messages": messages, "add_generation_prompt": prompt, "tools": None}
                for piece in self._compiled.generate(given):
                    text += piece
                    if len(text) > MAX_TEXT:
                        raise _TooMuch("it renders more text than any")
        except (TemplateError, _TooMuch) as error:
            raise ModelFileError(f"{self._where}: the chat template refuses: {error}") from None
        except Exception as error:
            raise ModelFileError(
                f"{self._where}: the chat template fails: {type(error).__name__}: {error}"
            ) from None
        return text

    @cached_property
    def _compiled(self) -> Any:
        return _environment().from_string(self._source)


def read_template(directory: Path) -> ChatTemplate | None:
    """The chat template of a model directory: ``chat_template.jinja``, or ``tokenizer_config.json``'s.

    Of several named ones, ``default``. None where there is none. Raises `ModelFileError`.
    """
    path, config_path = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    config = read_json(config_path, MAX_FILE_BYTES) if config_path.is_file() else {}
    source = config.get("chat_template")
    if path.is_file():
        source = read_capped(path, MAX_FILE_BYTES).decode("utf-8", "replace")
    else:
        path = config_path
    if isinstance(source, list):
        named = {t["name"]: t.get("template") for t in source if isinstance(t, dict) and "name" in t}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ModelFileError(f"{path}: its chat template is no text")
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[name] = token
    return ChatTemplate(source, tokens, path)


class _TooMuch(Exception):
    """A template goes beyond what any needs."""


@contextmanager
def _counted_steps() -> Iterator[None]:
    """Raise `_TooMuch` when the Python code below takes more than `MAX_STEPS` lines."""
    left = MAX_STEPS

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooMuch("it does not come to an end")
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)


def _environment() -> Any:
    """The names and filters that transformers gives to chat templates, in a sandbox."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%", "+"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(x) if isinstance(x, str | list | tuple) else 0 for x in (left, right)]
            numbers = [abs(x) for x in (left, right) if isinstance(x, int | float)]
            if operator == "*" and max(sizes):
                too_much = max(sizes) * max(numbers, default=1) > MAX_TEXT
            elif operator == "%" and isinstance(left, str):
                too_much = True
            else:
                grows = operator in ("*", "**") and max(numbers, default=0) > 1e6
                too_much = grows or sum(sizes) > MAX_TEXT
            if too_much:
                raise _TooMuch("it computes what no template needs")
            return super().call_binop(context, operator, left, right)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in _FILLS_SPACE and super().is_safe_attribute(obj, attr, value)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **ignored: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    for name in _FILTERS_THAT_FILL:
        environment.filters.pop(name, None)
    environment.globals.pop("lipsum", None)
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
