"""What is known of the published models, against what can be counted and what the reference data say."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import pytest
from support import shared
from test_hub import HOSTILE_NAMES, HOSTILE_REVISIONS

from gpt2cli.checkpoint import ModelConfig, parse_config
from gpt2cli.errors import UsageError
from gpt2cli.hub.reference_texts import continuations
from gpt2cli.hub.registry import (
    ALIASES,
    OTHER_ALIASES,
    OTHERS,
    PUBLISHED,
    SOURCES,
    PublishedModel,
    parse_name,
    parse_reference,
    published_model,
)
from gpt2cli.text.tokenizer import Tokenizer

ALL_TEXTS = [fact for model in PUBLISHED for fact in continuations(model.repository)]


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model.name)
def test_parameters_are_counted(model: PublishedModel) -> None:
    """The counts of 2019 left the embeddings out or were estimates; ours come from the shapes."""
    config = ModelConfig(
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_positions=model.n_positions,
        n_inner=4 * model.n_embd,
    )
    assert config.parameters == model.parameters


def test_millions_are_those_that_are_known() -> None:
    millions = {model.name: round(model.parameters / 1e6) for model in PUBLISHED}
    assert millions == {
        "gpt2": 124,
        "gpt2-medium": 355,
        "gpt2-large": 774,
        "gpt2-xl": 1558,
        "distilgpt2": 82,
    }


def test_every_alias_leads_to_a_published_model() -> None:
    assert {model.repository for model in PUBLISHED} == set(ALIASES.values())
    for alias, repository in ALIASES.items():
        known = published_model(alias)
        assert known is not None and known.repository == repository
        assert published_model(repository) is known
    assert all(ALIASES[model.name] == model.repository for model in PUBLISHED)
    assert published_model("someone/else") is None


def test_other_families_have_names_of_their_own() -> None:
    assert {model.repository for model in OTHERS} == set(OTHER_ALIASES.values())
    assert not OTHER_ALIASES.keys() & ALIASES.keys()
    for model in OTHERS:
        assert OTHER_ALIASES[model.name] == model.repository == parse_name(model.name).repository
        assert published_model(model.name) is None, "nothing is vouched for"


def test_every_fact_has_a_source() -> None:
    facts = {field.name for field in fields(PublishedModel)} - {"name", "repository"}
    assert set(SOURCES) == facts | {"download_size"}
    assert all(SOURCES.values())


def test_the_shape_is_that_of_the_real_config() -> None:
    path = shared("configs", "gpt2-xl.config.json")
    config = parse_config(json.loads(path.read_text()), path)
    known = published_model("gpt2-xl")
    assert known is not None
    for name in ("n_layer", "n_embd", "n_head", "n_positions", "parameters"):
        assert getattr(known, name) == getattr(config, name)


def test_download_size() -> None:
    """gpt2-xl's pytorch_model.bin holds the same tensors, masks included, in 6,431,878,936 bytes."""
    entries = {e["id"]: e for e in json.loads(shared("expected_real_outputs.json").read_text())["entries"]}
    size = entries["gpt2_xl_official_file_hashes"]["results"]["pytorch_model.bin"]["size"]
    known = published_model("gpt2-xl")
    assert known is not None
    assert known.download_size == pytest.approx(size, rel=1e-4)


def test_perplexities_are_those_of_the_card() -> None:
    entries = {e["id"]: e for e in json.loads(shared("expected_real_outputs.json").read_text())["entries"]}
    published = entries["distilgpt2_card_wikitext103"]["results"]
    ours = {m.name: m.wikitext103_perplexity for m in PUBLISHED if m.wikitext103_perplexity is not None}
    assert ours == published


# The texts


def expected_texts(entry: dict[str, Any]) -> set[str]:
    """The texts of an entry of the reference data, whatever its form."""
    if "cases" in entry:
        return set(entry["cases"].values())
    return set(entry.get("expected_texts") or [entry["expected_text"]])


def test_the_texts_are_those_of_the_reference_data() -> None:
    """Greedy entries of fp32 and nothing else, in full."""
    entries = json.loads(shared("expected_real_outputs.json").read_text())["entries"]
    left_out = {"hf_gpt2_fp16_left_padding_max_new_tokens_20", "hf_distilgpt2_greedy_special"}
    wanted = {e["id"]: e for e in entries if e["kind"].startswith("greedy") and e["id"] not in left_out}
    ours: dict[str, set[str]] = {}
    for fact in ALL_TEXTS:
        ours.setdefault(fact.id, set()).add(fact.text)
        assert ALIASES[wanted[fact.id]["model"]] == fact.repository
        assert wanted[fact.id]["source"]["repo"] in fact.source
    assert ours == {key: expected_texts(entry) for key, entry in wanted.items()}


@pytest.mark.parametrize("fact", ALL_TEXTS, ids=lambda fact: fact.prompt)
def test_a_text_has_as_many_tokens_as_it_says(fact: Any) -> None:
    """In a padded batch the shorter prompt gets as many new tokens as the longest one."""
    tokenizer = Tokenizer.from_directory(shared("tokenizer_gpt2"))
    assert tokenizer is not None
    prompt, whole = tokenizer.encode(fact.prompt), tokenizer.encode(fact.text)
    assert whole[: len(prompt)] == prompt
    assert len(whole) - len(prompt) == fact.max_new_tokens
    assert fact.token_ids is None or list(fact.token_ids) == whole


def test_models_without_published_texts() -> None:
    assert continuations("openai-community/gpt2-xl") == ()
    assert continuations("someone/else") == ()


# References


def test_a_name_and_its_revision() -> None:
    name, revision = parse_reference("gpt2@v1.0")
    assert (name.given, name.repository, revision) == ("gpt2", "openai-community/gpt2", "v1.0")
    assert parse_reference("someone/model")[1] is None
    assert parse_reference("a/b@refs/pr/3")[1] == "refs/pr/3"


@pytest.mark.parametrize("text", [*HOSTILE_NAMES, *(f"{name}@main" for name in HOSTILE_NAMES)])
def test_hostile_names(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


@pytest.mark.parametrize("text", [*HOSTILE_REVISIONS, "a@b"])
def test_hostile_revisions(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(f"gpt2@{text}")


def test_a_published_model_is_plain_data() -> None:
    json.dumps([asdict(model) for model in PUBLISHED])
