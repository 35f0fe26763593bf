"""The model that ships in the package: `tiny`, as its card says it is."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli import call, shell
from support import REPOSITORY, series, shared

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core.engine import Engine
from gpt2cli.hub.manifest import FileRecord, Manifest, now, read_manifest
from gpt2cli.hub.resolve import builtin_directory
from gpt2cli.train.documents import document_key, find_sources, read_pieces
from gpt2cli.train.options import DataOptions

BUILTIN = builtin_directory()
UPDATE = os.environ.get("GPT2CLI_UPDATE") == "1"
MAX_BYTES = 16 * 10**6
HOLDOUT = {
    "classic_black-beauty_anna-sewell.txt": 1.50,
    "fairy_the-grey-fairy-book_pg6746.txt": 1.38,
    "tinystories_a-valid-sample_tail.txt": 1.00,
}


def card() -> str:
    return (BUILTIN / "README.md").read_text("utf-8")


def card_score(file: str) -> float:
    row = re.search(rf"\| test: {re.escape(file)} \| [\d,]+ \| ([\d.]+) \|", card())
    assert row, file
    return float(row[1])


def test_its_manifest_is_of_these_files() -> None:
    """``GPT2CLI_UPDATE=1`` writes it anew, after a training."""
    files = sorted(path for path in BUILTIN.iterdir() if path.name != "manifest.json")
    records = [
        FileRecord(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    ]
    if UPDATE:
        Manifest("tiny", "builtin", tuple(records), (), {"kind": "train"}, now()).write(
            BUILTIN / "manifest.json"
        )
    manifest = read_manifest(BUILTIN / "manifest.json")
    assert manifest is not None
    assert list(manifest.files) == records
    assert call("verify", "tiny").code == 0


def test_it_is_small_and_sees_enough() -> None:
    assert sum(path.stat().st_size for path in BUILTIN.iterdir()) <= MAX_BYTES
    assert open_checkpoint(BUILTIN).config.n_positions >= 512


def test_the_first_command_prints_a_story() -> None:
    """Without a model, a setting, or a network."""
    done = call("generate", "--seed", "1", "Once upon a time")
    assert done.code == 0, done.err
    assert len(done.out.split()) > 40
    assert "seed 1" in done.err


def test_a_terminal_is_told_which_model_speaks() -> None:
    line = "tiny: the built-in story-teller; for GPT-2: gpt2cli pull distilgpt2"
    assert line in call("generate", "Once", tty="err").err
    assert line not in call("generate", "Once").err
    assert line not in call("generate", "-m", "tiny", "Once", tty="err").err
    assert line not in call("generate", "-q", "Once", tty="err").err


def test_a_setting_comes_before_it(tiny_model: Path) -> None:
    done = call("generate", "--json", "ab", GPT2CLI_MODEL=str(tiny_model))
    assert done.document["model"] == str(tiny_model)
    assert call("generate", "--json", "ab").document["model"] == "tiny"


def test_it_starts_with_its_own_sampling() -> None:
    options = call("generate", "--json", "Once").document["options"]
    names = ("temperature", "repetition_penalty", "no_repeat_ngram_size")
    assert [options[name] for name in names] == [0.75, 1.03, 5]


def test_transformers_gives_the_same_greedy_text() -> None:
    """Both in fp32."""
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    prompt = "Once upon a time there was a little"
    done = call("generate", "--greedy", "--precision", "fp32", "--json", "--max-new-tokens", "100", prompt)
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN)
    model = GPT2LMHeadModel.from_pretrained(BUILTIN, dtype=torch.float32)
    inputs = tokenizer(prompt, return_tensors="pt")
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=100)[
        0, inputs["input_ids"].shape[1] :
    ]
    ids = [token for token in expected.tolist() if token != model.config.eos_token_id]
    assert done.document["choices"][0]["token_ids"] == ids
    assert done.document["choices"][0]["text"] == tokenizer.decode(ids)


def test_the_card_names_the_corpus_by_its_hashes() -> None:
    manifest = json.loads(shared("corpus", "manifest.json").read_text("utf-8"))
    text = card()
    for entry in manifest:
        kind, _, name = entry["file"].partition("/")
        use = {"train": "train", "holdout": "test"}[kind]
        assert f"| {use} | {name} | {entry['bytes']:,} | `{entry['sha']}` |" in text


def test_the_card_names_the_options_of_the_recipe() -> None:
    recipe = tomllib.loads((BUILTIN / "recipe-2.toml").read_text("utf-8"))
    text = card()
    for name in ("steps", "batch-size", "window", "seed", "optimizer", "learning-rate", "weight-decay"):
        assert f"| {name} | {recipe[name]} |" in text
    assert f"# {recipe['title']}" in text


def test_the_card_has_twenty_samples_as_the_model_draws_them() -> None:
    text = card()
    assert len(re.findall(r"^Seed \d+:$", text, re.MULTILINE)) == 20
    for seed in (1, 20):
        drawn = call("generate", "--seed", str(seed), "--max-new-tokens", "150", "--echo", "Once upon a time")
        block = "\n".join(f"    {line}".rstrip() for line in drawn.out.rstrip("\n").split("\n"))
        assert f"Seed {seed}:\n\n{block}" in text


def test_nothing_held_out_was_trained_on() -> None:
    """No document of the holdout is in the training set, whatever its white space."""
    options = DataOptions(data=(Path(),))

    def keys(folder: Path) -> set[bytes]:
        return {
            document_key(piece.text)
            for source in find_sources([folder])
            for piece in read_pieces(source, field=options.field, separator=options.separator)
            if piece.starts
        }

    held_out = keys(shared("corpus", "holdout"))
    assert len(held_out) > 500
    assert held_out.isdisjoint(keys(shared("corpus", "train")))


@pytest.mark.slow
def test_the_figures_of_the_card_come_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits per byte on the holdout, window 512, with transformers' forward pass."""
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(BUILTIN)
    model = GPT2LMHeadModel.from_pretrained(BUILTIN, dtype=torch.float32)
    end_of_text = model.config.eos_token_id
    for source in find_sources([shared("corpus", "holdout")])[: series(3, 1)]:
        ids, size, nats = [], 0, 0.0
        for piece in read_pieces(source, field="text", separator="<|endoftext|>"):
            ids += [end_of_text, *tokenizer(piece.text)["input_ids"]]
            size += len(piece.text.encode())
        stream = torch.tensor(ids)
        for start in range(0, len(ids) - 1, 512):
            window = stream[start : start + 513][None]
            with torch.no_grad():
                logits = model(window[:, :-1]).logits[0]
            nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        measured = nats / torch.log(torch.tensor(2.0)).item() / size
        assert measured == pytest.approx(card_score(source.name), abs=2e-4)


def repeated(texts: list[list[int]], size: int = 4) -> float:
    """The share of n-grams that stood in their text before."""
    grams = [[tuple(ids[n : n + size]) for n in range(len(ids) - size + 1)] for ids in texts]
    return 1 - sum(len(set(own)) for own in grams) / sum(map(len, grams))


@pytest.mark.slow
def test_it_goes_round_in_circles_little_more_than_what_it_has_read() -> None:
    """Of 200 unselected texts of 200 tokens at its defaults."""
    engine = Engine.load(BUILTIN)
    options = engine.options(seed=1, num_return_sequences=200, max_new_tokens=200)
    drawn = [choice.token_ids for choice in engine.generate("Once upon a time", options).choices]
    pick, read = random.Random(0), []
    texts = [path.read_text("utf-8") for path in sorted(shared("corpus", "train").glob("*.txt"))]
    for text in pick.choices(texts, [len(text) for text in texts], k=4000):
        at = pick.randrange(len(text) - 1500)
        read.append(engine.encode(text[at : at + 1500])[:200])
    assert repeated(drawn) <= 1.3 * repeated(read), (repeated(drawn), repeated(read))


@pytest.mark.slow
def test_the_wheel_carries_it(tmp_path: Path) -> None:
    """What pip builds from a checkout has the weights in it, and stays below 16 MB."""
    import zipfile

    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(REPOSITORY)]
    built = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    if built.returncode:
        pytest.skip(f"pip cannot build here: {built.stderr.strip().splitlines()[-1]}")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size <= MAX_BYTES
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "recipe.toml", "recipe-2.toml"}
    assert {f"gpt2cli/builtin/{name}" for name in kept} <= names
    assert not any("shared" in name or "corpus/" in name for name in names)


def test_a_pipe_gets_the_story_alone() -> None:
    done = shell("$G generate -q --seed 2 --max-new-tokens 30 'Once upon a time' | cat")
    assert (done.code, done.err) == (0, "")
    assert done.out.strip()
