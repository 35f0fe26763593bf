"""GELU in one kernel for training.

GPT-2's `gelu_new` is the tanh form of GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415). transformers writes
it as eight elementwise operations, each of which reads and writes the widest activations of a layer and keeps
what its gradient needs. torch's own kernel computes the same function, up to rounding, in one pass.
"""

from __future__ import annotations

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_gelu(model: nn.Module) -> None:
    """Replace every `gelu_new` in the model, in place. Other activations stay as they are."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
