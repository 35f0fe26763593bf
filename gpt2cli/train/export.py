"""The finished model on disk: a directory that transformers and gpt2cli load, and its card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gpt2cli.core.engine import Engine
from gpt2cli.files import as_created
from gpt2cli.model_files import CARD, TOKENIZER_FILES
from gpt2cli.options import LoadOptions
from gpt2cli.train.card import write_card
from gpt2cli.train.facts import Facts, Sample
from gpt2cli.train.options import ExportOptions

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def round_weights(model: PreTrainedModel, precision: str) -> None:
    """Round to what will be saved, so that the figures are those of the saved model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(DTYPES[precision]).float())


def export(model: PreTrainedModel, tokenizer: Path, facts: Facts, directory: Path) -> None:
    """Write the model, the tokenizer of the directory ``tokenizer``, and the card into ``directory``.

    ``config.json`` comes last: until then there is no model. Raises `OSError`.
    """
    options = facts.recipe.export
    temporary = Path(tempfile.mkdtemp(dir=directory, prefix=".export-"))
    try:
        _save(model, options, temporary)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, temporary / name)
        card = write_card(facts, draw_samples(temporary, options))
        (temporary / CARD).write_text(card, encoding="utf-8")
        names = sorted((p.name for p in temporary.iterdir()), key=lambda name: name == "config.json")
        for name in names:
            as_created(temporary / name)
            _flush(temporary / name)
            os.replace(temporary / name, directory / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(model: PreTrainedModel, options: ExportOptions, directory: Path) -> None:
    model.set_attn_implementation("eager")
    any_model: Any = model
    any_model.to(DTYPES[options.save_precision]).save_pretrained(directory)
    if options.sampling:
        path = directory / "generation_config.json"
        settings = json.loads(path.read_text("utf-8"))
        settings |= {"do_sample": True, **options.sampling}
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def draw_samples(directory: Path, options: ExportOptions) -> list[Sample]:
    """The texts for the card, with the seeds 1, 2, …: all of them, as they come."""
    if not options.samples:
        return []
    engine = Engine.load(directory, LoadOptions(device="cpu", precision="fp32"))
    return [
        Sample(
            seed,
            engine.generate(
                options.sample_prompt, engine.options(seed=seed, max_new_tokens=options.sample_tokens)
            ).text,
        )
        for seed in range(1, options.samples + 1)
    ]
