"""One training, from the data to the finished directory.

::

    DIR/                      the result: a model directory, there only when the training is done
      config.json  model.safetensors  tokenizer.json  generation_config.json  README.md  …
      adapter/                where it is wanted: adapter_config.json, adapter_model.safetensors
      training/
        run.json              the recipe, and the data's fingerprint; written first
        events.jsonl          what was reported
        tokenizer/            of a new model
        checkpoints/          complete ones carry a marker; removed at the end unless kept
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import as_created
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.train import attention, hardware
from gpt2cli.train.acceptance import acceptance
from gpt2cli.train.activation import fuse_gelu
from gpt2cli.train.corpus import Corpus, tokenizer_files
from gpt2cli.train.distill import DistillationTrainer, make_student
from gpt2cli.train.export import export, round_weights
from gpt2cli.train.facts import Facts, FileScore
from gpt2cli.train.finetune import add_lora, load_model, merge_adapter, save_adapter
from gpt2cli.train.options import Recipe
from gpt2cli.train.record import Report, TrainingRecord
from gpt2cli.train.scratch import new_model, train_tokenizer
from gpt2cli.train.tokens import TokenSet
from gpt2cli.train.trainer import (
    LanguageModelTrainer,
    Score,
    checkpoints,
    drop_incomplete,
    score,
)
from gpt2cli.train.windows import Plan, make_plan

SAMPLE_TOKENS = 60
ADAPTER = "adapter"
"""The folder of the adapter in a model's directory; beside the model itself, transformers would apply it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended. ``facts`` are None when it was interrupted."""

    directory: Path
    step: int
    facts: Facts | None


def run(
    recipe: Recipe,
    directory: Path,
    *,
    resume: bool = False,
    keep_checkpoints: bool = False,
    report: Report = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train as ``recipe`` says and put the model into ``directory``.

    ``report`` takes an event for all that happens; after ``interrupted`` returns true, a checkpoint is
    written and the training ends. What fails before its first checkpoint leaves nothing behind, so that
    the same command can be given again. Raises `UsageError` (data, options, a directory that is in use),
    `ModelFileError` (the base), `Gpt2cliError` (memory, disk, a loss that is not finite).
    """
    corpus = Corpus.open(recipe.data)
    record = TrainingRecord(directory, report)
    if resume:
        record.check(corpus.fingerprint)
    else:
        record.check_free()
    try:
        if not resume:
            record.write(recipe, corpus.fingerprint)
        session = _prepare(recipe, corpus, record, interrupted)
        if resume:
            # What was recorded stays when the changed options turn out to be wrong.
            record.write(recipe, corpus.fingerprint)
        return session.train(resume=resume, keep_checkpoints=keep_checkpoints)
    except BaseException as error:
        kept = bool(checkpoints(record.checkpoints))
        if not resume and not kept:
            record.discard()
        if isinstance(error, OSError):
            raise Gpt2cliError(f"cannot write to {directory}: {error.strerror or error}") from None
        if isinstance(error, RuntimeError):
            # What torch and safetensors make of a full disk, and of memory that is not there.
            line = str(error).partition("\n")[0]
            hint = "--resume goes on from the last checkpoint" if kept else None
            raise Gpt2cliError(f"the training failed: {line}", hint=hint) from error
        raise


def _prepare(
    recipe: Recipe, corpus: Corpus, record: TrainingRecord, interrupted: Callable[[], bool]
) -> _Session:
    """Tokenizer, models, tokens and plan; everything is checked before the first step."""
    options = recipe.train
    hardware.set_up(options.threads)
    device = hardware.pick_device(options.device)
    source = _tokenizer_directory(recipe, corpus, record)
    tokenizer = Tokenizer.from_directory(source)
    if tokenizer is None:
        raise UsageError(f"{source}: the model has no tokenizer")
    model, teacher = _make_models(recipe)
    config: Any = model.config
    tokens = corpus.tokens(tokenizer, tokenizer_files(source), _end_of_text(model), config.vocab_size)
    plan = make_plan(
        options, tokens=tokens.train.tokens, context=config.n_positions, vocab_size=config.vocab_size
    )
    hardware.check_memory(model, plan, adapters_only=recipe.lora is not None)
    trained: Any = add_lora(model, recipe.lora, options.seed) if recipe.lora else model
    for each in (model, teacher):
        if each is not None:
            each.set_attn_implementation(attention.NAME)
            fuse_gelu(each)
    trained.to(device)
    return _Session(
        recipe=recipe,
        corpus=corpus,
        record=record,
        interrupted=interrupted,
        source=source,
        tokenizer=tokenizer,
        model=model,
        teacher=teacher,
        trained=trained,
        tokens=tokens,
        plan=plan,
        device=device,
        bf16=hardware.pick_bf16(options.precision, device),
    )


def _tokenizer_directory(recipe: Recipe, corpus: Corpus, record: TrainingRecord) -> Path:
    """Where the model's tokenizer lies; a new one is trained on the text that is not held back."""
    if recipe.base is not None:
        return recipe.base
    assert recipe.shape is not None
    directory = record.work / "tokenizer"
    if not (directory / "tokenizer_config.json").exists():
        record.emit({"event": "tokenizer", "vocab_size": recipe.shape.vocab_size})
        train_tokenizer(corpus.training_texts(), recipe.shape.vocab_size, directory)
    return directory


def _make_models(recipe: Recipe) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel | None]:
    """The model that is trained, and the teacher where there is one."""
    options = recipe.train
    if recipe.base is None:
        assert recipe.shape is not None
        return new_model(recipe.shape, options.dropout or 0.0, options.seed), None
    base = load_model(recipe.base, options.dropout)
    if recipe.distill is None:
        return base, None
    return make_student(base, recipe.distill, options.seed), base


def _end_of_text(model: PreTrainedModel) -> int | None:
    config: Any = model.config
    first = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    return first if isinstance(first, int) and 0 <= first < config.vocab_size else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """A training that is ready to begin. ``trained`` is ``model``, or wraps it with adapters."""

    recipe: Recipe
    corpus: Corpus
    record: TrainingRecord
    interrupted: Callable[[], bool]
    source: Path
    tokenizer: Tokenizer
    model: GPT2LMHeadModel
    teacher: GPT2LMHeadModel | None
    trained: Any
    tokens: TokenSet
    plan: Plan
    device: torch.device
    bf16: bool

    def train(self, *, resume: bool, keep_checkpoints: bool) -> Outcome:
        """Train, and write the result unless interrupted."""
        self.record.emit(self._start_event())
        trainer = self._make_trainer()
        before = None if resume else trainer.score_validation()
        step = self._fit(trainer, resume)
        directory = self.record.directory
        if step < self.plan.steps and self.interrupted():
            self.record.emit({"event": "interrupted", "step": step})
            return Outcome(directory, step, None)
        trainable = sum(p.numel() for p in self.trained.parameters() if p.requires_grad)
        finished: Any = self._merged()
        finished.to("cpu")
        round_weights(finished, self.recipe.export.save_precision)
        facts = self._facts(finished, before, step, trainable)
        export(finished, self.source, facts, directory)
        self._put_adapter()
        if not keep_checkpoints:
            shutil.rmtree(self.record.checkpoints, ignore_errors=True)
        self.record.emit(_end_event(facts, directory))
        return Outcome(directory, step, facts)

    def _merged(self) -> PreTrainedModel:
        """The plain model that was trained; an adapter is written first, and merged as it is read."""
        base = self.recipe.base
        if self.recipe.lora is None or base is None:
            return self.model
        save_adapter(self.trained, self.record.adapter, self.recipe.base_name or str(base))
        return merge_adapter(self.trained, base, self.record.adapter)

    def _put_adapter(self) -> None:
        """Put the adapter beside the model where it is wanted, and else away."""
        lora, kept = self.recipe.lora, self.record.directory / ADAPTER
        if lora is not None and lora.keep:
            shutil.rmtree(kept, ignore_errors=True)
            as_created(self.record.adapter)
            for path in self.record.adapter.iterdir():
                as_created(path)
            os.replace(self.record.adapter, kept)
        shutil.rmtree(self.record.adapter, ignore_errors=True)

    def _make_trainer(self) -> LanguageModelTrainer:
        arguments: dict[str, Any] = {
            "model": self.trained,
            "options": self.recipe.train,
            "plan": self.plan,
            "train": self.tokens.train,
            "validation": self.tokens.validation,
            "directory": self.record.checkpoints,
            "bf16": self.bf16,
            "report": self.record.emit,
            "sample": self._sample,
            "interrupted": self.interrupted,
        }
        if self.teacher is None:
            return LanguageModelTrainer(**arguments)
        assert self.recipe.distill is not None
        return DistillationTrainer(teacher=self.teacher, distill=self.recipe.distill, **arguments)

    def _fit(self, trainer: LanguageModelTrainer, resume: bool) -> int:
        """Train, from the newest complete checkpoint where asked to; the steps done."""
        newest = None
        if resume:
            drop_incomplete(self.record.checkpoints)
            newest = next(reversed(checkpoints(self.record.checkpoints)), None)
            if newest is None and (self.record.directory / "config.json").exists():
                raise UsageError(
                    f"{self.record.directory}: the training is done, and its checkpoints are gone",
                    hint="gpt2cli finetune goes on from the model; --keep-checkpoints keeps them",
                )
            self.record.emit({"event": "resume", "checkpoint": str(newest) if newest else None})
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        return int(trainer.state.global_step)

    def _sample(self) -> str:
        """A short text from the model as it is now; the random state is left as it was."""
        start = _end_of_text(self.model) or 0
        devices = [self.device] if self.device.type == "cuda" else []
        training = self.model.training
        generating: Any = self.model
        generating.eval()
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(self.recipe.train.seed)
            ids = generating.generate(
                torch.tensor([[start]], device=self.device),
                attention_mask=torch.ones(1, 1, dtype=torch.long, device=self.device),
                do_sample=True,
                temperature=0.8,
                top_k=50,
                max_new_tokens=min(SAMPLE_TOKENS, generating.config.n_positions - 1),
                pad_token_id=start,
            )
        generating.train(training)
        return self.tokenizer.decode(ids[0, 1:].tolist())

    def _facts(self, finished: PreTrainedModel, before: Score | None, step: int, trainable: int) -> Facts:
        """Measure the finished model on everything that was held back."""
        config: Any = finished.config
        tests = self.corpus.test_tokens(
            self.tokenizer, tokenizer_files(self.source), _end_of_text(finished), config.vocab_size
        )
        window = self.plan.window
        return Facts(
            recipe=self.recipe,
            plan=self.plan,
            parameters=sum(p.numel() for p in finished.parameters()),
            trainable=trainable,
            data=self.corpus.described(),
            tokens=self.tokens,
            excluded_documents=self.corpus.excluded_documents,
            split_by_document=self.corpus.split.by_document,
            steps_done=step,
            start=before,
            final=score(finished, self.tokens.validation, window, autocast=False),
            tests=[
                FileScore(source.name, source.sha256, score(finished, file, window, autocast=False))
                for source, file in tests
            ],
            curve=self.record.curve(),
            bf16=self.bf16,
            device=str(self.device),
            acceptance=self._acceptance(finished),
        )

    def _acceptance(self, student: PreTrainedModel) -> float | None:
        """How well the student guesses ahead for its teacher; None where there is none."""
        if self.teacher is None or self.recipe.base is None:
            return None
        # An older base may have come from a pickle, which was allowed then.
        options = open_checkpoint(self.recipe.base, allow_pickle=True).generate_options({})
        return acceptance(self.teacher, student, self.tokens.validation, self.plan.window, options)

    def _start_event(self) -> dict[str, Any]:
        tokens, plan = self.tokens, self.plan
        return {
            "event": "start",
            "command": self.recipe.command,
            "files": len(self.corpus.sources),
            "train_tokens": tokens.train.tokens,
            "train_bytes": tokens.train.size,
            "validation_tokens": tokens.validation.tokens,
            "validation_bytes": tokens.validation.size,
            "excluded_documents": self.corpus.excluded_documents,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trainable": sum(p.numel() for p in self.trained.parameters() if p.requires_grad),
            "steps": plan.steps,
            "epochs": plan.epochs,
            "tokens_per_step": plan.tokens_per_step,
            "window": plan.window,
            "precision": "bf16" if self.bf16 else "fp32",
            "device": str(self.device),
            "seed": self.recipe.train.seed,
        }


def _end_event(facts: Facts, directory: Path) -> dict[str, Any]:
    return {
        "event": "end",
        "step": facts.steps_done,
        "directory": str(directory),
        "loss": facts.final.loss,
        "perplexity": facts.final.perplexity,
        "bits_per_byte": facts.final.bits_per_byte,
        "before": facts.start.bits_per_byte if facts.start else None,
        "tests": [{"file": t.file, "bits_per_byte": t.score.bits_per_byte} for t in facts.tests],
        "acceptance": facts.acceptance,
    }
