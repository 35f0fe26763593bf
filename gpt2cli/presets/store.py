"""Presets by name: the built-in ones, and the user's.

Each is a file ``NAME.toml``, the user's in the folder of the settings.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import write_atomically
from gpt2cli.options import shown
from gpt2cli.presets.preset import Preset, read_preset
from gpt2cli.settings import only_writer
from gpt2cli.text.sanitize import one_line

MAX_FILE = 4 * 2**20
_SUFFIX = ".toml"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
# Windows takes these for devices, whatever follows the dot.
_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]")
_BUILTIN = Path(__file__).with_name("builtin")


@dataclass(frozen=True, slots=True)
class Named:
    """A preset and where it is."""

    name: str
    path: Path
    preset: Preset | None
    """None where the file is damaged."""
    problem: str | None = None

    @property
    def builtin(self) -> bool:
        """Whether it ships with the program."""
        return self.path.parent == _BUILTIN

    @property
    def hides(self) -> bool:
        """Whether it is the user's, and has the name of a built-in one."""
        return not self.builtin and self.name in builtin_names()


def check_name(name: str) -> None:
    """Raise `UsageError` for what is no name of a preset."""
    if not _NAME.fullmatch(name) or _DEVICE.fullmatch(name):
        raise UsageError(
            f"{shown(name)} is not a name for a preset",
            hint="a name has small letters, digits, - and _, at most 64, and begins with a letter or a digit",
        )


def builtin_names() -> list[str]:
    """The names of the built-in presets."""
    return _names_in(_BUILTIN)


def find_preset(name: str) -> Named:
    """The preset ``name``; the user's comes before a built-in one. Raises `UsageError`."""
    check_name(name)
    for folder in (paths.presets_dir(), _BUILTIN):
        path = folder / f"{name}{_SUFFIX}"
        if path.is_file():
            return Named(name, path, _read(path))
    known = [*_names_in(paths.presets_dir()), *builtin_names()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "gpt2cli preset list shows what there is"
    raise UsageError(f"there is no preset {name}", hint=hint)


def all_presets() -> list[Named]:
    """Every preset by its name, the user's first; a damaged file is among them."""
    users = [_named(paths.presets_dir(), name) for name in _names_in(paths.presets_dir())]
    hidden = {named.name for named in users}
    return [*users, *(_named(_BUILTIN, name) for name in builtin_names() if name not in hidden)]


def save_preset(name: str, preset: Preset, *, force: bool) -> Path:
    """Write the user's preset ``name``, whole or not at all.

    Raises `UsageError` for a name that is none, is that of a built-in preset, or, without ``force``, is there
    already; `Gpt2cliError` where the file cannot be written.
    """
    check_name(name)
    if name in builtin_names():
        raise UsageError(
            f"{name} is a built-in preset",
            hint=f"choose another name; --from {name} begins with what it says",
        )
    path = paths.presets_dir() / f"{name}{_SUFFIX}"
    text = _toml(preset)
    # What is written must be what will be read.
    if read_preset(text) != preset:
        raise Gpt2cliError(f"the preset {name} cannot be kept in a file")
    with only_writer(path):
        if path.exists() and not force:
            raise UsageError(f"there is a preset {name} already", hint="--force writes it anew")
        write_atomically(path, text)
    return path


def remove_preset(name: str) -> Path:
    """Remove the user's preset ``name``. Raises `UsageError`, `Gpt2cliError`."""
    check_name(name)
    path = paths.presets_dir() / f"{name}{_SUFFIX}"
    try:
        os.unlink(path)
    except FileNotFoundError:
        if name in builtin_names():
            raise UsageError(f"{name} is a built-in preset and stays") from None
        # It says which name was meant.
        find_preset(name)
    except OSError as error:
        raise Gpt2cliError(f"cannot remove {path}: {error.strerror or error}") from None
    return path


def _names_in(folder: Path) -> list[str]:
    try:
        names = [entry.removesuffix(_SUFFIX) for entry in os.listdir(folder) if entry.endswith(_SUFFIX)]
    except OSError:
        return []
    return sorted(name for name in names if _NAME.fullmatch(name) and not _DEVICE.fullmatch(name))


def _named(folder: Path, name: str) -> Named:
    path = folder / f"{name}{_SUFFIX}"
    try:
        return Named(name, path, _read(path))
    except UsageError as error:
        return Named(name, path, None, one_line(str(error)))


def _read(path: Path) -> Preset:
    """The preset in a file. Raises `UsageError`, which names the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise UsageError(f"{path}: it is larger than {MAX_FILE >> 20} MiB")
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: it is no UTF-8 text") from None
    try:
        return read_preset(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}", hint=error.hint) from None


def _toml(preset: Preset) -> str:
    """A file that says what the preset says."""
    import tomlkit

    document = tomlkit.document()
    for key, value in preset.document().items():
        if key != "fields":
            document.add(key, _item(value))
    if preset.fields:
        table = tomlkit.table()
        for name, text in preset.fields.items():
            table.add(name, _item(text))
        document.add("fields", table)
    return tomlkit.dumps(document)


def _item(value: Any) -> Any:
    """A value of TOML; a text of several lines stands on several lines where that keeps it as it is."""
    import tomlkit

    plain = isinstance(value, str) and value.replace("\n", "").isprintable()
    if isinstance(value, str) and plain and "\n" in value and not {'"', "\\"} & set(value):
        # It begins on a line of its own: the first line end after the quotes does not count.
        return tomlkit.string(value, multiline=True)
    return tomlkit.item(value)
