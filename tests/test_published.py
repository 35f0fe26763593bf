"""The published models and their published greedy texts. Needs the internet: ``pytest -m hub``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import SHARED

from gpt2cli import Engine, GenerateOptions

pytestmark = pytest.mark.hub

# Read before the isolation of the tests begins: these use the user's own cache.
CACHE = os.environ.get("HF_HUB_CACHE")
REPOSITORIES = {"gpt2": "openai-community/gpt2", "distilgpt2": "distilbert/distilgpt2"}


def facts() -> list[dict[str, Any]]:
    path = SHARED / "data" / "expected_real_outputs.json"
    if not path.exists():
        return []
    return [entry for entry in json.loads(path.read_text())["entries"] if entry["kind"] == "greedy_ids"]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("fact", facts(), ids=lambda fact: fact["id"])
def test_greedy_text_is_as_published(fact: dict[str, Any], online: None) -> None:
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    directory = snapshot_download(REPOSITORIES[fact["model"]], allow_patterns=patterns, cache_dir=CACHE)
    engine = Engine.load(Path(directory))
    result = engine.generate(fact["prompt"], GenerateOptions(temperature=0, max_length=fact["max_length"]))
    assert fact["prompt_ids"] + result.choices[0].token_ids == fact["expected_ids"]
    assert fact["prompt"] + result.text == fact["expected_text"]
