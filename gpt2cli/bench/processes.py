"""Whole processes, seen from outside: when their output can be read, and what memory they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpt2cli import paths
from gpt2cli.bench.report import Contender, milestone
from gpt2cli.checkpoint import Checkpoint
from gpt2cli.errors import Gpt2cliError
from gpt2cli.options import LoadOptions, Precision
from gpt2cli.settings import KEYS, environment_name

PROMPT = "The future of artificial intelligence is"
MILESTONES = (1, 50, 300)
"""The tokens whose time is taken, from 1."""
FIRST_RUN_MILESTONES = (1, 50)
SAMPLE_S = 0.01


@dataclass(frozen=True, slots=True)
class Task:
    """What every process is to do: continue `PROMPT` up to the last of ``milestones``."""

    checkpoint: Checkpoint
    load: LoadOptions
    device: str
    threads: int
    milestones: tuple[int, ...]
    environ: Mapping[str, str]
    """The user's own."""

    @property
    def tokens(self) -> int:
        """How many tokens are generated."""
        return self.milestones[-1]


class Process(Protocol):
    """A contender that is a command."""

    contender: Contender

    def warm_up(self) -> None:
        """Run it without taking the time, but its memory."""
        ...

    def measure(self) -> None:
        """Add the figures of one round. Raises `Gpt2cliError` for a process that fails."""
        ...


@dataclass(slots=True)
class Memory:
    """The most memory that a process was seen to take, in bytes; 0 where it is not known.

    ``mapped`` are pages of files, which all processes that map them share.
    """

    private: int = 0
    mapped: int = 0
    peak: int = 0

    def add_to(self, contender: Contender) -> None:
        """Note what is known."""
        if self.private:
            contender.add("private_bytes", self.private)
            contender.add("mapped_bytes", self.mapped)
        elif self.peak:
            contender.add("peak_bytes", self.peak)


@dataclass(slots=True)
class Finished:
    """A process that ended: what could be read from it and when, in seconds from its start."""

    reads: list[tuple[float, bytes]] = field(default_factory=list)
    ended_s: float = 0.0
    memory: Memory = field(default_factory=Memory)

    @property
    def exit_s(self) -> float:
        """From the last output to the end."""
        return self.ended_s - self.reads[-1][0]

    def lines(self) -> list[tuple[float, bytes]]:
        """The lines of its output, each with the time when it was complete."""
        found, begun = [], b""
        for seconds, data in self.reads:
            *whole, begun = (begun + data).split(b"\n")
            found += [(seconds, line) for line in whole]
        return found


def run_process(
    name: str, command: Sequence[str], environ: Mapping[str, str], *, memory: bool = False
) -> Finished:
    """Run ``command`` to its end. With ``memory`` it is watched, too, which takes a little of its time.

    Raises `Gpt2cliError`, which begins with ``name``, where it cannot be started, fails or writes nothing.
    """
    finished = Finished()
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environ,
                bufsize=0,
            )
        except OSError as error:
            raise Gpt2cliError(f"{name}: {command[0]} cannot be started: {error.strerror or error}") from None
        output = process.stdout
        assert output is not None
        stop = threading.Event()
        watcher = threading.Thread(target=_watch_memory, args=(process.pid, finished.memory, stop))
        if memory:
            watcher.start()
        try:
            while data := os.read(output.fileno(), 65536):
                finished.reads.append((time.perf_counter() - started, data))
            finished.memory.peak = _reap(process)
        finally:
            stop.set()
            if process.returncode is None:
                process.kill()
                process.wait()
            output.close()
            if memory:
                watcher.join()
        finished.ended_s = time.perf_counter() - started
        if process.returncode != 0 or not finished.reads:
            errors.seek(0)
            said = _last_words(errors.read().decode("utf-8", "replace"))
            raise Gpt2cliError(f"{name}: its process ended with {process.returncode}{said}")
    return finished


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; its peak memory in bytes, 0 where the system does not say.

    It is never below that of the process that started it, which is small at that time.
    """
    if not hasattr(os, "wait4"):
        process.wait()
        return 0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # Kilobytes on Linux, bytes on macOS.
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _last_words(errors: str) -> str:
    """What a process said of its end: our own line of an error, or the last there is."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "")
    return f": {said.removeprefix('error: ')}" if said else ""


def _watch_memory(pid: int, memory: Memory, stop: threading.Event) -> None:
    place = Path(f"/proc/{pid}/smaps_rollup")
    while not stop.wait(SAMPLE_S):
        try:
            lines = place.read_text("ascii").splitlines()
        except OSError:
            continue
        sizes = {key: int(value.split()[0]) * 1024 for key, _, value in (x.partition(":") for x in lines[1:])}
        private = sizes.get("Anonymous", 0)
        memory.private = max(memory.private, private)
        memory.mapped = max(memory.mapped, sizes.get("Rss", 0) - private)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for conversions, on the disk where they are kept; it goes at the end."""
    place = paths.cache_dir() / "weights"
    try:
        place.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".bench-", dir=place, ignore_cleanup_errors=True)
    except OSError:
        return tempfile.TemporaryDirectory(prefix="gpt2cli-bench-", ignore_cleanup_errors=True)


class OurProcess:
    """``gpt2cli generate``, in an empty home of its own: no settings, and only its own conversion cached."""

    def __init__(self, task: Task, precision: Precision, contender: Contender, home: str) -> None:
        self.contender = contender
        self._task, self._precision, self._home = task, precision, home
        self._first_run = milestones_within(task.tokens, FIRST_RUN_MILESTONES)

    def warm_up(self) -> None:
        """The first run in this home converts, the second finds it done."""
        first = self._run(self._home, self._first_run[-1], memory=True)
        if first.memory.private:
            self.contender.add("first_run_private_bytes", first.memory.private)
        again = self._run(self._home, self._task.tokens, memory=True)
        again.memory.add_to(self.contender)
        self.contender.kernels = tuple(_events(again)[0][1]["engine"]["kernels"])

    def measure(self) -> None:
        """The first run ever, in a new home, and one in a home that has the conversion."""
        with scratch() as home:
            arrivals = _arrivals(self._run(home, self._first_run[-1]))
        for number in self._first_run:
            self.contender.add(f"first_run_{milestone(number)}", arrivals[number - 1])
        cached = self._run(self._home, self._task.tokens)
        self.contender.add_run(_arrivals(cached), self._task.milestones)
        self.contender.add("exit_s", cached.exit_s)

    def _run(self, home: str, tokens: int, *, memory: bool = False) -> Finished:
        task = self._task
        # A text that happens to repeat would be guessed, and its figures say nothing of others.
        command = [sys.executable, "-m", "gpt2cli", "generate", "--jsonl", "--offline", "--quiet"]
        command += ["--draft", "off"]
        command += ["-m", str(task.checkpoint.directory.resolve()), "--precision", self._precision]
        command += ["--device", task.load.device, "--max-new-tokens", str(tokens), "--ignore-eos"]
        # As transformers and llama.cpp are asked to draw, whatever the model's own defaults are.
        command += ["--seed", "0", "--temperature", "1", "--top-k", "50", "--top-p", "1"]
        if task.load.threads is not None:
            command += ["--threads", str(task.load.threads)]
        if task.load.allow_pickle:
            command.append("--allow-pickle")
        settings = {environment_name(key) for key in KEYS}
        environ = {name: value for name, value in task.environ.items() if name not in settings}
        environ["GPT2CLI_HOME"] = home
        name = f"gpt2cli {self._precision}"
        return run_process(name, [*command, "--prompt", PROMPT], environ, memory=memory)


def _events(finished: Finished) -> list[tuple[float, dict[str, Any]]]:
    return [(seconds, json.loads(line)) for seconds, line in finished.lines()]


def _arrivals(finished: Finished) -> list[float]:
    """When each token was there."""
    return [seconds for seconds, event in _events(finished) if event["event"] == "token"]


def time_import_torch(environ: Mapping[str, str]) -> float:
    """Seconds that ``python -c "import torch"`` takes, the yardstick of what starts without it."""
    started = time.perf_counter()
    command = [sys.executable, "-c", "import torch"]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True, env=environ)
    return time.perf_counter() - started


def milestones_within(room: int, wanted: Iterable[int] = MILESTONES) -> tuple[int, ...]:
    """The milestones that fit ``room`` new tokens, the first in any case."""
    first, *later = wanted
    return (first, *(number for number in later if number <= room))
