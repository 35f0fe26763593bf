"""GPT-2 in torch (Radford et al. 2019): the readable reference, and the backend of CUDA, mps and any CPU.

Shapes are in the field's letters: N tokens of a flat batch, B texts of T new tokens each, S tokens that they
attend to, H heads, Dh head width, D embedding width, L layers, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.checkpoint import Checkpoint, ModelConfig
from gpt2cli.core.backend import Batch, EngineInfo, Floats
from gpt2cli.core.quantise import Kind
from gpt2cli.core.torch_model import Observer
from gpt2cli.core.torch_weights import Norm, Weights, load_weights
from gpt2cli.errors import UsageError
from gpt2cli.options import Device

Attend = Callable[[int, Tensor], Tensor]
"""The attention of a layer (from 0): qkv [N, 3, H, Dh] -> [N, D]"""

SPARE_TOKENS = 64
"""Whenever a slot grows, there is room for as many tokens more."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class TorchGPT2:
    """The forward pass. It keeps nothing; keys and values are in the `Slots` that it is given.

    Activations are fp32 whatever the weights are, and so ``reorder_and_upcast_attn``, which asks for
    fp32 attention scores, is always met.
    """

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config, self.weights = config, weights
        self.device = weights.wpe.device
        self._activation = _ACTIVATIONS[config.activation_function]

    @property
    def info(self) -> EngineInfo:
        """Device, precision, kernels and threads."""
        weights = self.weights
        return EngineInfo(self.device.type, weights.precision, weights.kernels, torch.get_num_threads())

    def new_slots(self) -> Slots:
        """Slots for this model, none of them taken."""
        return Slots(self.config, self.device)

    @torch.inference_mode()
    def hidden_states(
        self,
        batch: Batch,
        slots: Slots | None = None,
        *,
        observe: Observer | None = None,
        attention: Collection[int] = (),
    ) -> Tensor:
        """The final hidden states [N, D] of all tokens of ``batch``; they are what `logits` takes.

        The keys and values join ``slots``; without them nothing is kept, and every text of the batch
        must begin with its first token (`whole_texts`). ``observe`` is called with each stage, [N, ...]; for
        the layers in ``attention`` (from 0) also with ``h.<layer>.attn.weights`` [H, T, S], once for each
        text in the order of the batch.
        """
        attend = SlotAttention(self, batch, slots, observe, attention)
        tokens = torch.from_numpy(batch.tokens.astype(np.int64)).to(self.device)
        positions = torch.from_numpy(batch.positions.astype(np.int64)).to(self.device)
        return self.transform(tokens, positions, attend, observe)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., D] final hidden states -> [..., V] fp32"""
        return self.weights.head(hidden)

    def transform(
        self, tokens: Tensor, positions: Tensor, attend: Attend, observe: Observer | None = None
    ) -> Tensor:
        """All layers over tokens [N] at positions [N], which attend to each other by ``attend`` -> [N, D]"""

        def see(stage: str, tensor: Tensor) -> Tensor:
            if observe:
                observe(stage, tensor)
            return tensor

        weights, heads = self.weights, self.config.n_head
        x = F.embedding(tokens, weights.wte).float() + F.embedding(positions, weights.wpe)
        see("embeddings", x)
        for layer, block in enumerate(weights.blocks):
            at = f"h.{layer}"
            qkv = see(f"{at}.attn.c_attn", block.c_attn(see(f"{at}.ln_1", self._norm(x, block.ln_1))))
            context = see(f"{at}.attn.context", attend(layer, qkv.view(len(x), 3, heads, -1)))
            x = see(f"{at}.attn.residual", x + see(f"{at}.attn.c_proj", block.c_proj(context)))
            inner = see(f"{at}.mlp.c_fc", block.mlp_fc(see(f"{at}.ln_2", self._norm(x, block.ln_2))))
            projected = block.mlp_proj(see(f"{at}.mlp.act", self._activation(inner)))
            x = see(f"{at}.output", x + see(f"{at}.mlp.c_proj", projected))
        return see("ln_f", self._norm(x, weights.ln_f))

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        """x: [..., D], each vector normalised."""
        epsilon = self.config.layer_norm_epsilon
        return F.layer_norm(x, (self.config.n_embd,), norm.weight, norm.bias, epsilon)


class Slots:
    """Keys and values of texts: for each slot [L, 2, H, capacity, Dh] fp32, which grows as it fills."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self._buffers: dict[int, Tensor] = {}
        self._numbers = itertools.count()

    def new(self) -> int:
        """An empty slot."""
        slot = next(self._numbers)
        self._buffers[slot] = self._empty(0)
        return slot

    def free(self, slot: int) -> None:
        """The slot is not needed any more."""
        del self._buffers[slot]

    def buffer(self, slot: int) -> Tensor:
        """[L, 2, H, capacity, Dh]"""
        return self._buffers[slot]

    def reserve(self, slot: int, tokens: int, present: int) -> None:
        """Make room for ``tokens``, keeping the first ``present``."""
        old = self._buffers[slot]
        capacity = old.shape[3]
        if present > capacity:
            raise ValueError(f"slot {slot} does not hold {present} tokens")
        if tokens > capacity:
            capacity = max(tokens + SPARE_TOKENS, 2 * capacity)
            new = self._buffers[slot] = self._empty(min(capacity, self.config.n_positions))
            new[:, :, :, :present] = old[:, :, :, :present]

    @torch.inference_mode()
    def copy(self, source: int, target: int, tokens: int) -> None:
        """Put the first ``tokens`` tokens of ``source`` into ``target``."""
        self.reserve(target, tokens, 0)
        self.buffer(target)[:, :, :, :tokens] = self.buffer(source)[:, :, :, :tokens]

    def _empty(self, capacity: int) -> Tensor:
        config = self.config
        shape = (config.n_layer, 2, config.n_head, capacity, config.head_dim)
        return torch.empty(shape, dtype=torch.float32, device=self.device)


@dataclass(frozen=True, slots=True)
class Span:
    """Texts of a batch that are attended at once: T ``tokens`` each, after ``present`` ones of their slot.

    Several only where they are of one length and nothing comes before them.
    """

    begin: int
    """The place of their first token in the batch."""
    tokens: int
    present: int
    slots: list[int]


def spans_of(batch: Batch) -> list[Span]:
    """The texts of ``batch`` in its order."""
    edges = (np.flatnonzero(np.diff(batch.slots)) + 1).tolist()
    spans: list[Span] = []
    for begin, end in itertools.pairwise([0, *edges, len(batch)]):
        slot, present = int(batch.slots[begin]), int(batch.positions[begin])
        last = spans[-1] if spans else None
        if last and (last.tokens, last.present, present) == (end - begin, 0, 0):
            last.slots.append(slot)
        else:
            spans.append(Span(begin, end - begin, present, [slot]))
    return spans


class SlotAttention:
    """The attention of each token of a batch to those before it in its slot, layer by layer."""

    def __init__(
        self,
        model: TorchGPT2,
        batch: Batch,
        slots: Slots | None,
        observe: Observer | None = None,
        watched: Collection[int] = (),
    ) -> None:
        self._config, self._slots = model.config, slots
        self._observe, self._watched = observe, watched
        spans = spans_of(batch)
        if slots is None and any(span.present for span in spans):
            raise ValueError("without slots a text begins with its first token")
        if slots is not None:
            for span in spans:
                for slot in span.slots:
                    slots.reserve(slot, span.present + span.tokens, span.present)
        self._spans = [(span, _mask(span, model.device)) for span in spans]

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv: [N, 3, H, Dh] -> [N, D]"""
        contexts = [self._attend(layer, qkv, span, mask) for span, mask in self._spans]
        return contexts[0] if len(contexts) == 1 else torch.cat(contexts)

    def _attend(self, layer: int, qkv: Tensor, span: Span, mask: Tensor | None) -> Tensor:
        texts, length = len(span.slots), span.tokens
        part = qkv[span.begin : span.begin + texts * length]
        # [3, B, H, T, Dh]
        q, keys, values = part.view(texts, length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
        if self._slots is not None:
            end = span.present + length
            for n, slot in enumerate(span.slots):
                here = self._slots.buffer(slot)[layer, :, :, :end]  # [2, H, S, Dh]
                here[0, :, span.present :], here[1, :, span.present :] = keys[n], values[n]
                if span.present:
                    keys, values = here[:, None]
        scale = self._config.attention_scale(layer)
        if self._observe and layer in self._watched:
            for weights in _attention_weights(q, keys, scale):
                self._observe(f"h.{layer}.attn.weights", weights)
        causal = not span.present and length > 1
        context = F.scaled_dot_product_attention(q, keys, values, mask, is_causal=causal, scale=scale)
        return context.transpose(1, 2).reshape(texts * length, -1)


def _mask(span: Span, device: torch.device) -> Tensor | None:
    """[T, S], true where a token may look; None where causality alone, or nothing, is to be masked."""
    if not span.present or span.tokens == 1:
        return None
    shape = (span.tokens, span.present + span.tokens)
    return torch.ones(shape, dtype=torch.bool, device=device).tril(span.present)


def _attention_weights(q: Tensor, keys: Tensor, scale: float) -> Tensor:
    """q: [B, H, T, Dh], keys: [B, H, S, Dh] -> [B, H, T, S], which the fused kernel does not hand out."""
    scores = q @ keys.transpose(-1, -2) * scale
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
    hidden = ~seen.tril(scores.shape[-1] - scores.shape[-2])
    return scores.masked_fill_(hidden, float("-inf")).softmax(dim=-1)


class TorchBackend:
    """`core/backend.py`'s protocol over a `TorchGPT2`."""

    batch_invariant = False

    def __init__(self, model: TorchGPT2) -> None:
        self.config, self.info = model.config, model.info
        self._model: TorchGPT2 | None = model
        self._slots = model.new_slots()
        self._graphs = None
        if model.device.type == "cuda":
            from gpt2cli.core.cuda_graph import DecodeGraphs, Pool

            self._slots = pool = Pool(model.config, model.device)
            self._graphs = DecodeGraphs(model, pool)

    @property
    def model(self) -> TorchGPT2:
        """The model, for what looks inside."""
        if self._model is None:
            raise ValueError("the backend is closed")
        return self._model

    @property
    def bytes_per_token(self) -> int:
        """What a token takes in a slot."""
        return self.config.n_layer * 2 * self.config.n_embd * 4

    def new_slot(self) -> int:
        """An empty slot."""
        return self._slots.new()

    def free_slot(self, slot: int) -> None:
        """The slot is not needed any more."""
        self._slots.free(slot)

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """Put the first ``tokens`` tokens of ``source`` into ``target``."""
        self._slots.copy(source, target, tokens)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Floats:
        """The logits [M, V] after the wanted tokens; see `Backend.forward`."""
        wanted = torch.from_numpy(batch.wanted.astype(np.int64)).to(self.model.device)
        if self._graphs and not (batch.slots[1:] == batch.slots[:-1]).any():
            logits = self._graphs.step(batch)[wanted]
        else:
            logits = self.model.logits(self.model.hidden_states(batch, self._slots)[wanted])
        found: Floats = logits.cpu().numpy()
        return found

    def close(self) -> None:
        """Let go of weights and slots; calling it again does nothing."""
        if self._model is not None:
            self._slots, self._graphs, self._model = self._model.new_slots(), None, None


def load_model(
    checkpoint: Checkpoint, precision: Kind, device: Device = "cpu", threads: int | None = None
) -> TorchGPT2:
    """Load a model. ``threads`` are those that torch computes with on a CPU, for the whole process.

    Raises `ModelFileError`, and `UsageError` for a device that is not there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchGPT2(checkpoint.gpt2, load_weights(checkpoint, precision, choose_device(device)))


def open_backend(
    checkpoint: Checkpoint, precision: Kind, device: Device = "cpu", threads: int | None = None
) -> TorchBackend:
    """`load_model` as a backend. Raises what that raises."""
    return TorchBackend(load_model(checkpoint, precision, device, threads))


def choose_device(asked: Device) -> torch.device:
    """``auto`` is CUDA where there is one. Raises `UsageError` for a device that is not there."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return torch.device("cuda" if present["cuda"] else "cpu")
    if not present[asked]:
        raise UsageError(f"--device {asked}: there is no such device here", hint="use --device auto")
    return torch.device(asked)
