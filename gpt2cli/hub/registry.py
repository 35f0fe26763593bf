"""Names: what a user may call a model, and the repository that is meant.

A name from outside (command line, settings, a server) is checked here, once, by `parse_name`;
behind it, names are safe to build paths from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpt2cli.errors import UsageError
from gpt2cli.options import shown

BUILTIN = "tiny"

ALIASES: dict[str, str] = {
    "gpt2": "openai-community/gpt2",
    "small": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
    "distil": "distilbert/distilgpt2",
}

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?:{_PART}/)?{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A valid name, as the user wrote it, and the repository it stands for."""

    given: str
    repository: str

    @property
    def spellings(self) -> tuple[str, ...]:
        """The names under which the model may lie on disk: the repository's, and older or local ones."""
        if self.repository not in ALIASES.values():
            return (self.repository,)
        return tuple(dict.fromkeys((self.repository, self.given, self.repository.rpartition("/")[2])))


def is_name(text: str) -> bool:
    """Whether ``text`` can be the name of a model."""
    return bool(_NAME.fullmatch(text)) and ".." not in text and "--" not in text


def parse_name(text: str) -> ModelName:
    """A checked name: ``gpt2``, ``owner/name`` or a local one. Raises `UsageError`."""
    if not is_name(text):
        raise UsageError(
            f"{shown(text)} is neither a directory nor a model name",
            hint="a name is like gpt2, distilgpt2 or owner/name",
        )
    return ModelName(text, ALIASES.get(text, text))


def parse_revision(text: str) -> str:
    """A checked branch, tag or commit. Raises `UsageError`."""
    if not _REVISION.fullmatch(text) or ".." in text or "//" in text or text.endswith("/"):
        raise UsageError(f"{shown(text)} is not a revision", hint="a revision is a branch, a tag or a commit")
    return text
