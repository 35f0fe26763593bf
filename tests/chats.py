"""Conversations for tests, with tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import make_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORMATS = ("story", "transcript", "dialogpt", "template", "raw")


def chat_model(directory: Path, **config: Any) -> Path:
    """A random byte model with a chat template: context 512, one layer, fast."""
    settings = {"n_positions": 512, "n_layer": 1, "n_embd": 16, "n_head": 2, "std": 0.6, **config}
    make_model(directory, **settings)
    add_template(directory, CHATML)
    return directory


def add_template(directory: Path, template: Any, **fields: Any) -> None:
    text = json.dumps({"eos_token": "<|endoftext|>", "chat_template": template, **fields})
    (directory / "tokenizer_config.json").write_text(text)


def conversation(engine: Any, format: str = "story", **keywords: Any) -> Any:
    from gpt2cli.repl.conversation import Conversation
    from gpt2cli.repl.formats import choose_format

    keywords = {"seed": 7, "given": {"max_new_tokens": 8}, "model": "m", **keywords}
    return Conversation(engine, choose_format(engine.checkpoint, format), **keywords)


def say(chat: Any, text: str, **overrides: Any) -> Any:
    """Draw an answer to its end; the turn."""
    shown = "".join(chunk.text for chunk in chat.answer(text, **overrides))
    turn = chat.tree.current
    assert turn.answer == (shown.strip() if chat.format.strips else shown)
    return turn
