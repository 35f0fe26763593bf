"""The flags of commands as typed values: they are what Typer hands over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from gpt2cli.cli.batch import batch
from gpt2cli.cli.batch_flags import BatchFlags
from gpt2cli.cli.chat import chat
from gpt2cli.cli.chat_request import ChatFlags
from gpt2cli.cli.compare import compare
from gpt2cli.cli.compare_request import CompareFlags
from gpt2cli.cli.features import FeaturesFlags, features
from gpt2cli.cli.flags import SamplingFlags, given_options
from gpt2cli.cli.generate import GenerateFlags, generate
from gpt2cli.cli.inspect import InspectFlags, inspect
from gpt2cli.cli.preset import SaveFlags, save
from gpt2cli.cli.replay import ReplayFlags, replay
from gpt2cli.cli.score import score
from gpt2cli.cli.score_options import ScoreFlags
from gpt2cli.cli.serve import ServeFlags, serve
from gpt2cli.cli.write import WriteFlags, write
from gpt2cli.errors import UsageError
from gpt2cli.settings import Setting, Settings

COMMANDS = [
    (batch, BatchFlags),
    (chat, ChatFlags),
    (compare, CompareFlags),
    (features, FeaturesFlags),
    (generate, GenerateFlags),
    (inspect, InspectFlags),
    (save, SaveFlags),
    (replay, ReplayFlags),
    (score, ScoreFlags),
    (serve, ServeFlags),
    (write, WriteFlags),
]


@pytest.mark.parametrize(("command", "kind"), COMMANDS, ids=lambda part: part.__name__)
def test_fields_are_the_parameters(command: Callable[..., object], kind: Any) -> None:
    """`read_flags` is where types are taken on trust: here they are compared, and none is left out."""
    wanted = get_type_hints(command)
    found = get_type_hints(kind)
    assert {field.name: found[field.name] for field in fields(kind)} == {
        name: hint for name, hint in wanted.items() if name not in ("ctx", "debug", "return")
    }


def sampling(**given: Any) -> SamplingFlags:
    return SamplingFlags(**{**{field.name: None for field in fields(SamplingFlags)}, **given})


def test_flags_come_before_settings() -> None:
    settings = Settings({"top_k": Setting(5, "environment"), "temperature": Setting(0.5, "config.toml")})
    assert given_options(settings, sampling(top_k=7)) == {"top_k": 7, "temperature": 0.5}
    assert given_options(settings, sampling(greedy=True)) == {"top_k": 5, "temperature": 0.0}


def test_greedy_against_temperature() -> None:
    with pytest.raises(UsageError, match="do not go together"):
        given_options(Settings({}), sampling(greedy=True, temperature=0.5))
    assert given_options(Settings({}), sampling(greedy=True, temperature=0.0)) == {"temperature": 0.0}
