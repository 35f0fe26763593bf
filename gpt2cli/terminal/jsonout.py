"""JSON for stdout: one line, readable Unicode, nothing that a terminal would act on."""

from __future__ import annotations

import json
import re
from typing import Any

# JSON escapes C0 by itself; DEL, C1, line separators, bidirectional overrides and surrogates are left.
_UNSAFE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def json_line(value: Any) -> str:
    """``value`` as one line of JSON, with its newline. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"
