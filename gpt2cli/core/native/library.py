"""The shared library: found, loaded once, and its interface as ``src/gpt2.h`` has it."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from gpt2cli.errors import UsageError

ABI = 2
MAX_TOKENS = 1024
"""Of one forward pass."""
PANEL = 64
"""Outputs that a matrix keeps together."""
GROUP = 64
"""Inputs that share a scale in int8 and int4."""

F32, F16, BF16, Q8, Q4, I8 = range(6)
PANELS, INPUTS, OUTPUTS = range(3)
ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu", "tanh")
"""In the order of ``gpt2_activation``."""
TYPES = {"F32": F32, "F16": F16, "BF16": BF16}

SWITCH = "GPT2CLI_NATIVE"
"""``0`` turns the library off; the name of an instruction set (``avx2``, ``portable``) asks for that one."""
PLACE = "GPT2CLI_NATIVE_LIBRARY"
"""The path of another library, for tests."""


class Matrix(Structure):
    """``gpt2_matrix``"""

    _fields_ = (
        ("data", c_void_p),
        ("bias", c_void_p),
        ("type", c_int32),
        ("layout", c_int32),
        ("inputs", c_int32),
        ("outputs", c_int32),
    )


class Layer(Structure):
    """``gpt2_layer``"""

    _fields_ = (
        ("ln_1_weight", c_void_p),
        ("ln_1_bias", c_void_p),
        ("ln_2_weight", c_void_p),
        ("ln_2_bias", c_void_p),
        ("c_attn", Matrix),
        ("c_proj", Matrix),
        ("mlp_fc", Matrix),
        ("mlp_proj", Matrix),
        ("attention_scale", c_float),
        ("reserved", c_float),
    )


class Model(Structure):
    """``gpt2_model``"""

    _fields_ = (
        ("abi", c_int32),
        ("size", c_int32),
        ("layer_size", c_int32),
        ("vocab", c_int32),
        ("positions", c_int32),
        ("width", c_int32),
        ("layers", c_int32),
        ("heads", c_int32),
        ("inner", c_int32),
        ("activation", c_int32),
        ("cache_type", c_int32),
        ("wte_type", c_int32),
        ("wpe_type", c_int32),
        ("epsilon", c_float),
        ("wte", c_void_p),
        ("wpe", c_void_p),
        ("ln_f_weight", c_void_p),
        ("ln_f_bias", c_void_p),
        ("layer", POINTER(Layer)),
        ("head", Matrix),
    )


_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "gpt2_abi": (c_int32, ()),
    "gpt2_instruction_sets": (c_char_p, ()),
    "gpt2_open": (c_void_p, (POINTER(Model), c_int32, c_char_p)),
    "gpt2_close": (None, (c_void_p,)),
    "gpt2_new_slot": (c_int32, (c_void_p,)),
    "gpt2_free_slot": (None, (c_void_p, c_int32)),
    "gpt2_copy_slot": (None, (c_void_p, c_int32, c_int32, c_int32)),
    "gpt2_forward": (
        None,
        (c_void_p, c_int32, c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_void_p),
    ),
    "gpt2_panels_size": (c_int64, (c_int32, c_int32, c_int32)),
    "gpt2_convert": (
        None,
        (c_int32, c_int32, c_int32, c_int32, c_int32, c_void_p, c_int32, c_int32, c_void_p),
    ),
    "gpt2_finite": (c_int32, (c_int32, c_int64, c_void_p, POINTER(c_float))),
}


def problem() -> str | None:
    """Why the library cannot be used, in a few words; None where it can."""
    if os.environ.get(SWITCH) == "0":
        return f"turned off by {SWITCH}=0"
    try:
        library()
    except OSError as error:
        return str(error)
    return None


def library() -> ctypes.CDLL:
    """The library, its functions declared. Raises `OSError` where there is none, or one of another
    version."""
    return _load(os.environ.get(PLACE) or _beside())


def instruction_set() -> str:
    """The best instruction set of this processor, or the one that ``GPT2CLI_NATIVE`` names.

    Raises `UsageError` for one that the processor does not have.
    """
    known = library().gpt2_instruction_sets().decode("ascii").split()
    wanted = os.environ.get(SWITCH) or known[0]
    if wanted == "1":
        return str(known[0])
    if wanted not in known:
        raise UsageError(f"{SWITCH}={wanted}: this processor has {', '.join(known)}", hint=f"unset {SWITCH}")
    return wanted


def _beside() -> str:
    suffix = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
    path = Path(__file__).with_name(f"_gpt2.{suffix}")
    if not path.exists():
        raise OSError("it was not built: no C compiler was found at installation")
    return str(path)


@cache
def _load(path: str) -> ctypes.CDLL:
    # A CDLL call lets go of the interpreter's lock while it runs.
    loaded = ctypes.CDLL(path)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name, None)
        if function is None:
            raise OSError(f"{path}: it has no {name}")
        function.restype, function.argtypes = result, arguments
    if loaded.gpt2_abi() != ABI:
        raise OSError(f"{path}: it is of another version; install gpt2cli again")
    return loaded
