"""Settings: flag > environment > config.toml > the model's generation_config > default.

``config.toml`` has flat keys, each with a type of its own; ``GPT2CLI_<KEY>`` in the environment does
the same for one run. The command line puts its flags over both, and what nobody sets is left to the
model's generation_config and to `gpt2cli.options`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, InvalidOption, UsageError
from gpt2cli.files import write_atomically
from gpt2cli.options import (
    Device,
    GenerateOptions,
    LoadOptions,
    Overflow,
    Precision,
    Rng,
    check_choice,
    shown,
)

Value = str | int | float | bool

LOCK_PATIENCE_S = 10.0
OTHER_VARIABLES = frozenset(
    f"GPT2CLI_{name}"
    for name in ("HOME", "API_KEY", "NATIVE", "NATIVE_LIBRARY", "ZIG", "SHARED", "REQUIRE_SHARED", "UPDATE")
)
"""What may stand in the environment beside settings: API_KEY is for a model on a server, ZIG is of the build,
the last three are of the tests."""


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its type, what it means, and the values it takes where they are few."""

    kind: type
    help: str
    choices: tuple[str, ...] = ()


KEYS: dict[str, Key] = {
    "model": Key(str, "the model used without -m: a name or a directory"),
    "max_new_tokens": Key(int, "the most tokens generated"),
    "temperature": Key(float, "0 is greedy"),
    "top_k": Key(int, "the number of tokens kept; 0 is off"),
    "top_p": Key(float, "the probability mass kept; 1 is off"),
    "min_p": Key(float, "the least share of the likeliest token's probability; 0 is off"),
    "typical_p": Key(float, "the mass of typical tokens kept; 1 is off"),
    "repetition_penalty": Key(float, "1 is off"),
    "no_repeat_ngram_size": Key(int, "0 is off"),
    "rng": Key(str, "the random numbers", get_args(Rng)),
    "overflow": Key(str, "what happens when the context is full", get_args(Overflow)),
    "draft": Key(str, "how tokens are guessed ahead: auto, off, lookup, or a smaller model"),
    "device": Key(str, "where the model runs", get_args(Device)),
    "precision": Key(str, "the precision of the weights", get_args(Precision)),
    "threads": Key(int, "CPU threads"),
    "offline": Key(bool, "never use the network"),
    "editing_mode": Key(str, "the keys of chat and write", ("emacs", "vi")),
    "suggest": Key(bool, "in chat and write: show, dim, what the model would type next"),
    "send_token": Key(bool, "send the Hugging Face token to HF_ENDPOINT too, over https"),
    "quiet": Key(bool, "no notes and warnings"),
    "log": Key(bool, "keep a log of the runs of generate and chat, with prompts and texts"),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it came from: ``environment`` or ``config.toml``."""

    value: Value
    source: str


class Settings:
    """The settings of this run, from the environment and ``config.toml``."""

    def __init__(self, found: Mapping[str, Setting]) -> None:
        self._found = dict(found)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """What the environment and the file say now. Raises `UsageError` where one is wrong."""
        environ = os.environ if environ is None else environ
        found = {key: Setting(value, "config.toml") for key, value in read_config_file().items()}
        for key in KEYS:
            text = environ.get(environment_name(key))
            if text:
                found[key] = Setting(parse_value(key, text, environment_name(key)), "environment")
        return cls(found)

    def get(self, key: str) -> Setting | None:
        """The setting of ``key``, or None."""
        return self._found.get(key)

    def value(self, key: str) -> Any:
        """The value of ``key``, or None."""
        setting = self._found.get(key)
        return setting.value if setting else None

    def without(self, keys: Collection[str]) -> Settings:
        """The others."""
        return Settings({key: setting for key, setting in self._found.items() if key not in keys})

    def over(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """``flags``, and for those that are None the settings; what nobody set is left out."""
        merged = {key: self.value(key) if given is None else given for key, given in flags.items()}
        return {key: value for key, value in merged.items() if value is not None}


def environment_name(key: str) -> str:
    """The environment variable of a key: ``top_k`` is ``GPT2CLI_TOP_K``."""
    return f"GPT2CLI_{key.upper()}"


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The variables whose names begin as ours and mean nothing: a setting that was misspelt."""
    known = OTHER_VARIABLES | {environment_name(key) for key in KEYS}
    return sorted(
        name
        for name, value in environ.items()
        if value
        and name.startswith("GPT2CLI_")
        and not name.startswith("GPT2CLI_TEST_")
        and name not in known
    )


def known_key(text: str) -> str:
    """The key that ``text`` names (``top-k`` or ``top_k``). Raises `UsageError`."""
    key = text.strip().lower().replace("-", "_")
    if key not in KEYS:
        raise UsageError(f"{text!r} is not a setting", hint=f"settings: {', '.join(KEYS)}")
    return key


def parse_value(key: str, text: str, where: str | None = None) -> Value:
    """``text`` as the value of ``key``. Raises `UsageError` when it is none, or outside its range."""
    kind = KEYS[key].kind
    try:
        value: Value = _parse_bool(text) if kind is bool else kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise UsageError(f"{where or key}: {shown(text)} is not {what}") from None
    return _checked(key, value, where or key)


def _parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


def _checked(key: str, value: Any, where: str) -> Value:
    """``value`` when its type and range are right; the ranges are those of the options."""
    kind = KEYS[key].kind
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if value == "":
        raise UsageError(f"{where}: the value is empty")
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise UsageError(f"{where}: {shown(value)} is not {names[kind]}")
    option: dict[str, Any] = {key: value}
    try:
        if key in ("device", "precision", "threads"):
            LoadOptions(**option)
        elif key == "editing_mode":
            check_choice(key, value, KEYS[key].choices)
        elif key not in ("model", "suggest", "offline", "send_token", "quiet", "log"):
            GenerateOptions(**option)
    except InvalidOption as error:
        raise UsageError(f"{where}: {error.reason}") from None
    return cast(Value, value)


def read_config_file() -> dict[str, Value]:
    """The keys of ``config.toml``; none when there is no file. Raises `UsageError` when it is damaged."""
    path = paths.config_file()
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}", hint="edit the file, or delete it") from None
    for key in raw:
        if key not in KEYS:
            raise UsageError(f"{path}: {key!r} is not a setting", hint=f"settings: {', '.join(KEYS)}")
    return {key: _checked(key, value, f"{path}: {key}") for key, value in raw.items()}


def set_in_file(key: str, value: Value) -> None:
    """Write one key, the others and what is said of them kept. Raises `UsageError`, `Gpt2cliError`."""
    change_config_file({key: value})


def unset_in_file(key: str) -> bool:
    """Remove one key; False when the file does not have it. Raises as `set_in_file`."""
    if key not in read_config_file():
        return False
    change_config_file({key: None})
    return True


def change_config_file(values: Mapping[str, Value | None]) -> None:
    """Write some keys of ``config.toml``, or remove those that are None, in one rename.

    Comments, order and spacing stay; another process that changes the file at the same time waits.
    Raises `UsageError` for a value or a file that cannot be, `Gpt2cliError` when it cannot be written.
    """
    import tomlkit

    texts = {key: None if value is None else _toml(key, value) for key, value in values.items()}
    path = paths.config_file()
    with only_writer(path):
        # What is damaged is said as for any other command.
        before = read_config_file()
        document = tomlkit.parse(path.read_bytes()) if path.exists() else tomlkit.document()
        for key, text in texts.items():
            if text is not None:
                value = tomlkit.value(text)
                if key in before:
                    value.trivia.comment_ws, value.trivia.comment = _comment_of(document.item(key))
                document[key] = value
            elif key in before:
                del document[key]
        write_atomically(path, tomlkit.dumps(document))


def _comment_of(item: Any) -> tuple[str, str]:
    """What stands after a value on its line."""
    return item.trivia.comment_ws, item.trivia.comment


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Let no other process change ``path`` meanwhile. Raises `Gpt2cliError`."""
    from filelock import FileLock, Timeout

    lock = paths.state_dir() / "config.lock"
    try:
        for folder in (path.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=LOCK_PATIENCE_S):
            yield
    except Timeout:
        raise Gpt2cliError(f"cannot write {path}: another process is changing it ({lock})") from None
    except OSError as error:
        raise Gpt2cliError(f"cannot write {path}: {error.strerror or error}") from None


def _toml(key: str, value: Value) -> str:
    """A TOML value. Basic strings escape what TOML does not allow in them.

    Raises `UsageError` for a lone surrogate (a byte that was no UTF-8), which TOML cannot hold.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise UsageError(f"{key}: {shown(value)} is not valid Unicode and cannot be kept in a file")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
