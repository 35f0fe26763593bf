"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from gpt2cli.train.hardware import pick_bf16
from gpt2cli.train.options import TrainOptions

BETAS = (0.9, 0.95)
"""As in GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix B)."""


class Muon(torch.optim.Muon):
    """torch's Muon with updates of AdamW's size (Liu et al. 2025, arXiv 2502.16982), at a CPU's speed.

    Matrices of one shape are orthogonalised together, and in bf16 only where the hardware multiplies bf16: a
    CPU that does not spent five sixths of a training step on it.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step, as torch's with ``adjust_lr_fn="match_rms_adamw"``."""
        assert closure is None
        for group in self.param_groups:
            momentum = group["momentum"]
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                alike[parameter.shape].append((parameter, parameter.grad.lerp(buffer, momentum)))
            for shape, pairs in alike.items():
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.to(parameter.dtype), alpha=-rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrix to each of [n, A, B]: five steps of Newton-Schulz.

    The quintic iteration of Jordan et al. 2024 ("Muon: An optimizer for hidden layers in neural networks"),
    whose singular values end between some 0.7 and 1.2.
    """
    x = matrices.bfloat16() if pick_bf16("auto", matrices.device) else matrices
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonWithAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for embeddings, norms and biases.

    Muon takes the momentum's nearest semi-orthogonal matrix as the update. One learning rate serves both.
    """

    def __init__(self, matrices: list[nn.Parameter], adamw: AdamW, options: TrainOptions) -> None:
        self._muon = Muon(
            matrices,
            lr=options.learning_rate * options.muon_scale,
            weight_decay=options.weight_decay,
        )
        self._adamw = adamw
        super().__init__([*matrices, *(p for g in adamw.param_groups for p in g["params"])], {})
        # The very groups of both: a schedule that sets their learning rates reaches them.
        self.param_groups = [*self._muon.param_groups, *adamw.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both."""
        assert closure is None
        self._muon.step()
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]


def make_optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    """The optimizer of ``options`` over the trainable parameters. Weight decay is for matrices only."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if options.optimizer == "muon":
        layers = [p for name, p in named if _is_layer_matrix(name, p)]
        chosen = {id(p) for p in layers}
        rest = [p for _, p in named if id(p) not in chosen]
        return MuonWithAdamW(layers, _adamw([{"params": rest, "weight_decay": 0.0}], options), options)
    decayed = [p for _, p in named if p.ndim >= 2]
    plain = [p for _, p in named if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    return _adamw(groups, options)


def _is_layer_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and not any(part in ("wte", "wpe", "lm_head") for part in name.split("."))


def _adamw(groups: list[dict[str, Any]], options: TrainOptions) -> AdamW:
    return AdamW(groups, lr=options.learning_rate, betas=BETAS, fused=True)


def learning_rate_factor(step: int, steps: int, options: TrainOptions) -> float:
    """What the highest learning rate is multiplied by in ``step`` (from 0) of ``steps``."""
    warmup = min(options.warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        falling = max(1, round(options.decay * steps))
        return min(1.0, (steps - step) / falling) if options.decay else 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if options.schedule == "cosine" else 1 - done
