"""Which backend loads a model. Torch is imported for its own backend only, and to ask about a GPU."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from gpt2cli.checkpoint import Checkpoint
from gpt2cli.core.backend import Backend
from gpt2cli.core.cores import default_threads
from gpt2cli.core.memory import check_memory
from gpt2cli.errors import UsageError
from gpt2cli.options import Device, LoadOptions

Progress = Callable[[int, int], None]
"""Told how many bytes of a conversion are done, and how many there are."""


def open_backend(checkpoint: Checkpoint, options: LoadOptions, progress: Progress | None = None) -> Backend:
    """Load ``checkpoint`` with the backend that ``options`` ask for.

    ``auto`` precision is the fastest that is lossless in practice: fp16 where the backend gains by it. Raises
    `ModelFileError`, `UsageError` for a device or backend that is not there, and `Gpt2cliError` when the
    memory does not suffice.
    """
    device = device_for(options.device)
    if checkpoint.config.architecture != "gpt2":
        return _open_by_transformers(checkpoint, options, device)
    native = _native(options.backend) if device == "cpu" else None
    if options.backend == "native" and native is None:
        raise UsageError("the native backend is not available here", hint="it needs a CPU and its library")
    precision = options.precision
    if precision == "auto":
        precision = "fp32" if device == "cpu" and native is None else "fp16"
    check_memory(checkpoint, precision)
    threads = options.threads or default_threads()
    if native is not None:
        backend: Backend = native.load(checkpoint, precision, threads, options.converted, progress)
        return backend
    from gpt2cli.core import torch_gpt2

    return torch_gpt2.open_backend(checkpoint, precision, device, threads)


def _open_by_transformers(checkpoint: Checkpoint, options: LoadOptions, device: Device) -> Backend:
    """Load another architecture than GPT-2.

    ``auto`` precision is fp32 on a CPU, and bf16 on a GPU of CUDA: many of these models overflow in fp16.
    Raises `UsageError` for what only GPT-2 has.
    """
    kind = checkpoint.config.architecture
    if options.backend == "native":
        raise UsageError(
            f"the native backend runs GPT-2 only, and the model is of type {kind}", hint="use --backend auto"
        )
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "fp32"
    if precision == "int8" or precision == "int4":
        raise UsageError(
            f"--precision {precision} is for GPT-2 only, and the model is of type {kind}",
            hint="use --precision fp32, bf16 or fp16",
        )
    check_memory(checkpoint, precision)
    from gpt2cli.core import transformers_lm

    return transformers_lm.open_backend(checkpoint, precision, device, options.threads or default_threads())


def convert_ahead(checkpoint: Checkpoint, converted: Path, progress: Progress | None = None) -> None:
    """Convert what ``auto`` precision needs of ``checkpoint`` on this machine, to be found at its first use.

    Nothing happens where nothing has to be converted. Raises as `open_backend` does.
    """
    options = LoadOptions(converted=converted)
    if checkpoint.config.architecture != "gpt2":
        return
    if device_for(options.device) == "cpu" and _native(options.backend) is not None:
        open_backend(checkpoint, options, progress).close()


def device_for(asked: Device) -> Device:
    """The device that ``asked`` stands for: ``auto`` is a GPU that torch can use, else the CPU."""
    if asked != "auto":
        return asked
    if not gpu_present():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _native(asked: str) -> ModuleType | None:
    """The native backend's module where it is wanted and can be used."""
    if asked == "torch" or (asked == "auto" and os.environ.get("GPT2CLI_NATIVE") == "0"):
        return None
    try:
        from gpt2cli.core import native
    except ImportError:
        return None
    return native if native.available() else None


def gpu_present() -> bool:
    """Whether there is a GPU that torch might use under the name of ``cuda``, without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/dev/kfd").exists() or _cuda_devices() > 0


def _cuda_devices() -> int:
    """The GPUs that NVIDIA's driver shows to this process."""
    library = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}.get(sys.platform)
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(library) if library else None
        if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value
