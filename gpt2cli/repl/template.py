"""The chat template of a tokenizer, rendered in a sandbox: it is a program that nobody vouches for.

jinja2's `ImmutableSandboxedEnvironment` keeps it from Python's internals. A count of its steps, and a cap
on what its operators and filters may build, keep the ways that are known from taking for ever or all the
memory; nothing here stops a single step of Python's own that takes long.
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

_FILLS_SPACE = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"}
)
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float int items join last length list lower map "
    "max min reject rejectattr replace reverse round safe select selectattr sort string sum title trim "
    "unique upper"
)
"""The filters that cannot make much of little; `replace` and `join` are measured first."""
_HINT = "chat --format transcript does without the template"
_PAD = "\u2003"
_MARK = "\ue000{}\ue001"
_MARKED = re.compile(f"{_PAD}?\ue000([0-9]+)\ue001{_PAD}?")


class Segment(NamedTuple):
    """A text of the template, and the message that follows it."""

    text: str
    message: int | None
    """Its number; None after the last."""
    strips_begin: bool = False
    """Whether the template takes the white space before the message away, and below behind it."""
    strips_end: bool = False


class ChatTemplate:
    """A compiled template. Raises `ModelFileError` for one that is none."""

    def __init__(self, source: str, tokens: Mapping[str, str], where: Path) -> None:
        self._source, self._tokens, self._where = source, dict(tokens), where

    def render(self, roles: Sequence[str], *, prompt: bool) -> list[Segment]:
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
            strips = not match[0].startswith(_PAD), not match[0].endswith(_PAD)
            pieces.append(Segment(text[end : match.start()], int(match[1]), *strips))
            end = match.end()
        if [piece.message for piece in pieces] != list(range(len(roles))):
            raise ModelFileError(
                f"{self._where}: the chat template does not show every message, in order: {', '.join(roles)}"
            )
        return [*pieces, Segment(text[end:], None)]

    def _run(self, messages: list[dict[str, str]], prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            with _counted_steps():
                text = ""
                given = {**self._tokens, "messages": messages, "add_generation_prompt": prompt, "tools": None}
                for piece in self._compiled.generate(given):
                    text += piece
                    _measured(len(text))
        except (TemplateError, _TooMuch) as error:
            raise ModelFileError(f"{self._where}: the chat template refuses: {error}", hint=_HINT) from None
        except Exception as error:
            raise ModelFileError(
                f"{self._where}: the chat template fails: {type(error).__name__}: {error}", hint=_HINT
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


def _measured(size: float) -> None:
    if size > MAX_TEXT:
        raise _TooMuch("it computes what no template needs")


def _scalar(value: Any) -> Any:
    """``value``, which can be shown; a list in a list in a list may be endless."""
    if isinstance(value, list | tuple | dict | set):
        raise _TooMuch("it shows a list")
    return value


def _replaced(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(_scalar(text)), str(_scalar(old)), str(_scalar(new))
    _measured((text.count(old)) * len(new))
    replaced: str = text.replace(old, new, -1 if count is None else count)
    return replaced


def _joined(values: Any, joint: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        raise _TooMuch("it joins attributes")
    parts = [str(_scalar(value)) for value in values]
    _measured(sum(map(len, parts)) + len(parts) * len(str(joint)))
    whole: str = str(joint).join(parts)
    return whole


def _environment() -> Any:
    """The names and filters that transformers gives to chat templates, in a sandbox."""
    from jinja2 import TemplateError
    from jinja2.compiler import CodeGenerator
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generator(CodeGenerator):
        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.concatenated((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    class Sandbox(ImmutableSandboxedEnvironment):
        code_generator_class = Generator
        intercepted_binops = frozenset({"*", "**", "%", "+"})

        def concatenated(self, parts: tuple[Any, ...]) -> str:
            return _joined(parts)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(x) if isinstance(x, str | list | tuple) else 0 for x in (left, right)]
            numbers = [abs(x) for x in (left, right) if isinstance(x, int | float)]
            if operator == "%" and isinstance(left, str):
                raise _TooMuch("it computes what no template needs")
            if operator == "*":
                _measured(max(sizes) * max(numbers, default=1))
            if operator in ("*", "**"):
                _measured(max(numbers, default=0))
            _measured(sum(sizes))
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **keywords: Any) -> Any:
            text, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
            if isinstance(text, str) and name in ("replace", "join"):
                return _replaced(text, *args) if name == "replace" else _joined(args[0], text)
            return super().call(__context, __obj, *args, **keywords)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in _FILLS_SPACE and super().is_safe_attribute(obj, attr, value)

    class Generation(Extension):
        """transformers' mark around what a model is trained to say; for a text it is nothing."""

        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **ignored: Any) -> str:
        return json.dumps(_scalar(value), ensure_ascii=ensure_ascii)

    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_scalar,
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    own = {"tojson": tojson, "replace": _replaced, "join": _joined, "string": lambda v: str(_scalar(v))}
    environment.filters = {n: f for n, f in environment.filters.items() if n in _FILTERS.split()} | own
    environment.globals.pop("lipsum", None)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form[:100])
    return environment
