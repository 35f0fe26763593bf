"""The forward pass of a model of transformers, over texts that are kept, cut off and copied.

A slot holds the ids of its text, and transformers' cache of what was read of them. A plain ``DynamicCache``
holds the keys and values of every layer whole, also where attention is limited to a window (the mask sees to
that): so it can be cut off anywhere. What has another kind of state (Mamba's is recurrent) can only go on
from where it stands, and reads its text again after a rewind; GPT-1's class has no cache, and always reads
the whole text.

The texts of a batch are read one after the other, since caches of different lengths cannot be stacked.

Of each model's own forward pass only two things are assumed, and checked: it returns logits, and these come
out of one module, its head. A hook gives the head the rows that are wanted, so that no others are multiplied
with the vocabulary, and everything that a model does after its head (Gemma's soft cap) is done.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpt2cli.core.backend import Batch, Cache, EngineInfo
from gpt2cli.core.torch_gpt2 import spans_of
from gpt2cli.core.torch_model import Observer
from gpt2cli.core.transformers_load import Kind, first_line
from gpt2cli.errors import ModelFileError, UsageError
from gpt2cli.families import FamilyConfig

READ_AGAIN = 16
"""A recurrent state takes in further tokens one at a time. Where these are more than a 16th of the text, the
whole text is read again in one pass, which is faster."""
PROBED = 6
"""Tokens by which an architecture that no test knows is tried when it is loaded."""
TOLERANCE = 1e-3
"""How far the same logits, computed in one pass and in parts, may be apart, in parts of the largest."""


@dataclass(slots=True)
class Slot:
    """A text: its ids, and how many of them ``cache`` holds.

    While a pass is under way ``cached`` is 0: should it be interrupted, nobody knows what the cache holds.
    """

    ids: list[int] = field(default_factory=list)
    cache: Any = None
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Pass:
    """What the model made of the tokens from ``begin`` on: ``hidden`` [T, D] as its head gets them."""

    begin: int
    hidden: Tensor
    logits: Tensor
    """[M, V] fp32, of the rows that were wanted."""
    output: Any


class TransformersSlots:
    """The texts that a model is reading."""

    def __init__(self, model: TransformersModel) -> None:
        self._model = model
        self._slots: dict[int, Slot] = {}
        self._numbers = itertools.count()

    def __getitem__(self, slot: int) -> Slot:
        return self._slots[slot]

    def new(self) -> int:
        """An empty slot."""
        slot = next(self._numbers)
        self._slots[slot] = Slot()
        return slot

    def free(self, slot: int) -> None:
        """The slot is not needed any more."""
        del self._slots[slot]

    @torch.inference_mode()
    def copy(self, source: int, target: int, tokens: int) -> None:
        """Put the first ``tokens`` tokens of ``source`` into ``target``.

        Where the cache cannot be copied to there, they are read again with the next tokens.
        """
        old = self._slots[source]
        if tokens > len(old.ids):
            raise ValueError(f"slot {source} does not hold {tokens} tokens")
        cache = self._model.copy_cache(old, tokens)
        self._slots[target] = Slot(old.ids[:tokens], cache, tokens if cache is not None else 0)


class TransformersModel:
    """The forward pass of one model, over `TransformersSlots`."""

    def __init__(self, model: Any, config: FamilyConfig, precision: Kind, device: torch.device) -> None:
        self.config, self.precision, self.device = config, precision, device
        self._model = model
        self._cache_name = _cache_parameter(model)
        self.cache: Cache = "none" if self._cache_name is None else _cache_kind(model)
        self._head = model.get_output_embeddings()
        self._wanted: list[int] = []
        self._hidden: Tensor | None = None
        self._instead: Tensor | None = None
        self._plain_head: bool | None = None
        if self._head is None:
            raise ModelFileError(f"a {config.architecture} has no output head that gpt2cli could use")
        self._head.register_forward_pre_hook(self._pick_rows)

    @property
    def info(self) -> EngineInfo:
        """Device, precision, kernels and threads."""
        kernels = (f"transformers {type(self._model).__name__}, torch {self.precision}",)
        return EngineInfo(self.device.type, self.precision, kernels, torch.get_num_threads(), self.cache)

    def new_slots(self) -> TransformersSlots:
        """Slots for this model, none of them taken."""
        return TransformersSlots(self)

    @torch.inference_mode()
    def read(self, slot: Slot, present: int, ids: Sequence[int], wanted: Sequence[int]) -> Tensor:
        """Put ``ids`` after ``present`` tokens of a slot; the logits [M, V] after those ``wanted``."""
        return self._advance(slot, present, ids, wanted).logits

    @torch.inference_mode()
    def hidden_states(
        self,
        batch: Batch,
        slots: Any = None,
        *,
        observe: Observer | None = None,
        attention: Collection[int] = (),
    ) -> Tensor:
        """See `TorchModel.hidden_states`. Texts of one length are read together where nothing is kept.

        What is observed is what transformers returns as ``hidden_states`` and ``attentions``. Raises
        `UsageError` for a model that has none.
        """
        if slots is None:
            return self._whole_texts(batch, observe, attention)
        rows = []
        for span in spans_of(batch):
            for n, slot in enumerate(span.slots):
                begin = span.begin + n * span.tokens
                ids = batch.tokens[begin : begin + span.tokens].tolist()
                found = self._advance(slots[slot], span.present, ids, [len(ids) - 1])
                rows.append(found.hidden[span.present - found.begin :])
        return torch.cat(rows)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [N, D] as `hidden_states` gives them -> [N, V] fp32

        Where a model does more than multiply by its head, a token is run through all of it, and these states
        put in before the head.
        """
        if self._plain_head is None:
            self._plain_head = self._head_is_all()
        if self._plain_head:
            found: Tensor = self._head(hidden).float()
            return found
        self._instead = hidden
        try:
            return self._run([[0]], None, []).logits[0].float()
        finally:
            self._instead = None

    def copy_cache(self, slot: Slot, tokens: int) -> Any:
        """A cache that holds the first ``tokens`` of a slot; None where there can be none."""
        if self.cache == "keys-values" and slot.cached >= tokens > 0:
            target = _new_cache()
            for number, layer in enumerate(slot.cache.layers):
                if layer.is_initialized:
                    target.update(layer.keys[..., :tokens, :], layer.values[..., :tokens, :], number)
            return target
        if self.cache == "recurrent" and slot.cached == tokens > 0:
            import copy

            return copy.deepcopy(slot.cache)
        return None

    def check(self) -> None:
        """Try an architecture that no test knows: parts of a text, and a rewind, give what one pass gives.

        Raises `ModelFileError`, as for a model that looks at what comes after a token.
        """
        ids = [n % self.config.vocab_size for n in range(1, PROBED + 1)]
        slots, half, every = self.new_slots(), PROBED // 2, range(PROBED)
        whole, parts = slots[slots.new()], slots[slots.new()]
        expected = self.read(whole, 0, ids, every)
        first = self.read(parts, 0, ids[:half], every[:half])
        found = torch.cat([first, self.read(parts, half, ids[half:], every[:half])])
        again = self.read(parts, half, ids[half:], every[:half])
        bound = TOLERANCE * (1 if self.precision == "fp32" else 50) * float(expected.abs().max())
        gap = max(float((found - expected).abs().max()), float((again - expected[half:]).abs().max()))
        if not gap <= bound:
            raise self._no_model("a text read in parts has other logits than one read at once")

    def _no_model(self, reason: str) -> ModelFileError:
        return ModelFileError(f"gpt2cli cannot run models of type {self.config.architecture}: {reason}")

    def _advance(self, slot: Slot, present: int, ids: Sequence[int], wanted: Sequence[int]) -> Pass:
        """Read ``ids`` at ``present``, and before them what the cache does not hold of the text."""
        text = [*slot.ids[:present], *ids]
        begin = self._held(slot, present, len(ids))
        slot.ids, slot.cached = text, 0
        if begin == 0:
            slot.cache = None if self._cache_name is None else _new_cache(self._recurrent_config)
        found = self._run_on(slot.cache, text, begin, [present - begin + place for place in wanted])
        slot.cached = len(text) if slot.cache is not None else 0
        return found

    @property
    def _recurrent_config(self) -> Any:
        return self._model.config if self.cache == "recurrent" else None

    def _held(self, slot: Slot, present: int, new: int) -> int:
        """How many of the first ``present`` tokens need not be read; the cache then holds just these."""
        if self.cache == "keys-values" and slot.cached >= present > 0:
            if slot.cached > present:
                slot.cache.crop(present - slot.cached)
            return present
        same = self.cache == "recurrent" and slot.cached == present
        return present if same and new * READ_AGAIN <= present + new else 0

    def _run_on(self, cache: Any, text: list[int], begin: int, wanted: list[int]) -> Pass:
        """Read ``text`` from ``begin`` on; ``wanted`` are places after that."""
        if self.cache != "recurrent" or not begin:
            found = self._run([text[begin:]], cache, wanted)
            return Pass(begin, found.hidden[0], found.logits[0].float(), found.output)
        parts = [self._run([[token]], cache, [0]) for token in text[begin:]]
        logits = torch.cat([part.logits[0] for part in parts])[wanted].float()
        return Pass(begin, torch.cat([part.hidden[0] for part in parts]), logits, None)

    def _run(self, rows: list[list[int]], cache: Any, wanted: list[int], **more: Any) -> Pass:
        """One pass over ids [B, T]: hidden [B, T, D], logits [B, M, V]."""
        # At least one row goes through the head: not every model bears none.
        self._wanted = wanted or [len(rows[0]) - 1]
        kept = {self._cache_name: cache} if cache is not None and self._cache_name else {}
        ids = torch.tensor(rows, device=self.device)
        try:
            output = self._model(input_ids=ids, use_cache=bool(kept), return_dict=True, **kept, **more)
        except Exception as error:
            # A config can have what a class takes, and stumbles over in its first pass.
            raise self._no_model(first_line(error)) from None
        hidden, self._hidden = self._hidden, None
        if hidden is None:
            raise self._no_model("its logits do not come out of its head")
        several = wanted or self._instead is not None
        return Pass(0, hidden, output.logits if several else output.logits[:, :0], output)

    def _pick_rows(self, head: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Before the head: keep the states [B, T, D], and let only the rows that are wanted through."""
        if inputs[0].ndim != 3:
            return inputs
        self._hidden = inputs[0]
        if self._instead is not None:
            return (self._instead[None].to(inputs[0].dtype), *inputs[1:])
        return (inputs[0][:, self._wanted], *inputs[1:])

    def _head_is_all(self) -> bool:
        """Whether the logits are the head's product and no more."""
        found = self._run([[0]], None, [0])
        return torch.equal(self._head(found.hidden[0]), found.logits[0])

    def _whole_texts(self, batch: Batch, observe: Observer | None, attention: Collection[int]) -> Tensor:
        spans = spans_of(batch)
        if any(span.present for span in spans):
            raise ValueError("without slots a text begins with its first token")
        more = {"output_hidden_states": observe is not None, "output_attentions": bool(attention)}
        more = {name: True for name, asked in more.items() if asked}
        passes = []
        before = self._model.config._attn_implementation
        if attention:
            # The fused kernels do not hand out their weights.
            self._model.set_attn_implementation("eager")
        try:
            for span in spans:
                end = span.begin + span.tokens * len(span.slots)
                rows = batch.tokens[span.begin : end].reshape(len(span.slots), span.tokens).tolist()
                passes.append(self._run(rows, None, [span.tokens - 1], **more))
        finally:
            if attention:
                self._model.set_attn_implementation(before)
        if observe is not None:
            self._tell([each.output for each in passes], observe, attention)
        return torch.cat([each.hidden.flatten(0, 1) for each in passes])

    def _tell(self, outputs: list[Any], observe: Observer, attention: Collection[int]) -> None:
        """Report the stages of all texts, [N, D] each, and the attention weights of each text."""
        depth, layers = self.config.n_layer, outputs[0].hidden_states
        if layers is None or len(layers) <= depth:
            kind = self.config.architecture
            raise UsageError(f"transformers returns no hidden states of each layer of a {kind}")
        names = ["embeddings", *(f"h.{n}.output" for n in range(depth - 1)), "ln_f"]
        for number, name in enumerate(names):
            observe(name, torch.cat([output.hidden_states[number].flatten(0, 1) for output in outputs]))
        for layer in sorted(attention):
            for output in outputs:
                weights = getattr(output, "attentions", None)
                if not weights or layer >= len(weights) or weights[layer] is None:
                    raise UsageError(f"a {self.config.architecture} has no attention weights")
                for text in weights[layer]:
                    observe(f"h.{layer}.attn.weights", text.float())


def _cache_parameter(model: Any) -> str | None:
    """The parameter of the forward pass that takes a cache; None for a model without one."""
    parameters = inspect.signature(type(model).forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)


def _cache_kind(model: Any) -> Cache:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    kinds = {type(layer) for layer in _new_cache(model.config).layers}
    return "keys-values" if kinds <= {DynamicLayer, DynamicSlidingWindowLayer} else "recurrent"


def _new_cache(config: Any = None) -> Any:
    """An empty cache: of keys and values, or with a ``config`` of what that model keeps."""
    from transformers.cache_utils import DynamicCache

    return DynamicCache(config=config) if config is not None else DynamicCache()
