"""The prompt: from words, a flag, a file or stdin to one clean text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2cli.cli.flags import PromptFlags
from gpt2cli.errors import UsageError
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.reading import bad_bytes, clean, decode, without_final_newline, without_mark

MAX_PROMPT_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Named:
    """What a command line names as its text: at most one of ``typed`` and ``file``, and stdin after it."""

    typed: str | None
    file: Path | None
    stdin: bool


def named_sources(terminal: Terminal, flags: PromptFlags) -> Named:
    """Where the text of a command line comes from.

    It comes from the words, from ``--prompt`` or from ``--file``; from stdin when there is none of
    them. A last word ``-`` is stdin too, and what else is given then stands before it. Raises `UsageError`.
    """
    words, file = list(flags.words or ()), flags.file
    from_stdin = bool(words) and words[-1] == "-"
    if from_stdin:
        words.pop()
    if file is not None and str(file) == "-":
        from_stdin, file = True, None
    given = [bool(words), flags.prompt is not None, file is not None]
    if sum(given) > 1:
        raise UsageError("the prompt is given twice: use words, --prompt or --file")
    if not any(given) and not from_stdin:
        if terminal.stdin_is_terminal:
            raise UsageError(
                "there is no prompt",
                hint='give words, --prompt, --file, or - for stdin; --prompt "" starts a text from nothing',
            )
        from_stdin = True
    return Named(" ".join(words) if words else flags.prompt, file, from_stdin)


def read_prompt(terminal: Terminal, flags: PromptFlags) -> str:
    """The prompt of a command line, from `named_sources`; two are joined by a space, as words are.

    Raises `UsageError`.
    """
    named = named_sources(terminal, flags)
    parts = []
    if named.typed is not None:
        parts.append(clean_typed(terminal, named.typed, strict=flags.strict))
    if named.file is not None:
        parts.append(read_text_file(terminal, named.file, strict=flags.strict))
    if named.stdin:
        data = terminal.read_stdin(MAX_PROMPT_BYTES + 1)
        parts.append(
            _clean(terminal, _decode(_capped(data, "standard input")), "standard input", flags.strict)
        )
    return join_parts(parts)


def clean_typed(terminal: Terminal, text: str, *, strict: bool) -> str:
    """A text of the command line, cleaned. Raises `UsageError`."""
    return _clean(terminal, text, "the prompt", strict)


def read_text_file(terminal: Terminal, file: Path, *, strict: bool) -> str:
    """The text of a file, read as a prompt is. Raises `UsageError`."""
    return _clean(terminal, _decode(_read_file(file)), str(file), strict)


def read_lines(terminal: Terminal, *, strict: bool) -> Iterator[str]:
    """Each line of stdin, cleaned as a prompt is, as it comes. Raises `UsageError`, `Gpt2cliError`."""
    for number, line in enumerate(terminal.lines(MAX_PROMPT_BYTES), 1):
        if number == 1:
            line = without_mark(line)
        yield _clean(terminal, decode(line), f"line {number}", strict)


def join_parts(parts: Sequence[str]) -> str:
    """The parts, joined by a space as words are; none after a white space that is already there."""
    if len(parts) == 2:
        before, after = parts
        return before + after if not before or before[-1].isspace() else f"{before} {after}"
    return "".join(parts)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _capped(file.read(MAX_PROMPT_BYTES + 1), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def _capped(data: bytes, source: str) -> bytes:
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"{source} is longer than {MAX_PROMPT_BYTES >> 20} MiB")
    return data


def _decode(data: bytes) -> str:
    return without_final_newline(decode(without_mark(data)))


def _clean(terminal: Terminal, text: str, source: str, strict: bool) -> str:
    """``text`` with NUL and what is no UTF-8 replaced by U+FFFD, and a warning; ``strict`` refuses it."""
    cleaned, bad = clean(text)
    if bad and strict:
        raise UsageError(bad_bytes(source, bad))
    if bad:
        terminal.warn(f"{bad_bytes(source, bad)}; replaced")
    return cleaned
