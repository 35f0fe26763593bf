"""Records of runs to test with."""

from __future__ import annotations

from typing import Any

from gpt2cli.options import GenerateOptions
from gpt2cli.runs.record import RunEngine, RunModel, RunRecord, RunText


def record(text: str = " there was", prompt: str = "Once", *more: str, **changed: Any) -> RunRecord:
    """A run that gave ``text`` and ``more`` of them."""
    texts = (text, *more)
    options = GenerateOptions(seed=7, max_new_tokens=9, num_return_sequences=len(texts), stop=("\n",))
    fields: dict[str, Any] = {
        "command": "generate",
        "version": "0.1.0",
        "started": "2026-01-02T03:04:05+00:00",
        "model": RunModel(name="tiny", sha256="ab" * 32),
        "prompt": prompt,
        "options": options,
        "engine": RunEngine(
            device="cpu",
            precision="fp16",
            kernels=("native avx2",),
            threads=2,
            machine="x",
            libraries={"n": "1"},
        ),
        "texts": tuple(
            RunText(seed=7 + n, text=each, token_ids=(5, n), finish_reason="length")
            for n, each in enumerate(texts)
        ),
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "dropped_tokens": 0},
        "timings": {"decode_s": 0.5},
    }
    return RunRecord(**{**fields, **changed})
