"""The log: a line for each answer. What people wrote, and what the model said, is never in it."""

from __future__ import annotations

import json
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from gpt2cli.errors import Gpt2cliError

KNOWN_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")


@dataclass
class Record:
    """What is known of a request while it is answered."""

    method: str
    path: str
    """One of ours, or ``?``: another one is the client's text."""
    status: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None
    came: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self.came

    def line(self, *, as_json: bool) -> str:
        """The line of the log."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        method = self.method if self.method in KNOWN_METHODS else "?"
        if as_json:
            return json.dumps(
                {
                    "time": now,
                    "method": method,
                    "path": self.path,
                    "status": self.status,
                    "prompt_tokens": self.prompt_tokens,
                    "completion_tokens": self.completion_tokens,
                    "first_token_s": None if self.first_token_s is None else round(self.first_token_s, 4),
                    "seconds": round(self.seconds, 4),
                }
            )
        parts = [f"{now} {method} {self.path} {self.status}"]
        if self.prompt_tokens is not None:
            parts.append(f"{self.prompt_tokens} + {self.completion_tokens or 0} tokens")
        if self.first_token_s is not None:
            parts.append(f"first after {self.first_token_s:.3f} s")
        return ", ".join([*parts, f"{self.seconds:.3f} s"])


class Log:
    """Writes lines in a thread of its own: who does not read them must not keep clients waiting."""

    def __init__(
        self, write: Callable[[str], None] | None, *, as_json: bool = False, debug: bool = False
    ) -> None:
        self._write, self._json, self._debug = write, as_json, debug
        self._lines: queue.Queue[str | None] = queue.Queue(maxsize=10_000)
        self._thread = threading.Thread(target=self._run, name="gpt2cli log", daemon=True)
        if write is not None:
            self._thread.start()

    def answer(self, record: Record) -> None:
        """An answer was given."""
        self._put(record.line(as_json=self._json))

    def say(self, text: str) -> None:
        """Something else has happened."""
        self._put(
            json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "message": text})
            if self._json
            else text
        )

    def failure(self, where: str, error: BaseException) -> None:
        """Something has failed that should not. Its message may have a client's words: only its kind is told,
        and all of it with ``debug``.
        """
        if isinstance(error, Gpt2cliError):
            self.say(f"error: {where}: {error}")
        else:
            self.say(
                f"error: {where}: {type(error).__name__}; this is a defect of gpt2cli, --debug shows where"
            )
        if self._debug:
            self.say("".join(traceback.format_exception(error)).rstrip())

    def close(self, patience_s: float = 1.0) -> None:
        """Write what is left, but do not wait long for it."""
        if self._write is not None:
            try:
                self._lines.put_nowait(None)
            except queue.Full:
                return
            self._thread.join(patience_s)

    def _put(self, line: str) -> None:
        if self._write is not None:
            try:
                self._lines.put_nowait(line)
            except queue.Full:
                # Nobody reads: what cannot be written is lost.
                return

    def _run(self) -> None:
        assert self._write is not None
        while (line := self._lines.get()) is not None:
            self._write(line + "\n")
