"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), inference only.

Shapes are in the field's letters: B rows, T new tokens, S tokens present, H heads, Dh head width,
D embedding width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.checkpoint import ModelConfig
from gpt2cli.core.attention import attend, attention_weights
from gpt2cli.core.cache import KVCache, Plan
from gpt2cli.core.pages import HugePages
from gpt2cli.core.threads import Governor
from gpt2cli.core.weights import Block, Norm, Weights

Observer = Callable[[str, Tensor], None]
"""Called with the name of a stage and its tensor, in the order of the computation."""

_MANY_TOKENS = 32


def gelu_new(x: Tensor) -> Tensor:
    """GELU by tanh (Hendrycks and Gimpel 2016, section 2), elementwise. x: [B, T, inner]

    Long prompts on a CPU go through the same function by sigmoid, (1 + tanh(z)) / 2 = sigmoid(2z), which
    torch computes in half the time.
    """
    if x.shape[1] < _MANY_TOKENS or x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    doubled = 2 * math.sqrt(2 / math.pi)
    # 2z = x (doubled + doubled * 0.044715 x²)
    return (x * x).mul_(doubled * 0.044715).add_(doubled).mul_(x).sigmoid_().mul_(x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_new,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class GPT2:
    """The forward pass over a static cache.

    Activations are fp32 whatever the weights are, and so ``reorder_and_upcast_attn``, which asks for
    fp32 attention scores, is always met.
    """

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self.device = weights.wpe.device
        self.governor: Governor | None = None
        """Watches the threads of decode steps, where it is its to choose them."""
        self.steps = 0
        """Decode steps so far."""
        self.pages = HugePages()
        self.activation = _ACTIVATIONS[config.activation_function]
        self._width, self._epsilon = (config.n_embd,), config.layer_norm_epsilon
        self._scales = [config.attention_scale(layer) for layer in range(config.n_layer)]

    def new_cache(self, rows: int = 1, capacity: int = 64) -> KVCache:
        """An empty cache for this model."""
        return KVCache.empty(self.config, rows, capacity, self.device)

    def settle(self) -> None:
        """Do at once what long runs do by and by, for faster steps: pack all weights, join all pages.

        What is computed stays the same, but for the last bit of sums.
        """
        self.weights.pack()
        if self.device.type == "cpu":
            self.pages.join()

    @torch.inference_mode()
    def forward(
        self,
        ids: Tensor,
        cache: KVCache,
        counts: Sequence[int] | None = None,
        *,
        all_positions: bool = False,
        observe: Observer | None = None,
    ) -> Tensor:
        """The logits after ``ids``: [B, T], whose keys and values join ``cache``.

        ``counts`` are the real tokens of each row where rows are padded on the right. Returns the
        logits at each row's last real token, [B, V] fp32; with ``all_positions`` at all, [B, T, V].
        """
        with self._threads_for(ids.shape[1]):
            plan = cache.plan(ids.shape[1], counts)
            x = self._blocks(ids, cache, plan, observe)
            return self.weights.head(self._final(x if all_positions else _last_real(x, plan), observe))

    @torch.inference_mode()
    def hidden_states(
        self,
        ids: Tensor,
        cache: KVCache,
        counts: Sequence[int] | None = None,
        *,
        observe: Observer | None = None,
    ) -> Tensor:
        """The final hidden states [B, T, D] of ``ids``: [B, T], whose keys and values join ``cache``.

        They are what `logits` takes. ``counts`` are the real tokens of each row where rows are padded on
        the right; what stands at a padding position is of no use.
        """
        with self._threads_for(ids.shape[1]):
            plan = cache.plan(ids.shape[1], counts)
            return self._final(self._blocks(ids, cache, plan, observe), observe)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., D] final hidden states -> [..., V] fp32"""
        with self._threads_for(hidden.numel() // hidden.shape[-1]):
            return self.weights.head(hidden)

    def _threads_for(self, rows: int) -> AbstractContextManager[None]:
        return nullcontext() if rows == 1 or self.governor is None else self.governor.many_rows()

    def _blocks(self, ids: Tensor, cache: KVCache, plan: Plan, observe: Observer | None) -> Tensor:
        x = F.embedding(ids, self.weights.wte).float() + F.embedding(plan.positions, self.weights.wpe)
        if observe:
            observe("embeddings", x)
        for layer, block in enumerate(self.weights.blocks):
            x = self._block(x, layer, block, cache, plan, observe)
        cache.advance(plan)
        return x

    def _final(self, x: Tensor, observe: Observer | None) -> Tensor:
        x = self.norm(x, self.weights.ln_f)
        if observe:
            observe("ln_f", x)
        return x

    def _block(
        self, x: Tensor, layer: int, block: Block, cache: KVCache, plan: Plan, observe: Observer | None
    ) -> Tensor:
        def see(stage: str, tensor: Tensor) -> Tensor:
            if observe:
                observe(f"h.{layer}.{stage}", tensor)
            return tensor

        rows, tokens, _ = x.shape
        qkv = see("attn.c_attn", block.c_attn(see("ln_1", self.norm(x, block.ln_1))))
        # [3, B, H, T, Dh]
        qkv = qkv.view(rows, tokens, 3, self.config.n_head, -1).permute(2, 0, 3, 1, 4)
        q = qkv.select(0, 0)
        keys, values = cache.write(plan, layer, qkv.narrow(0, 1, 2))
        if observe:
            see("attn.weights", attention_weights(q, keys, plan, self._scales[layer]))
        attended = see("attn.context", attend(q, keys, values, plan, self._scales[layer]))
        x = see("attn.residual", x + see("attn.c_proj", block.c_proj(attended)))
        inner = see("mlp.c_fc", block.mlp_fc(see("ln_2", self.norm(x, block.ln_2))))
        projected = see("mlp.c_proj", block.mlp_proj(see("mlp.act", self.activation(inner))))
        return see("output", x + projected)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """x: [..., D], each vector normalised."""
        return torch.layer_norm(x, self._width, norm.weight, norm.bias, self._epsilon)


def _last_real(x: Tensor, plan: Plan) -> Tensor:
    """x: [B, T, D] -> [B, D], at each row's last real token."""
    if all(count == plan.length for count in plan.counts):
        return x[:, -1]
    last = torch.tensor(plan.counts, device=x.device) - 1
    return x[torch.arange(x.shape[0], device=x.device), last]
