"""The record of a run that has just ended."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from gpt2cli import __version__
from gpt2cli.hub.resolve import ResolvedModel
from gpt2cli.options import GenerateOptions
from gpt2cli.runs.record import INTERRUPTED, SERVER, RunEngine, RunModel, RunRecord, RunText
from gpt2cli.text.reading import cleaned

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine
    from gpt2cli.core.results import Stats

_LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")
"""What computes a part of a text beside ourselves, where it is loaded."""


class DrawnText(Protocol):
    """One of the texts of a run."""

    @property
    def seed(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> str | None: ...


def local_record(
    command: str,
    engine: Engine,
    model: ResolvedModel,
    prompt: str,
    options: GenerateOptions,
    texts: Sequence[DrawnText],
    stats: Stats | None,
    prompt_ids: Sequence[int] | None = None,
    session: str | None = None,
    timings: Mapping[str, Any] | None = None,
) -> RunRecord:
    """The record of a run of a model of this machine; its model has no hash yet."""
    took = 0.0 if stats is None else stats.first_token_s + stats.decode_s
    return RunRecord(
        command=command,
        version=__version__,
        started=_ago(took),
        session=session,
        # The path of a directory is nobody's business.
        model=RunModel(
            name=cleaned(model.label),
            revision=model.revision,
        ),
        prompt=prompt,
        prompt_ids=None if prompt_ids is None else tuple(prompt_ids),
        options=options,
        engine=_engine(engine),
        texts=tuple(map(_text, texts)),
        usage=_usage(stats),
        timings=timings if timings is not None else _timings(stats),
    )


def remote_record(
    command: str,
    name: str,
    prompt: str,
    options: GenerateOptions,
    texts: Sequence[DrawnText],
    session: str | None = None,
    usage: Mapping[str, Any] | None = None,
    timings: Mapping[str, Any] | None = None,
) -> RunRecord:
    """The record of a run of a model on a server; ``name`` is its address with the model."""
    # What the server was told of them is no part of them.
    settled = {option.name: getattr(options, option.name) for option in fields(GenerateOptions)}
    return RunRecord(
        command=command,
        version=__version__,
        started=_ago(0.0),
        session=session,
        model=RunModel(name=name),
        prompt=prompt,
        options=GenerateOptions(**settled).settled(),
        engine=RunEngine(device=SERVER),
        texts=tuple(map(_text, texts)),
        usage=usage or {},
        timings=timings or {},
    )


def _engine(engine: Engine) -> RunEngine:
    info = engine.info
    return RunEngine(
        device=info.device,
        precision=info.precision,
        kernels=info.kernels,
        threads=info.threads,
        machine=platform.machine(),
        libraries=_libraries(),
    )


def _text(text: DrawnText) -> RunText:
    ids = getattr(text, "token_ids", None)
    return RunText(
        seed=text.seed,
        text=text.text,
        token_ids=None if ids is None else tuple(ids),
        finish_reason=text.finish_reason or INTERRUPTED,
    )


def _usage(stats: Stats | None) -> dict[str, Any]:
    if stats is None:
        return {}
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        "dropped_tokens": stats.dropped_tokens,
    }


def _timings(stats: Stats | None) -> dict[str, Any]:
    if stats is None:
        return {}
    return {
        "prefill_s": round(stats.prefill_s, 4),
        "first_token_s": round(stats.first_token_s, 4),
        "decode_s": round(stats.decode_s, 4),
        "tokens_per_s": None if stats.tokens_per_s is None else round(stats.tokens_per_s, 2),
    }


def _libraries() -> dict[str, str]:
    loaded = {name: sys.modules.get(name) for name in _LIBRARIES}
    return {name: str(getattr(module, "__version__", "")) for name, module in loaded.items() if module}


def _ago(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() - seconds, UTC).isoformat(timespec="seconds")
