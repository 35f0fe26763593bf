"""What a connection may cost. Whatever is beyond is refused or cut off before anything is allocated."""

from __future__ import annotations

MAX_BODY = 2**20
"""Bytes of a request's body."""
MAX_HEAD = 2**14
"""Bytes of a request's line and headers."""
MAX_DISCARDED = 2**23
"""Bytes of a body that is too large that are read and forgotten, so that its sender reads the answer."""
HEAD_S = 10.0
"""A request's line and headers must be there after so many seconds."""
BODY_S = 30.0
"""And its body after so many more."""
STALLED_S = 60.0
"""A client that takes nothing of its answer for so long is cut off."""
IDLE_S = 30.0
"""A connection between two requests is kept open for so long."""
DRAIN_S = 30.0
"""After the first signal, running requests have so long to end."""
MAX_CONNECTIONS = 512
