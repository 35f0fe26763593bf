"""Templates with alternatives: ``The {White|Black} man`` stands for two texts. Torch-free."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from gpt2cli.errors import UsageError
from gpt2cli.options import shown

MAX_VARIANTS = 256
_PIECE = re.compile(r"\\[{|}\\]|.", re.DOTALL)
"""One character, or an escaped one."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One text of a template, and the alternatives that were chosen for it, in the template's order."""

    text: str
    chosen: tuple[str, ...]


def expand_template(template: str) -> list[Variant]:
    """Every text of ``template``, the last group varying fastest.

    A group is ``{one|two|…}``; an alternative may be empty. ``\\{``, ``\\|``, ``\\}`` and ``\\\\`` are the
    characters themselves. Raises `UsageError` where there is nothing to vary, a brace has no partner,
    a group stands in another, or there would be more than `MAX_VARIANTS` texts.
    """
    fixed, groups = _parse(template)
    if not any(len(group) > 1 for group in groups):
        raise UsageError(
            f"{shown(template)} has nothing to vary", hint='write alternatives as in "The {cat|dog} sat"'
        )
    number = math.prod(map(len, groups))
    if number > MAX_VARIANTS:
        raise UsageError(f"the template stands for {number} texts; at most {MAX_VARIANTS} are allowed")
    variants = []
    for chosen in itertools.product(*groups):
        parts = itertools.chain.from_iterable(zip(fixed, (*chosen, ""), strict=True))
        variants.append(Variant("".join(parts), chosen))
    return variants


def _parse(template: str) -> tuple[list[str], list[list[str]]]:
    """The fixed texts before, between and after the groups, and the alternatives of each group."""
    fixed: list[str] = [""]
    groups: list[list[str]] = []
    inside = False
    for piece in _PIECE.findall(template):
        if piece == "{":
            if inside:
                raise UsageError(f"{shown(template)}: a {{ stands inside another")
            inside = True
            groups.append([""])
        elif piece == "}":
            if not inside:
                raise UsageError(f"{shown(template)}: a }} has no {{ before it", hint=r"a brace itself is \}")
            inside = False
            fixed.append("")
        elif piece == "|" and inside:
            groups[-1].append("")
        else:
            (groups[-1] if inside else fixed)[-1] += piece[-1]
    if inside:
        raise UsageError(f"{shown(template)}: a {{ has no }} after it", hint=r"a brace itself is \{")
    return fixed, groups
