"""What the scripts are put together with."""

from __future__ import annotations

import re
from collections.abc import Iterable


def fill(template: str, **parts: Iterable[str]) -> str:
    """``template`` with the lines of each part in place of its ``@name@``."""
    return re.sub(r"@(\w+)@", lambda found: "\n".join(parts[found[1]]), template)


def single_quoted(text: str) -> str:
    """``text`` in single quotes, for bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"
