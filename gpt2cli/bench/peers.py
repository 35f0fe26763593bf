"""Other engines, measured as ours are: transformers (fp32) and llama.cpp."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpt2cli.bench.processes import PROMPT, Finished, Task, run_process
from gpt2cli.bench.report import Contender, milestone
from gpt2cli.bench.settled import Sizes, prompt_ids
from gpt2cli.checkpoint import Checkpoint
from gpt2cli.errors import Gpt2cliError, UsageError

TRANSFORMERS = "transformers"
LLAMA: Final = "llama.cpp"
COMPLETION, BENCH = "llama-completion", "llama-bench"
SAMPLING = ("--seed", "0", "--temp", "1", "--top-k", "50", "--top-p", "1", "--min-p", "0")

PLAIN_SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

directory, device, threads, new, prompt = sys.argv[1:]
torch.set_num_threads(int(threads))
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(device).eval()

class Lines(BaseStreamer):
    prompt = True
    def put(self, ids):
        if not self.prompt:
            print(json.dumps(tokenizer.decode(ids)), flush=True)
        self.prompt = False
    def end(self):
        pass

ids = tokenizer(prompt, return_tensors="pt").to(device)
with torch.inference_mode():
    model.generate(**ids, min_new_tokens=int(new), max_new_tokens=int(new), do_sample=True, temperature=1.0,
                   top_k=50, top_p=1.0, pad_token_id=0, streamer=Lines())
"""
"""What people write, but for its output: a line for each token, so that it can be timed from outside."""


class TransformersProcess:
    """A plain script as a process."""

    def __init__(self, task: Task, contender: Contender) -> None:
        self.contender, self._task = contender, task

    def warm_up(self) -> None:
        self._run(memory=True).memory.add_to(self.contender)

    def measure(self) -> None:
        finished = self._run()
        arrivals = [seconds for seconds, _ in finished.lines()]
        self.contender.add_run(arrivals, self._task.milestones)
        self.contender.add("exit_s", finished.exit_s)

    def _run(self, *, memory: bool = False) -> Finished:
        task = self._task
        command = [sys.executable, "-c", PLAIN_SCRIPT, str(task.checkpoint.directory.resolve())]
        command += [task.device, str(task.threads), str(task.tokens), PROMPT]
        environ = {**task.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        return run_process(TRANSFORMERS, command, environ, memory=memory)


class TransformersRunner:
    """The model in this process, by transformers' defaults: fp32 and greedy `generate`."""

    def __init__(self, checkpoint: Checkpoint, device: str, threads: int, contender: Contender) -> None:
        import torch
        from transformers import GPT2LMHeadModel
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model = GPT2LMHeadModel.from_pretrained(
            str(checkpoint.directory), local_files_only=True, dtype=torch.float32
        )
        self._model: Any = model.to(device).eval()  # type: ignore[arg-type]
        self._config, self._device, self._threads = checkpoint.config, device, threads
        self._steps = Sizes.of(checkpoint.config).steps
        self.contender = contender
        contender.kernels = (f"torch {torch.__version__}, fp32",)

    def prefill(self, tokens: int) -> float:
        import torch

        ids = self._prompts(1, tokens)
        started = time.perf_counter()
        with torch.inference_mode():
            self._model(ids).logits[0, -1].sum().item()
        return time.perf_counter() - started

    def decode(self, rows: int, context: int) -> float:
        import torch

        ids, clock = self._prompts(rows, context), _Clock()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=self._steps + 1,
            max_new_tokens=self._steps + 1,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
        # The prompt is put first, and the first token of each row comes with it.
        return clock.times[-1] - clock.times[1]

    def close(self) -> None:
        self._model = None

    def _prompts(self, rows: int, tokens: int) -> Any:
        """[rows, tokens]"""
        import torch

        torch.set_num_threads(self._threads)
        return torch.tensor([prompt_ids(self._config, tokens)] * rows, device=self._device)


class _Clock:
    """A streamer that notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """The two programs, and the files they are to be measured with."""

    completion: str
    bench: str
    files: tuple[Path, ...]


def check_transformers() -> None:
    """Raise `UsageError` where transformers is not installed."""
    if importlib.util.find_spec(TRANSFORMERS) is None:
        raise UsageError("--against transformers: it is not installed", hint="pip install transformers")


def find_llama(files: Sequence[Path]) -> LlamaCpp:
    """The programs on PATH. Raises `UsageError` where one is missing, or a file is no GGUF."""
    if not files:
        raise UsageError(
            f"--against {LLAMA} needs --gguf FILE",
            hint="the same model in its format: by convert_hf_to_gguf.py, and llama-quantize",
        )
    for path in files:
        try:
            with path.open("rb") as file:
                is_gguf = file.read(4) == b"GGUF"
        except OSError as error:
            raise UsageError(f"--gguf {path}: {error.strerror or error}") from None
        if not is_gguf:
            raise UsageError(f"--gguf {path}: not a GGUF file")
    places = {name: shutil.which(name) for name in (COMPLETION, BENCH)}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        raise UsageError(
            f"--against {LLAMA}: {' and '.join(missing)} not found on PATH",
            hint="build llama.cpp and put its bin folder on PATH",
        )
    return LlamaCpp(str(places[COMPLETION]), str(places[BENCH]), tuple(dict.fromkeys(files)))


def llama_contenders(llama: LlamaCpp) -> list[Contender]:
    """One for each file, named after it."""
    stems = [path.stem for path in llama.files]
    return [
        Contender(f"{LLAMA} {path.stem if stems.count(path.stem) == 1 else path}", LLAMA)
        for path in llama.files
    ]


class LlamaProcess:
    """``llama-completion``. It writes text, not tokens: one run for each milestone, up to its last output."""

    def __init__(self, task: Task, llama: LlamaCpp, file: Path, contender: Contender) -> None:
        self.contender = contender
        self._task, self._program, self._file = task, llama.completion, file

    def warm_up(self) -> None:
        self._run(self._task.tokens, memory=True).memory.add_to(self.contender)

    def measure(self) -> None:
        first, *later = self._task.milestones
        runs = [self._run(tokens) for tokens in later or [first]]
        arrivals = [(first, runs[0].reads[0][0])]
        arrivals += [(tokens, run.reads[-1][0]) for tokens, run in zip(later, runs, strict=False)]
        for tokens, seconds in arrivals:
            self.contender.add(milestone(tokens), seconds)
        self.contender.add("exit_s", runs[-1].exit_s)

    def _run(self, tokens: int, *, memory: bool = False) -> Finished:
        command = [self._program, "-m", str(self._file), "-t", str(self._task.threads), "-p", PROMPT]
        command += ["-n", str(tokens), "--ignore-eos", *SAMPLING]
        command += ["-no-cnv", "--no-warmup", "--no-display-prompt"]
        return run_process(self.contender.name, command, self._task.environ, memory=memory)


class LlamaRunner:
    """``llama-bench``, one repetition at a time, each after its own warm-up; of one text only."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], steps: int, contender: Contender
    ) -> None:
        self.contender = contender
        self._command, self._environ, self._steps = command, environ, steps

    def prefill(self, tokens: int) -> float:
        return self._run("-p", str(tokens), "-n", "0")

    def decode(self, rows: int, context: int) -> float | None:
        return self._run("-p", "0", "-n", str(self._steps), "-d", str(context)) if rows == 1 else None

    def close(self) -> None:
        """Each run was a process of its own."""

    def _run(self, *sizes: str) -> float:
        command = [*self._command, *sizes, "-r", "1", "-o", "json"]
        finished = run_process(self.contender.name, command, self._environ)
        seconds, self.contender.kernels = parse_llama_bench(b"".join(data for _, data in finished.reads))
        return seconds


def parse_llama_bench(output: bytes) -> tuple[float, tuple[str, ...]]:
    """The seconds of the only test in llama-bench's JSON, and what ran. Raises `Gpt2cliError`."""
    try:
        (test,) = json.loads(output)
        ran = (f"{test['backends']}, build {test['build_commit']}", str(test["model_type"]))
        (nanoseconds,) = test["samples_ns"]
        return nanoseconds / 1e9, ran
    except (ValueError, KeyError, TypeError):
        raise Gpt2cliError(
            f"{BENCH}: its output is not understood", hint="a llama.cpp of 2025 or later is needed"
        ) from None
