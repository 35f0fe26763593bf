"""The character map of a sentencepiece model (Kudo and Richardson 2018), checked before the library sees it.

A ``Precompiled`` normalizer holds a trie of the texts that are replaced, a double array of 32-bit units as
darts-clone writes it, and behind it what they are replaced by, each text ended by a zero byte. The library
follows its offsets without looking: one that leads out of the array, or into the middle of a character, is
a panic at some prompt.
"""

from __future__ import annotations

import base64
import binascii
import struct

MAX_CHARSMAP_BYTES = 4 * 2**20
_BLOCK = 256
"""A node's children lie in one block: the place of a child is that of the block's with a byte's bits."""


def check_charsmap(encoded: object) -> str | None:
    """What is wrong with a ``precompiled_charsmap``, base64; None for a sound one."""
    import numpy as np

    if not isinstance(encoded, str) or len(encoded) > MAX_CHARSMAP_BYTES * 4 // 3:
        return "it is no text, or too long"
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return "it is not base64"
    if len(data) < 4:
        return "it is cut short"
    (size,) = struct.unpack_from("<I", data)
    if size == 0 or size % (4 * _BLOCK) or 4 + size > len(data):
        return "it is cut short"
    texts = data[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        return "its texts are no UTF-8"
    units = np.frombuffer(data, dtype="<u4", count=size // 4, offset=4).astype(np.int64)
    nodes = np.flatnonzero(units >> 31 == 0)
    node = units[nodes]
    children = nodes ^ ((node >> 10) << ((node & 0x200) >> 6))
    if (children >= len(units)).any():
        return "it leads out of its table"
    values = units[children[(node & 0x100) != 0]] & 0x7FFFFFFF
    if (values > len(texts)).any():
        return "it leads out of its texts"
    # A byte of the form 10xxxxxx goes on with a character.
    begins = (np.frombuffer(texts + b"\0", dtype=np.uint8) & 0xC0) != 0x80
    if not begins[values].all():
        return "it leads into the middle of a character"
    return None
