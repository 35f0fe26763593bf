"""``gpt2cli finetune``: go on training a model on other text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from gpt2cli.cli.pulling import resolve_plain
from gpt2cli.cli.training import run_command
from gpt2cli.cli.training_params import BASE, DATA, LORA, RESULT, RUN, TRAINING, with_options
from gpt2cli.settings import Settings

EXAMPLES = """Examples:

  gpt2cli finetune letters.txt --output in-my-voice

  gpt2cli finetune notes/ -m gpt2 --lora --epochs 3 --name notes

  cat poems.txt | gpt2cli finetune -m distilgpt2 --learning-rate 5e-5 --name poet -
"""


@with_options(DATA, BASE, LORA, TRAINING, RUN, RESULT)
def finetune(ctx: typer.Context, **options: Any) -> None:
    """Continue training a model on your own text: all of its weights, or low-rank adapters."""

    def base(given: Mapping[str, Any]) -> tuple[Path, str]:
        settings = Settings.load(ctx.obj.environ)
        wanted = settings.over({"model": given.get("model")}).get("model")
        model = resolve_plain(ctx.obj, settings, wanted, given.get("revision"))
        return model.directory, model.name

    run_command(ctx, "finetune", base)
