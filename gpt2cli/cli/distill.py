"""``gpt2cli distill``: a smaller model that learns from a larger one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from gpt2cli.cli.pulling import resolve_plain
from gpt2cli.cli.training import run_command
from gpt2cli.cli.training_params import DATA, DISTILL, RESULT, RUN, TEACHER, TRAINING, with_options
from gpt2cli.errors import UsageError
from gpt2cli.settings import Settings

EXAMPLES = """Examples:

  gpt2cli distill texts/ --teacher gpt2 --name my-distilgpt2

  gpt2cli distill stories.txt --teacher tiny --student-layers 2 --steps 1000 --output half
"""


@with_options(DATA, TEACHER, DISTILL, TRAINING, RUN, RESULT)
def distill(ctx: typer.Context, **options: Any) -> None:
    """Train a student with fewer layers on a teacher's predictions, the way DistilGPT2 was made."""

    def base(given: Mapping[str, Any]) -> tuple[Path, str]:
        if "teacher" not in given:
            raise UsageError("there is no teacher", hint="name one with --teacher MODEL")
        settings = Settings.load(ctx.obj.environ)
        wanted = str(given["teacher"])
        model = resolve_plain(ctx.obj, settings, wanted, given.get("revision"))
        return model.directory, model.name

    run_command(ctx, "distill", base)
