"""Random models of every variant, and random ways through them, for the tests of the native backend."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from support import make_model, native_available

from gpt2cli.checkpoint import ACTIVATIONS, open_checkpoint
from gpt2cli.core.backend import Backend, Batch, Floats
from gpt2cli.core.native.backend import NativeBackend
from gpt2cli.core.native.library import SWITCH, library
from gpt2cli.core.quantise import Kind

needs_native = pytest.mark.skipif(not native_available(), reason="the native library is not available")

PRECISIONS: tuple[Kind, ...] = ("fp32", "fp16", "bf16", "int8", "int4")
HEAD_WIDTHS = (1, 3, 7, 24, 64, 65, 130)
CONTEXTS = (600, 70, 300, 129, 40)
"""Sums run over blocks of 256 places, and keys lie in blocks of 64."""
VOCABULARIES = (5, 63, 130, 257, 701)
"""None is a multiple of 64, the outputs that a matrix keeps together."""
INNER_WIDTHS = (None, 1, 17, 100, 300)
TYPES = ("float32", "float16", "bfloat16")

Bits = NDArray[np.int32]


def instruction_sets() -> list[str]:
    """Those that this processor runs, the best one first."""
    if not native_available():
        return ["portable"]
    return [str(name) for name in library().gpt2_instruction_sets().decode("ascii").split()]


def open_native(
    directory: Path,
    precision: Kind = "fp32",
    *,
    threads: int = 1,
    instructions: str | None = None,
    converted: Path | None = None,
) -> NativeBackend:
    """The model in ``directory``, run by an instruction set (the best one by default)."""
    with mock.patch.dict(os.environ, {SWITCH: instructions or "1"}):
        return NativeBackend(open_checkpoint(directory), precision, threads, converted)


def random_config(number: int) -> dict[str, Any]:
    """The entries of config.json that a model's arithmetic depends on, small enough for a quick pass."""
    pick = random.Random(f"native {number}")
    each = HEAD_WIDTHS[number % len(HEAD_WIDTHS)]
    heads = pick.randint(1, 5) if each < 40 else pick.randint(1, 2)
    return {
        "vocab_size": pick.choice(VOCABULARIES),
        "n_positions": CONTEXTS[number % len(CONTEXTS)],
        "n_embd": each * heads,
        "n_layer": pick.randint(1, 3),
        "n_head": heads,
        "n_inner": pick.choice(INNER_WIDTHS),
        "activation_function": ACTIVATIONS[number % len(ACTIVATIONS)],
        "layer_norm_epsilon": pick.choice([1e-5, 1e-5, 1e-3, 0.1]),
        "scale_attn_weights": pick.random() < 0.7,
        "scale_attn_by_inverse_layer_idx": pick.random() < 0.4,
        "tie_word_embeddings": pick.random() < 0.6,
    }


def random_model(directory: Path, number: int) -> Path:
    """A model of `random_config`, stored in one of the types."""
    dtype = random.Random(f"type {number}").choice(TYPES)
    return make_model(
        directory, seed=number, tokenizer=None, dtype=dtype, std=0.15, prefix="", **random_config(number)
    )


def random_ids(pick: random.Random, vocab: int, count: int) -> list[int]:
    return [pick.randrange(vocab) for _ in range(count)]


def bits(logits: Floats) -> Bits:
    """The bits of fp32 numbers: minus zero is not zero, and a NaN is itself."""
    return logits.view(np.int32)


def whole(backend: Backend, ids: Sequence[int]) -> Floats:
    """The logits [T, V] at every place of a text that is read alone, in one pass."""
    return in_chunks(backend, ids, len(ids))


def in_chunks(backend: Backend, ids: Sequence[int], size: int) -> Floats:
    """The logits [T, V] at every place of a text that is read alone, ``size`` tokens a pass."""
    slot = backend.new_slot()
    parts = []
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        parts.append(backend.forward(Batch.of([(slot, start, part)], range(len(part)))))
    backend.free_slot(slot)
    return np.concatenate(parts)


Place = tuple[int, int]
"""A text of a script, and a position in it."""


@dataclass(frozen=True, slots=True)
class New:
    slot: int


@dataclass(frozen=True, slots=True)
class Free:
    slot: int


@dataclass(frozen=True, slots=True)
class Copy:
    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: slot, first position and ids of each part; what is wanted, and where that stands."""

    parts: list[tuple[int, int, list[int]]]
    wanted: list[int]
    places: list[Place | None]
    """None for tokens that belong to no text, and are taken back."""


Step = New | Free | Copy | Pass


@dataclass(slots=True)
class Script:
    """Texts, and steps that read parts of them in several slots: side by side, rewound, forked."""

    texts: list[list[int]]
    steps: list[Step] = field(default_factory=list)


MOST_TOKENS = 1024
"""Of a pass of a script, as of one of the library."""


class _Writer:
    """Makes up a script, step by step."""

    def __init__(self, pick: random.Random, vocab: int, context: int, rows: int) -> None:
        self.pick, self.vocab, self.context, self.rows = pick, vocab, context, rows
        lengths = [context, *(pick.randint(1, context) for _ in range(3))]
        self.script = Script([random_ids(pick, vocab, length) for length in lengths])
        self.live: dict[int, list[int]] = {}  # slot -> text, tokens that are present

    def write(self, passes: int) -> Script:
        while passes:
            choice = self.pick.random()
            if not self.live or (choice < 0.2 and len(self.live) < self.rows):
                self._new(self.pick.randrange(len(self.script.texts)), 0)
            elif choice < 0.35 and len(self.live) < self.rows:
                self._fork()
            elif choice < 0.4:
                slot = self.pick.choice([*self.live])
                del self.live[slot]
                self.script.steps.append(Free(slot))
            elif choice < 0.5:
                self._rewind()
            else:
                self._pass()
                passes -= 1
        return self.script

    def _new(self, text: int, present: int) -> int:
        slot = next(n for n in range(self.rows) if n not in self.live)
        self.live[slot] = [text, present]
        self.script.steps.append(New(slot))
        return slot

    def _fork(self) -> None:
        source = self.pick.choice([*self.live])
        text, present = self.live[source]
        tokens = self.pick.randint(0, present)
        self.script.steps.append(Copy(source, self._new(text, tokens), tokens))

    def _rewind(self) -> None:
        state = self.live[self.pick.choice([*self.live])]
        state[1] = self.pick.randint(0, state[1])

    def _pass(self) -> None:
        step, budget = Pass([], [], []), MOST_TOKENS
        for slot in self.pick.sample([*self.live], self.pick.randint(1, len(self.live))):
            text, present = self.live[slot]
            ids = self.script.texts[text]
            stray = present == len(ids) or self.pick.random() < 0.1
            room = self.context - present if stray else len(ids) - present
            count = min(room, budget, self.pick.choice([1, 1, 1, 2, 7, 25, 64, 512, room]))
            if count < 1:
                continue
            read = random_ids(self.pick, self.vocab, count) if stray else ids[present : present + count]
            self._want(step, None if stray else text, present, count)
            step.parts.append((slot, present, read))
            self.live[slot][1] = present if stray else present + count
            budget -= count
        if step.parts:
            self.script.steps.append(step)

    def _want(self, step: Pass, text: int | None, present: int, count: int) -> None:
        share = self.pick.choice([0.0, 0.3, 1.0])
        before = sum(len(ids) for _, _, ids in step.parts)
        for at in range(count):
            if at == count - 1 or self.pick.random() < share:
                step.wanted.append(before + at)
                step.places.append(None if text is None else (text, present + at))


def random_script(seed: object, vocab: int, context: int, passes: int = 20, rows: int = 9) -> Script:
    """Four texts in up to ``rows`` slots, the same for the same seed."""
    return _Writer(random.Random(f"script {seed}"), vocab, context, rows).write(passes)


def play(backend: Backend, script: Script) -> Iterator[tuple[Place | None, Floats]]:
    """The logits [V] that a script asks for, each with its place."""
    slots: dict[int, int] = {}
    for step in script.steps:
        match step:
            case New(slot):
                slots[slot] = backend.new_slot()
            case Free(slot):
                backend.free_slot(slots.pop(slot))
            case Copy(source, target, tokens):
                backend.copy_slot(slots[source], slots[target], tokens)
            case Pass(parts, wanted, places):
                batch = Batch.of([(slots[slot], at, ids) for slot, at, ids in parts], wanted)
                yield from zip(places, backend.forward(batch), strict=True)
    for slot in slots.values():
        backend.free_slot(slot)


def check_script(backend: Backend, script: Script, expected: Sequence[Floats], way: str) -> None:
    """Every row of the script has the bits that its place has in ``expected``, one [T, V] for each text."""
    for number, (place, logits) in enumerate(play(backend, script)):
        if place is not None:
            text, position = place
            same = np.array_equal(bits(logits), bits(expected[text][position]))
            assert same, f"{way}: row {number}, text {text}, position {position}"
