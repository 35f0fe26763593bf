"""A file as the text that is edited, and back to the same bytes."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from gpt2cli.errors import Gpt2cliError, UsageError

MAX_BYTES = 4 * 2**20
"""What an editor that stays quick at every key takes; the model sees a few kilobytes of it anyway."""
_LONE = re.compile(r"\r(?!\n)|(?<!\r)\n")


@dataclass(frozen=True, slots=True)
class Form:
    """What of a file is not in the text: a byte-order mark, line ends that are CRLF, the final newline."""

    mark: bool = False
    crlf: bool = False
    final_newline: bool = True


def decoded(data: bytes, name: str) -> tuple[str, Form]:
    """The text of a file's bytes, without what its `Form` says. Raises `UsageError` for what is no UTF-8.

    Line ends become newlines where all of them are CRLF; otherwise each carriage return stays a character.
    """
    mark = data.startswith(codecs.BOM_UTF8)
    try:
        text = data[len(codecs.BOM_UTF8) if mark else 0 :].decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{name}: it is no UTF-8 text (byte {error.start + 1}, line {line})",
            hint="convert it first, as with iconv -f latin1 -t utf-8; it was not changed",
        ) from None
    crlf = "\r\n" in text and _LONE.search(text) is None
    if crlf:
        text = text.replace("\r\n", "\n")
    # A file of one line end alone is a text: an empty one has none.
    final = text.endswith("\n") and text != "\n"
    return text.removesuffix("\n") if final else text, Form(mark, crlf, final or not text)


def encoded(text: str, form: Form) -> bytes:
    """The bytes of a file: `decoded` turned round."""
    whole = text + "\n" if form.final_newline and text else text
    if form.crlf:
        whole = whole.replace("\n", "\r\n")
    return (codecs.BOM_UTF8 if form.mark else b"") + whole.encode("utf-8")


def read_bytes(path: Path) -> bytes | None:
    """The content of ``path``; None where there is no file yet. Raises `UsageError`, `Gpt2cliError`."""
    data = _beginning(path, MAX_BYTES + 1)
    if data is not None and len(data) > MAX_BYTES:
        raise too_large(path)
    return data


def differs(path: Path, data: bytes | None) -> bool:
    """Whether the file is another than ``data``, or than none. Raises `UsageError`, `Gpt2cliError`."""
    return _beginning(path, len(data or b"") + 1) != data


def too_large(path: Path) -> UsageError:
    """The error for a file, or a text for it, that is larger than `MAX_BYTES`."""
    return UsageError(f"{path}: it is larger than {MAX_BYTES >> 20} MiB", hint="split it into parts")


def _beginning(path: Path, size: int) -> bytes | None:
    """The first bytes of a file; None where there is none."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: it is no regular file")
        with path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Gpt2cliError(f"{path}: {error.strerror or error}") from None
