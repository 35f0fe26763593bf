"""The training loop: transformers' Trainer with our data path, optimizers, evaluation and checkpoints."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from gpt2cli.errors import Gpt2cliError
from gpt2cli.likelihood import MAX_MEAN, bits, perplexity
from gpt2cli.train.optim import learning_rate_factor, make_optimizer
from gpt2cli.train.options import TrainOptions
from gpt2cli.train.record import Report
from gpt2cli.train.tokens import Ids, TokenFile
from gpt2cli.train.windows import Plan, WindowDataset, WindowSampler

CHECKPOINT_MARKER = "complete"
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model predicts a text."""

    tokens: int
    """Predicted ones: all but the first."""
    size: int
    """Bytes of the text."""
    nats: float
    """The sum of the negative log-likelihoods."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Per token."""
        found = perplexity(self.nats, self.tokens)
        return math.exp(MAX_MEAN) if found is None else found

    @property
    def bits_per_byte(self) -> float:
        """End-of-text tokens count, the bytes are those of the text alone."""
        return bits(self.nats) / self.size


@torch.no_grad()
def score(model: torch.nn.Module, file: TokenFile, window: int, *, autocast: bool) -> Score:
    """``file`` in windows side by side, each token but the first predicted once."""
    ids, nats, training = file.map(), 0.0, model.training
    model.eval()
    try:
        for batch in _side_by_side(ids, window):
            nats += float(token_nats(model, batch.to(_device(model)), autocast=autocast).double().sum())
    finally:
        model.train(training)
    return Score(len(ids) - 1, file.size, nats)


def _side_by_side(ids: Ids, window: int, batch_tokens: int = 8192) -> Iterator[Tensor]:
    """[B, window + 1] ids, each window beginning at the last one's end; the rest as a last [1, n]."""
    whole = (len(ids) - 1) // window
    size = max(1, batch_tokens // window)
    for first in range(0, whole, size):
        rows = [ids[n * window : (n + 1) * window + 1] for n in range(first, min(first + size, whole))]
        yield torch.stack([torch.from_numpy(row.astype("int64")) for row in rows])
    if len(ids) - 1 > whole * window:
        yield torch.from_numpy(ids[whole * window :].astype("int64"))[None]


def token_nats(model: torch.nn.Module, ids: Tensor, *, autocast: bool) -> Tensor:
    """The negative log-likelihood of each token after the first. ids: [B, T + 1] -> [B * T]."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


class LanguageModelTrainer(Trainer):
    """Trains on windows of a token file. ``report`` takes an event for all that happens."""

    def __init__(
        self,
        model: PreTrainedModel | torch.nn.Module,
        *,
        options: TrainOptions,
        plan: Plan,
        train: TokenFile,
        validation: TokenFile,
        directory: Path,
        bf16: bool,
        report: Report,
        sample: Callable[[], str] | None,
        interrupted: Callable[[], bool],
    ) -> None:
        self._options, self._plan, self._bf16 = options, plan, bf16
        self._module = model
        self._train_file, self._validation = train, validation
        every = options.evaluate_every or max(1, plan.steps // 10)
        save = options.save_every or every
        keep_best = options.patience is not None
        arguments = TrainingArguments(
            output_dir=str(directory),
            max_steps=plan.steps,
            per_device_train_batch_size=plan.micro_batch_size,
            gradient_accumulation_steps=plan.accumulation,
            max_grad_norm=options.clip,
            use_cpu=_device(model).type == "cpu",
            seed=options.seed,
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every if keep_best else save,
            save_total_limit=KEPT_CHECKPOINTS,
            load_best_model_at_end=keep_best,
            metric_for_best_model="loss" if keep_best else None,
            greater_is_better=False if keep_best else None,
            logging_strategy="steps",
            logging_steps=options.log_every,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to=[],
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            average_tokens_across_devices=False,
            log_level="error",
        )
        super().__init__(model=model, args=arguments, eval_dataset=WindowDataset(validation.map()))
        self.remove_callback(PrinterCallback)
        self.add_callback(_Events(plan, options, report, sample, interrupted, every))
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[Tensor]:
        """Micro-batches {"ids": [B, window + 1]}, in the plan's order."""
        loader = DataLoader(
            WindowDataset(self._train_file.map()),
            batch_sampler=WindowSampler(self._plan, self._options.seed),
            collate_fn=lambda rows: {"ids": torch.stack(rows)},
        )
        prepared: DataLoader[Tensor] = self.accelerator.prepare(loader)
        return prepared

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, or Muon with AdamW."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self._module, self._options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The learning rate of each step."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(
                optimizer or self.create_optimizer(),
                lambda step: learning_rate_factor(step, num_training_steps, self._options),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean negative log-likelihood of the micro-batch."""
        return token_nats(model, inputs["ids"], autocast=self._bf16).mean()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward. Raises `Gpt2cliError` when the loss is not finite."""
        loss: Tensor = super().training_step(*args, **kwargs)
        self._check_finite(float(loss))
        return loss

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            step = self.state.global_step
            raise Gpt2cliError(f"the loss is not finite after step {step}", hint="lower --learning-rate")

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def score_validation(self) -> Score:
        """How well the model predicts the validation text now."""
        return score(self._module, self._validation, self._plan.window, autocast=self._bf16)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the validation text."""
        result = self.score_validation()
        self._check_finite(result.loss)
        metrics = {
            "eval_loss": result.loss,
            "eval_perplexity": result.perplexity,
            "eval_bits_per_byte": result.bits_per_byte,
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Events(TrainerCallback):
    """Reports what happens, marks checkpoints, stops early. What it knows, it reads from the state."""

    def __init__(
        self,
        plan: Plan,
        options: TrainOptions,
        report: Report,
        sample: Callable[[], str] | None,
        interrupted: Callable[[], bool],
        every: int,
    ) -> None:
        self._plan, self._options, self._report = plan, options, report
        self._sample, self._interrupted = sample, interrupted
        self._sample_every = every if options.sample_every is None else options.sample_every
        self._spent = 0.0
        self._since = 0.0
        self._steps_timed = 0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._spent += time.perf_counter() - self._since
        self._steps_timed += 1
        if self._interrupted():
            control.should_save = control.should_training_stop = True
            return
        if self._sample and self._sample_every and state.global_step % self._sample_every == 0:
            self._report({"event": "sample", "step": state.global_step, "text": self._sample()})

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        per_step = self._spent / max(1, self._steps_timed)
        self._spent, self._steps_timed = 0.0, 0
        self._report(
            {
                "event": "step",
                "step": state.global_step,
                "steps": self._plan.steps,
                "loss": logs["loss"],
                "learning_rate": logs.get("learning_rate"),
                "tokens": state.global_step * self._plan.tokens_per_step,
                "tokens_per_s": self._plan.tokens_per_step / per_step if per_step else None,
                "time_left_s": per_step * (self._plan.steps - state.global_step),
            }
        )

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        values = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        self._report({"event": "evaluation", "step": state.global_step, **values})
        if self._options.patience is not None and _stalled(state, self._options.patience):
            self._report({"event": "early_stop", "step": state.global_step})
            control.should_training_stop = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        mark_complete(folder)
        self._report({"event": "checkpoint", "step": state.global_step, "path": str(folder)})


def _stalled(state: TrainerState, patience: int) -> bool:
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    best = min(range(len(losses)), key=losses.__getitem__)
    return len(losses) - 1 - best >= patience


def mark_complete(folder: Path) -> None:
    """Write the completion marker of a checkpoint, after everything in it has reached the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with (folder / CHECKPOINT_MARKER).open("w") as file:
        file.flush()
        os.fsync(file.fileno())


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints, the oldest first."""
    found = [p.parent for p in directory.glob(f"checkpoint-*/{CHECKPOINT_MARKER}")]
    return sorted(found, key=_step_of)


def _step_of(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def drop_incomplete(directory: Path) -> None:
    """Remove what a killed run left half-written."""
    whole = set(checkpoints(directory))
    for folder in directory.glob("checkpoint-*"):
        if folder not in whole:
            shutil.rmtree(folder, ignore_errors=True)
