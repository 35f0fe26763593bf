"""Running the command line: in process through `main`, or as a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer

from gpt2cli.cli.app import command_tree, main
from gpt2cli.terminal.streams import Terminal

COMMAND = (sys.executable, "-m", "gpt2cli")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as one JSON document of a run without error."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def events(self) -> list[Any]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Tty(io.BytesIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def call(*arguments: str | os.PathLike[str], stdin: bytes = b"", tty: str = "", **environ: str) -> Outcome:
    """Run `main` in this process; ``tty`` names the streams that are terminals, as in ``"in out err"``."""
    names = ("in", "out", "err")
    streams = [Tty() if name in tty.split() else io.BytesIO() for name in names]
    streams[0].write(stdin)
    streams[0].seek(0)
    terminal = Terminal(*streams, environ={**os.environ, "TERM": "xterm", **environ})
    code = main([os.fspath(argument) for argument in arguments], terminal)
    if "torch" in sys.modules:
        # --threads holds for the whole process.
        sys.modules["torch"].set_num_threads(1)
    out, err = (stream.getvalue().decode() for stream in streams[1:])
    return Outcome(code, out, err)


def start(*arguments: str | os.PathLike[str], **keywords: Any) -> subprocess.Popen[bytes]:
    """Start the command as a process, its streams piped unless ``keywords`` say otherwise."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    # Unbuffered, so that what a test reads first is not lost to communicate().
    return subprocess.Popen([*COMMAND, *map(os.fspath, arguments)], bufsize=0, **{**pipes, **keywords})


def run(*arguments: str | os.PathLike[str], stdin: bytes = b"", **keywords: Any) -> Outcome:
    """Run the command as a process to its end."""
    process = start(*arguments, **keywords)
    out, err = process.communicate(stdin, timeout=60)
    return Outcome(process.returncode, (out or b"").decode(), (err or b"").decode())


def shell(line: str, timeout: float = 60, **environ: str) -> Outcome:
    """Run a line of bash in which ``$G`` is the command."""
    whole = {**os.environ, "G": f"{sys.executable} -m gpt2cli", **environ}
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=timeout, env=whole, check=False)
    return Outcome(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode())


def command_paths() -> Iterator[tuple[str, ...]]:
    """The words after ``gpt2cli`` of every command and group, the program itself () first."""

    def walk(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*path, name))

    yield from walk(typer.main.get_command(command_tree()), ())
