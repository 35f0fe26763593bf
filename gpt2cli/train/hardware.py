"""What a training runs on: device, precision, threads, memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from gpt2cli.core.memory import available_memory
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.train import attention
from gpt2cli.train.memory import keep_freed_memory
from gpt2cli.train.windows import Plan

BYTES_PER_TRAINED_WEIGHT = 16
"""fp32: the weight, its gradient, and two moments."""


def set_up(threads: int | None) -> None:
    """Prepare torch and transformers for training in this process."""
    attention.register()
    # 1.2x in the measurement of `train/attention.py`.
    keep_freed_memory()
    quiet: Any = transformers_logging
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    if threads is not None:
        torch.set_num_threads(threads)


def pick_device(wanted: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one. Raises `UsageError`."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no CUDA device")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: there is no Apple GPU")
    return torch.device(wanted)


def pick_bf16(wanted: str, device: torch.device) -> bool:
    """Whether the matrix products are bf16; ``auto``: where the hardware multiplies bf16."""
    if wanted != "auto":
        return wanted == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpu: Any = torch.cpu
    return device.type == "cpu" and any(
        getattr(cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def check_memory(model: PreTrainedModel, plan: Plan, *, adapters_only: bool) -> None:
    """Refuse what cannot fit into the memory that is free. Raises `Gpt2cliError`."""
    config, free = model.config, available_memory()
    weights = sum(parameter.numel() for parameter in model.parameters())
    tokens = plan.micro_batch_size * plan.window
    # In fp32: about 14 activations as wide as the model a layer, attention scores, and the logits with
    # their gradients.
    activations = 4 * tokens * (14 * config.n_layer * config.n_embd + 4 * config.vocab_size)
    scores = 4 * plan.micro_batch_size * config.n_layer * config.n_head * plan.window**2
    needed = weights * (4 if adapters_only else BYTES_PER_TRAINED_WEIGHT) + activations + scores
    if free is not None and needed > free:
        raise Gpt2cliError(
            f"training needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free",
            hint="try --micro-batch-size 1, a shorter --window, or a smaller model",
        )
