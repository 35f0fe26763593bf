"""Every error a user can meet, and the exit code of each.

::

    Gpt2cliError            1    failed at run time
    ├── UsageError          2    wrong usage or input
    │   └── InvalidOption   2    an option's value is outside its range
    ├── ModelNotFound       3    no such model
    ├── Unavailable         4    offline, network, not authorised
    ├── ModelFileError      5    a file is corrupt or was refused
    ├── PromptTooLong       6    the prompt does not fit the context
    └── ReaderGone        141    the reader of the pipe went away

    Signalled                    no Exception, so that no library takes it for a failure of its own
    ├── Interrupted       130    SIGINT
    └── Terminated        143    SIGTERM

``str(error)`` is the one line shown after ``error: ``; ``error.hint`` the next step, if there is one.
"""

from __future__ import annotations

from typing import ClassVar


class Gpt2cliError(Exception):
    """A failure that is reported to the user in one line."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(Gpt2cliError):
    """The command line, the environment, the settings or the input are wrong."""

    exit_code = 2


class InvalidOption(UsageError):
    """The value of an option lies outside its range.

    ``option`` is the field's name (``top_k``); the command line shows it as its flag.
    """

    def __init__(self, option: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{option.replace('_', '-')}: {message}", hint=hint)
        self.option, self.reason = option, message


class ModelNotFound(Gpt2cliError):
    """No directory and no model of that name."""

    exit_code = 3


class Unavailable(Gpt2cliError):
    """What is asked for may exist, but cannot be reached now."""

    exit_code = 4


class ModelFileError(Gpt2cliError):
    """A file of a model is damaged, or of a kind that is refused."""

    exit_code = 5


class PromptTooLong(Gpt2cliError):
    """The prompt leaves no room in the context for a single new token."""

    exit_code = 6


class ReaderGone(Gpt2cliError):
    """Nobody reads our standard output any more (EPIPE)."""

    exit_code = 141


class Signalled(BaseException):
    """A signal asks the program to end."""

    exit_code: ClassVar[int]


class Interrupted(Signalled):
    """SIGINT."""

    exit_code = 130


class Terminated(Signalled):
    """SIGTERM."""

    exit_code = 143
