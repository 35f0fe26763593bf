"""The benchmark: contenders take turns, so that what the machine does meanwhile hits all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2cli.bench import peers
from gpt2cli.bench.machine import describe, others_watched
from gpt2cli.bench.processes import (
    PROMPT,
    OurProcess,
    Process,
    Task,
    milestones_within,
    scratch,
    time_import_torch,
)
from gpt2cli.bench.report import Contender, Report
from gpt2cli.bench.settled import OurRunner, Runner, Sizes, measure_busy, measure_round
from gpt2cli.checkpoint import Checkpoint
from gpt2cli.core.choose import device_for
from gpt2cli.core.cores import default_threads
from gpt2cli.options import LoadOptions, Precision
from gpt2cli.text.tokenizer import Tokenizer

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured."""

    checkpoint: Checkpoint
    load: LoadOptions
    environ: Mapping[str, str]
    """What other programs are started with."""
    precisions: tuple[Precision, ...]
    rounds: int
    processes: bool = True
    settled: bool = True
    busy: bool = False
    transformers: bool = False
    llama: peers.LlamaCpp | None = None


def run_bench(plan: Plan, say: Say) -> Report:
    """Measure; ``say`` is told what is being done. Raises `Gpt2cliError`."""
    threads = plan.load.threads or default_threads()
    device = device_for(plan.load.device)
    ours = [Contender(precision) for precision in plan.precisions]
    contenders = list(ours)
    if plan.transformers:
        contenders.append(Contender(peers.TRANSFORMERS, "transformers", ("fp32",)))
    if plan.llama:
        contenders += peers.llama_contenders(plan.llama)
    report = Report({}, contenders, plan.rounds)
    if plan.transformers or plan.llama:
        # What is compared is GPT-2; the others are transformers' models already.
        _ = plan.checkpoint.gpt2
    with others_watched(report):
        if plan.processes:
            _measure_processes(plan, report, device, threads, say)
        if plan.settled:
            _measure_settled(plan, report, device, threads, say)
    libraries = ("torch", "transformers") if plan.transformers else ()
    kernels = next((name for each in ours for name in each.kernels), "").partition(",")[0]
    report.machine = {**describe(device, threads, libraries), "kernels": kernels}
    return report


def _measure_processes(plan: Plan, report: Report, device: str, threads: int, say: Say) -> None:
    tokenizer = Tokenizer.from_directory(plan.checkpoint.directory)
    if tokenizer is None:
        say("the model has no tokenizer: whole processes are left out")
        return
    room = plan.checkpoint.config.n_positions - len(tokenizer.encode(PROMPT))
    task = Task(plan.checkpoint, plan.load, device, threads, milestones_within(room), plan.environ)
    with scratch() as home:
        processes = _processes(plan, report, task, home)
        for process in processes:
            say(f"whole processes: {process.contender.name}, not timed: conversion, memory")
            process.warm_up()
        for number in range(1, plan.rounds + 1):
            say(f"whole processes: round {number} of {plan.rounds}")
            report.import_torch.append(time_import_torch(plan.environ))
            for process in processes:
                process.measure()


def _processes(plan: Plan, report: Report, task: Task, home: str) -> list[Process]:
    found: list[Process] = []
    files = iter(plan.llama.files if plan.llama else ())
    precisions = iter(plan.precisions)
    for contender in report.contenders:
        if contender.kind == "gpt2cli":
            found.append(OurProcess(task, next(precisions), contender, home))
        elif contender.kind == "transformers":
            found.append(peers.TransformersProcess(task, contender))
        elif plan.llama:
            found.append(peers.LlamaProcess(task, plan.llama, next(files), contender))
    return found


def _measure_settled(plan: Plan, report: Report, device: str, threads: int, say: Say) -> None:
    sizes = Sizes.of(plan.checkpoint.config)
    with scratch() as folder:
        load = replace(plan.load, converted=Path(folder) / "model")
        runners = _runners(plan, report, load, device, threads, say)
        for number in range(plan.rounds + 1):
            say(f"settled rates: {f'round {number} of {plan.rounds}' if number else 'warming up'}")
            for runner in runners:
                measure_round(runner, sizes, keep=number > 0)
        for number in range(1, plan.rounds + 1 if plan.busy else 1):
            say(f"with one core kept busy: round {number} of {plan.rounds}")
            measure_busy(runners, sizes)
        for runner in runners:
            runner.close()


def _runners(
    plan: Plan, report: Report, load: LoadOptions, device: str, threads: int, say: Say
) -> Sequence[Runner]:
    found: list[Runner] = []
    sizes = Sizes.of(plan.checkpoint.config)
    files = iter(plan.llama.files if plan.llama else ())
    precisions = iter(plan.precisions)
    for contender in report.contenders:
        if contender.kind == "gpt2cli":
            found.append(OurRunner(plan.checkpoint, load, next(precisions), contender))
            say(f"settled rates: {contender.name} is loaded ({', '.join(contender.kernels)})")
        elif contender.kind == "transformers":
            found.append(peers.TransformersRunner(plan.checkpoint, device, threads, contender))
        elif plan.llama:
            command = [plan.llama.bench, "-m", str(next(files)), "-t", str(threads)]
            found.append(peers.LlamaRunner(command, plan.environ, sizes.steps, contender))
    return found
