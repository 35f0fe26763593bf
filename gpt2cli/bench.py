"""How fast a model runs on this machine: measuring, no printing.

Contenders take turns, so that what the machine does meanwhile hits all of them; a figure is the median
of the rounds. transformers is measured with its defaults, fp32 and greedy `generate`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from gpt2cli.checkpoint import Checkpoint, ModelConfig
from gpt2cli.core.cores import default_threads
from gpt2cli.core.engine import Engine
from gpt2cli.core.results import Stats
from gpt2cli.errors import Gpt2cliError
from gpt2cli.options import GenerateOptions, LoadOptions, Precision

STEPS = 32
"""Tokens whose time is taken in one round."""
BATCH = 8
SHORT = 32
PREFILLS = (32, 512)
YARDSTICK = "transformers"
IMPORT_TORCH = "import torch"
BUSY_SHARE = 0.15
"""Other processes' use of the machine, in cores, from which figures are called spoiled."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over all rounds: median, lowest and highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(slots=True)
class Contender:
    """What was measured of one engine.

    ``figures``: ``load_s``, ``prefill_N`` and ``decode_…`` in tokens per second, ``step_ratio`` (a step at
    a long context over one at a short one), ``first_token_s`` of a new process, ``peak_bytes`` of it,
    ``busy_ratio`` (decoding with one core kept busy over quiet decoding).
    """

    name: str
    kernels: tuple[str, ...] = ()
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, measure: str, value: float) -> None:
        """One round's value."""
        self.values.setdefault(measure, []).append(value)

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures, over the rounds so far."""
        return {measure: Figure.of(values) for measure, values in self.values.items()}


@dataclass(slots=True)
class Report:
    """A whole benchmark. ``others`` is how many cores other processes used meanwhile, None where unknown."""

    machine: dict[str, Any]
    contenders: list[Contender]
    import_torch: list[float] = field(default_factory=list)
    others: float | None = None

    @property
    def spoiled(self) -> bool:
        """Whether the machine was too busy for the figures to be trusted."""
        return self.others is not None and self.others > BUSY_SHARE

    def yardstick(self) -> Contender | None:
        """transformers, when it was measured."""
        return next((each for each in self.contenders if each.name == YARDSTICK), None)

    def ratio(self, contender: Contender, measure: str) -> float | None:
        """The median of a contender's rounds over the yardstick's of the same round."""
        other = self.yardstick()
        if other is None or measure not in other.values or measure not in contender.values:
            return None
        pairs = zip(contender.values[measure], other.values[measure], strict=False)
        return statistics.median(ours / theirs for ours, theirs in pairs)


class _Runner(Protocol):
    """An engine that can be timed."""

    contender: Contender

    def prefill(self, tokens: int) -> float:
        """Seconds for a prompt of so many tokens, to the logits after it."""
        ...

    def decode(self, rows: int, context: int) -> float:
        """Seconds for `STEPS` steps of ``rows`` sequences after ``context`` tokens."""
        ...


class _Ours:
    def __init__(self, checkpoint: Checkpoint, load: LoadOptions, precision: Precision) -> None:
        started = time.perf_counter()
        options = LoadOptions(
            device=load.device,
            precision=precision,
            threads=load.threads,
            allow_pickle=load.allow_pickle,
            converted=load.converted,
        )
        self._engine = Engine.from_checkpoint(checkpoint, options)
        self.contender = Contender(precision, self._engine.info.kernels)
        self.contender.add("load_s", time.perf_counter() - started)
        self._measured = 0

    def prefill(self, tokens: int) -> float:
        return self._stats(tokens, GenerateOptions(temperature=0, max_new_tokens=1)).prefill_s

    def decode(self, rows: int, context: int) -> float:
        options = GenerateOptions(seed=0, top_k=1, max_new_tokens=STEPS + 1, num_return_sequences=rows)
        return self._stats(context, replace(options, ignore_eos=True)).decode_s

    def _stats(self, tokens: int, options: GenerateOptions) -> Stats:
        # No two prompts begin alike: what is kept of the last one would not be computed.
        self._measured += 1
        first = self._measured % self._engine.config.vocab_size
        ids = [first, *_ids(self._engine.config, tokens)[1:]]
        return self._engine.generate(ids, options).stats


class _Transformers:
    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        from transformers import GPT2LMHeadModel
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        started = time.perf_counter()
        self._model = GPT2LMHeadModel.from_pretrained(
            str(checkpoint.directory), local_files_only=True, dtype=torch.float32
        )
        self._model.eval()  # type: ignore[no-untyped-call]
        self._config, self._threads = checkpoint.config, threads
        self.contender = Contender(YARDSTICK, ("fp32",))
        self.contender.add("load_s", time.perf_counter() - started)

    def prefill(self, tokens: int) -> float:
        torch.set_num_threads(self._threads)
        ids = torch.tensor([_ids(self._config, tokens)])
        started = time.perf_counter()
        with torch.inference_mode():
            self._model(ids).logits[0, -1].sum().item()
        return time.perf_counter() - started

    def decode(self, rows: int, context: int) -> float:
        torch.set_num_threads(self._threads)
        ids = torch.tensor([_ids(self._config, context)] * rows)
        return self._generate(ids, STEPS + 1) - self._generate(ids, 1)

    def _generate(self, ids: torch.Tensor, new: int) -> float:
        started = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - started


def run_bench(
    checkpoint: Checkpoint,
    load: LoadOptions,
    precisions: Sequence[Precision],
    *,
    against_transformers: bool,
    rounds: int,
    busy: bool,
    cold: bool,
    report: Callable[[str], None],
) -> Report:
    """Measure the model; ``report`` is told what is being done. Raises `Gpt2cliError`."""
    runners: list[_Runner] = [_Ours(checkpoint, load, precision) for precision in precisions]
    threads = load.threads or default_threads()
    result = Report(_machine(threads), [runner.contender for runner in runners])
    for runner in runners:
        name = runner.contender.name
        report(f"{name} is loaded ({', '.join(runner.contender.kernels)})")
    if against_transformers:
        runners.append(_Transformers(checkpoint, threads))
        result.contenders.append(runners[-1].contender)
    with _others_watched(result):
        for number in range(rounds + 1):
            report(f"round {number} of {rounds}" if number else "warming up")
            for runner in runners:
                _one_round(runner, checkpoint.config, keep=number > 0)
    if busy:
        report("with one core kept busy")
        _measure_busy(runners[: len(precisions)], rounds)
    del runners
    if cold:
        _measure_cold(result, checkpoint, load, precisions, rounds, report)
    return result


def _one_round(runner: _Runner, config: ModelConfig, *, keep: bool) -> None:
    def add(measure: str, value: float) -> None:
        if keep:
            runner.contender.add(measure, value)

    for tokens in PREFILLS:
        if tokens < config.n_positions:
            add(f"prefill_{tokens}", tokens / runner.prefill(tokens))
    short = min(SHORT, config.n_positions // 2)
    one = runner.decode(1, short)
    add("decode_1", STEPS / one)
    add(f"decode_{BATCH}", BATCH * STEPS / runner.decode(BATCH, short))
    long = long_context(config)
    if long > 2 * short:
        taken = runner.decode(1, long)
        add("decode_long", STEPS / taken)
        add("step_ratio", taken / one)


def long_context(config: ModelConfig) -> int:
    """The tokens of context at which long contexts are measured: 1,000 if the model has as many."""
    return min(1000 - STEPS // 2, config.n_positions - STEPS - 2)


def _measure_busy(runners: Sequence[_Runner], rounds: int) -> None:
    """Decode while another process keeps a core busy, after a second to get used to it."""
    for runner in runners:
        quiet = [runner.decode(1, SHORT) for _ in range(rounds)]
        with _busy_core():
            deadline = time.perf_counter() + 2.0
            while time.perf_counter() < deadline:
                runner.decode(1, SHORT)
            for before in quiet:
                runner.contender.add("busy_ratio", before / runner.decode(1, SHORT))
        deadline = time.perf_counter() + 2.0
        while time.perf_counter() < deadline:
            runner.decode(1, SHORT)


@contextmanager
def _busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _measure_cold(
    result: Report,
    checkpoint: Checkpoint,
    load: LoadOptions,
    precisions: Sequence[Precision],
    rounds: int,
    report: Callable[[str], None],
) -> None:
    """The first token of a new process, beside what importing torch alone takes."""
    for number in range(rounds):
        report(f"first token of a new process, {number + 1} of {rounds}")
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], stdin=subprocess.DEVNULL, check=True)
        result.import_torch.append(time.perf_counter() - started)
        for contender, precision in zip(result.contenders, precisions, strict=False):
            output, peak = _child(_one_shot(checkpoint, load, precision))
            contender.add("first_token_s", json.loads(output)["timings"]["first_token_s"])
            if peak is not None:
                contender.add("peak_bytes", peak)


def _one_shot(checkpoint: Checkpoint, load: LoadOptions, precision: Precision) -> list[str]:
    command = [sys.executable, "-m", "gpt2cli", "generate", "--offline", "--json", "-q"]
    command += ["-m", str(checkpoint.directory.resolve()), "--precision", precision]
    command += ["--max-new-tokens", "1", "--device", load.device]
    if load.threads is not None:
        command += ["--threads", str(load.threads)]
    return [*command, "The future of AI is"]


_LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, file=sys.stderr)
"""
"""Starts a command from a small process: a child's peak memory is never below that of who started it."""


def _child(command: Sequence[str]) -> tuple[bytes, int | None]:
    """A process's output and its peak memory in bytes (None where the system does not say)."""
    launcher = [sys.executable, "-c", _LAUNCHER] if hasattr(os, "wait4") else []
    done = subprocess.run([*launcher, *command], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    code, peak = done.returncode, None
    if launcher:
        code, peak = map(int, done.stderr.split()[-2:])
        # Kilobytes on Linux, bytes on macOS.
        peak *= 1 if sys.platform == "darwin" else 1024
    if code != 0:
        raise Gpt2cliError(f"{' '.join(command[1:4])} … ended with {code}")
    return done.stdout, peak


def _ids(config: ModelConfig, tokens: int) -> list[int]:
    """A prompt that any model takes."""
    return [(7 * n + 11) % config.vocab_size for n in range(tokens)]


@contextmanager
def _others_watched(result: Report) -> Iterator[None]:
    """Note in ``result`` how many cores other processes use meanwhile."""
    before = _busy_seconds()
    own, started = time.process_time(), time.perf_counter()
    yield
    after = _busy_seconds()
    if before is not None and after is not None:
        others = (after - before) - (time.process_time() - own)
        result.others = max(0.0, others / (time.perf_counter() - started))


def _busy_seconds() -> float | None:
    """CPU seconds of all processes since the start of the machine, on the CPUs this one may use."""
    try:
        usable = {f"cpu{n}" for n in os.sched_getaffinity(0)}
        total = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *numbers = line.split()
            if name in usable:
                user, nice, system, _, _, irq, softirq, *_ = map(int, numbers)
                total += user + nice + system + irq + softirq
        return total / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


def _machine(threads: int) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def as_json(report: Report) -> dict[str, Any]:
    """The report as a document."""

    def figures(contender: Contender) -> Mapping[str, Any]:
        return {
            measure: {"median": f.median, "low": f.low, "high": f.high}
            for measure, f in contender.figures.items()
        }

    def ratios(contender: Contender) -> Mapping[str, float]:
        found = {m: report.ratio(contender, m) for m in contender.values if m.startswith(("dec", "pre"))}
        return {measure: ratio for measure, ratio in found.items() if ratio is not None}

    imported = Figure.of(report.import_torch).median if report.import_torch else None
    return {
        "machine": report.machine,
        "other_processes_cores": report.others,
        "spoiled": report.spoiled,
        "import_torch_s": imported,
        "engines": [
            {
                "name": contender.name,
                "kernels": contender.kernels,
                "figures": figures(contender),
                "to_transformers": ratios(contender),
            }
            for contender in report.contenders
        ],
    }
