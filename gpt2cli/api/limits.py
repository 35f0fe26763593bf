"""What a body may ask for. Whatever is beyond is refused before anything is allocated."""

from __future__ import annotations

MAX_PROMPTS = 256
MAX_N = 128
MAX_TEXTS = 512
"""Of one request: prompts times the texts of each."""
MAX_STOPS = 16
MAX_STOP_LENGTH = 512
MAX_LOGPROBS = 5
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_MESSAGES = 1024
MAX_INPUTS = 256
"""Texts of one request for embeddings."""
