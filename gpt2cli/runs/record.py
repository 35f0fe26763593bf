"""The record of a run: all that its texts depend on, and the texts. As a file it is JSON with a version.

A record may come from a stranger. What is read is checked like any file that nobody vouches for: its size,
the type and range of every field, options by `GenerateOptions`. It names a model by name and hash, never by
a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from gpt2cli.errors import Gpt2cliError, ModelFileError
from gpt2cli.files import write_atomically
from gpt2cli.options import MAX_SEED, GenerateOptions, Precision, shown
from gpt2cli.text.reading import clean
from gpt2cli.untrusted import read_json

KIND = "gpt2cli run"
FORMAT = 1
MAX_BYTES = 64 * 2**20
INTERRUPTED = "interrupted"
SERVER = "server"
"""The device of a run whose model was on a server."""

T = TypeVar("T")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OPTIONS = {option.name for option in fields(GenerateOptions)}
_MAX_NAME, _MAX_TOKENS, _MAX_ID = 1000, 2**22, 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunModel:
    """Which model wrote: the name that leads to it, and the SHA-256 of its files (None: not known)."""

    name: str
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEngine:
    """What computed, as loaded. ``libraries`` are versions of what has a part in a text, by name."""

    device: str
    precision: str | None = None
    kernels: tuple[str, ...] = ()
    threads: int | None = None
    machine: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunText:
    """One of the texts. ``token_ids`` are None where a server did not tell them."""

    seed: int
    text: str
    token_ids: tuple[int, ...] | None
    finish_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run. ``prompt_ids`` are there where the model was given tokens, as by `chat`, and then count."""

    command: str
    version: str
    """Of gpt2cli."""
    started: str
    """ISO 8601, UTC."""
    model: RunModel
    prompt: str
    prompt_ids: tuple[int, ...] | None = None
    options: GenerateOptions
    """Settled: with a seed."""
    engine: RunEngine
    texts: tuple[RunText, ...]
    session: str | None = None
    """The session of a chat that this was a turn of."""
    usage: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def on_server(self) -> bool:
        """Whether the model was on a server."""
        return self.engine.device == SERVER

    def document(self) -> dict[str, Any]:
        """The record as JSON has it."""
        choices = [
            {
                "index": index,
                "seed": text.seed,
                "text": text.text,
                "token_ids": None if text.token_ids is None else [*text.token_ids],
                "finish_reason": text.finish_reason,
            }
            for index, text in enumerate(self.texts)
        ]
        return {
            "record": KIND,
            "format": FORMAT,
            "version": self.version,
            "command": self.command,
            "session": self.session,
            "started": self.started,
            "model": asdict(self.model),
            "prompt": self.prompt,
            "prompt_ids": None if self.prompt_ids is None else [*self.prompt_ids],
            "options": asdict(self.options),
            "engine": {**asdict(self.engine), "libraries": dict(self.engine.libraries)},
            "choices": choices,
            "usage": dict(self.usage),
            "timings": dict(self.timings),
        }


def write_record(path: Path, record: RunRecord) -> None:
    """Put ``record`` into a file of its own, a line a field, in one rename. Raises `Gpt2cliError`."""
    lines = (
        f'  "{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in record.document().items()
    )
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_record(path: Path) -> RunRecord:
    """The record in the file ``path``. Raises `ModelFileError` for what is none, or damaged, or too large."""
    return parse_record(read_json(path, MAX_BYTES), str(path))


def parse_record(raw: Mapping[str, Any], where: str) -> RunRecord:
    """The record that ``raw`` is, of ``where``. Raises `ModelFileError` for what is none, or damaged."""
    if raw.get("record") != KIND:
        raise ModelFileError(
            f"{where}: not the record of a run", hint="gpt2cli generate --record FILE writes one"
        )
    version = raw.get("format")
    if type(version) is int and version > FORMAT:
        raise ModelFileError(
            f"{where}: written by a newer gpt2cli (format {shown(version)}; this one reads {FORMAT})",
            hint="use the newer gpt2cli for it",
        )
    try:
        if type(version) is not int or version < 1:
            raise _Bad("format")
        return _parse(raw)
    except _Bad as error:
        raise ModelFileError(f"{where}: the record is damaged: {error}") from None
    except Gpt2cliError as error:
        raise ModelFileError(f"{where}: the record is damaged: {error}") from None


class _Bad(ValueError):
    """A field is missing, or not what it should be; the message is its name."""


def _parse(raw: Mapping[str, Any]) -> RunRecord:
    options = _options(_table(raw, "options"))
    record = RunRecord(
        command=_text(raw, "command", 100),
        version=_text(raw, "version", 100),
        started=_text(raw, "started", 100),
        session=_optional(raw, "session", lambda: _text(raw, "session", _MAX_NAME)),
        model=_model(_table(raw, "model")),
        prompt=_text(raw, "prompt", MAX_BYTES),
        prompt_ids=_optional(raw, "prompt_ids", lambda: _ids(raw, "prompt_ids")),
        options=options,
        engine=_engine(_table(raw, "engine")),
        texts=_texts(raw, options),
        usage=_table(raw, "usage"),
        timings=_table(raw, "timings"),
    )
    text, broken = clean(record.prompt)
    if broken and record.prompt_ids is None:
        raise _Bad("prompt")
    # With its tokens the text is only to be looked at; a model may have drawn what no prompt may have.
    return replace(record, prompt=text)


def _options(raw: Mapping[str, Any]) -> GenerateOptions:
    """Raises `InvalidOption` for a value outside its range."""
    if unknown := raw.keys() - _OPTIONS:
        raise _Bad(f"{shown(min(unknown))} is not an option of this version")
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
    bias = given.get("logit_bias", ())
    if isinstance(bias, tuple):
        given["logit_bias"] = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in bias)
    for name in ("ignore_eos", "special_tokens"):
        if not isinstance(given.get(name, False), bool):
            raise _Bad(name)
    try:
        options = GenerateOptions(**given)
    except TypeError:
        # A choice that cannot be looked up, such as a list.
        raise _Bad("options") from None
    if options.seed is None or (options.max_new_tokens is None and options.max_length is None):
        raise _Bad("options")
    return options


def _model(raw: Mapping[str, Any]) -> RunModel:
    sha256 = _optional(raw, "sha256", lambda: _text(raw, "sha256", 64))
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise _Bad("sha256")
    revision = _optional(raw, "revision", lambda: _text(raw, "revision", _MAX_NAME))
    return RunModel(name=_text(raw, "name", _MAX_NAME), revision=revision, sha256=sha256)


def _engine(raw: Mapping[str, Any]) -> RunEngine:
    kernels = raw.get("kernels")
    libraries = _table(raw, "libraries")
    precision = _optional(raw, "precision", lambda: _text(raw, "precision", 100))
    if precision is not None and precision not in get_args(Precision):
        raise _Bad("precision")
    if not isinstance(kernels, list) or len(kernels) > 100:
        raise _Bad("kernels")
    if len(libraries) > 100:
        raise _Bad("libraries")
    return RunEngine(
        device=_text(raw, "device", 100),
        precision=precision,
        kernels=tuple(_text({"kernels": kernel}, "kernels", 100) for kernel in kernels),
        threads=_optional(raw, "threads", lambda: _whole(raw, "threads", 2**20)),
        machine=_text(raw, "machine", 100),
        libraries={name[:100]: _text(libraries, name, 100) for name in libraries},
    )


def _texts(raw: Mapping[str, Any], options: GenerateOptions) -> tuple[RunText, ...]:
    choices = raw.get("choices")
    if not isinstance(choices, list) or len(choices) != options.num_return_sequences:
        raise _Bad("choices")
    texts = []
    for choice in choices:
        if not isinstance(choice, dict):
            raise _Bad("choices")
        texts.append(
            RunText(
                seed=_whole(choice, "seed", MAX_SEED),
                text=_text(choice, "text", MAX_BYTES),
                token_ids=None if choice.get("token_ids") is None else _ids(choice, "token_ids"),
                finish_reason=_text(choice, "finish_reason", 100),
            )
        )
    return tuple(texts)


def _optional(raw: Mapping[str, Any], name: str, read: Callable[[], T]) -> T | None:
    return None if raw.get(name) is None else read()


def _table(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name)
    if not isinstance(value, dict):
        raise _Bad(name)
    return value


def _text(raw: Mapping[str, Any], name: str, most: int) -> str:
    value = raw.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise _Bad(name)
    return value


def _whole(raw: Mapping[str, Any], name: str, high: int) -> int:
    value = raw.get(name)
    if type(value) is not int or not 0 <= value <= high:
        raise _Bad(name)
    return value


def _ids(raw: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = raw.get(name)
    if not isinstance(value, list) or len(value) > _MAX_TOKENS:
        raise _Bad(name)
    if not all(type(token) is int and 0 <= token <= _MAX_ID for token in value):
        raise _Bad(name)
    return tuple(value)
