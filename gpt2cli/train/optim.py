"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from gpt2cli.train.options import TrainOptions

BETAS = (0.9, 0.95)
"""As in GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix B)."""


class MuonWithAdamW(Optimizer):
    """Muon for the layers' matrices, AdamW for embeddings, norms and biases.

    Muon (Jordan et al. 2024) takes the momentum's nearest semi-orthogonal matrix as the update; its
    learning rate is scaled to the size of AdamW's updates (Liu et al. 2025, arXiv 2502.16982), so that one
    learning rate serves both.
    """

    def __init__(self, matrices: list[nn.Parameter], adamw: AdamW, options: TrainOptions) -> None:
        self._muon = Muon(
            matrices,
            lr=options.learning_rate * options.muon_scale,
            weight_decay=options.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = adamw
        super().__init__([*matrices, *(p for g in adamw.param_groups for p in g["params"])], {})
        # The very groups of both: a schedule that sets their learning rates reaches them.
        self.param_groups = [*self._muon.param_groups, *adamw.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both."""
        assert closure is None
        self._muon.step()  # type: ignore[no-untyped-call]
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
