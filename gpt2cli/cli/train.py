"""``gpt2cli train``: a new model from text."""

from __future__ import annotations

from typing import Any

import typer

from gpt2cli.cli.training import run_command
from gpt2cli.cli.training_params import DATA, RESULT, RUN, SHAPE, TRAINING, with_options

EXAMPLES = """Examples:

  gpt2cli train stories/ --output my-stories

  gpt2cli train texts.jsonl --field body --layers 8 --epochs 3 --name my-stories

  gpt2cli train --resume --output my-stories
"""


@with_options(DATA, SHAPE, TRAINING, RUN, RESULT)
def train(ctx: typer.Context, **options: Any) -> None:
    """Train a new model from scratch, with a tokenizer of its own."""
    run_command(ctx, "train")
