"""`gpt2cli verify`: what it finds, and what it does not call verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli import call, run
from stores import COMMIT, GPT2, cache_model, flip_a_byte, sha256, store_model
from support import make_model, shared, write_json

from gpt2cli.hub.reference_texts import Continuation
from gpt2cli.hub.store import weights_cache

pytestmark = pytest.mark.usefixtures("nothing_built_in")

QUESTION = "Q: Hello\nA:"


def test_a_good_model(tiny_model: Path) -> None:
    store_model(tiny_model, "my-stories")
    outcome = call("verify", "my-stories")
    assert outcome.out == "my-stories\tlocal\tverified\t4 of 4 files have the right hash\n"
    assert (outcome.code, outcome.err) == (0, "")
    (model,) = call("verify", "--json").document["models"]
    assert (model["status"], model["problems"], model["repair"]) == ("verified", [], None)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "vocab.json", "merges.txt"])
def test_a_flipped_byte_is_found(tiny_model: Path, file: str) -> None:
    stored = store_model(tiny_model, "someone/stories", COMMIT, kind="hub")
    store_model(tiny_model, "good")
    flip_a_byte(stored.directory / file)
    outcome = call("verify")
    rows = dict(line.split("\t")[::2] for line in outcome.out.splitlines())
    assert rows == {"someone/stories": "damaged", "good": "verified"}
    assert outcome.code == 5 and file in outcome.err
    assert outcome.err.splitlines()[-1] == "hint: to repair it: gpt2cli pull someone/stories"
    assert call("verify", "good").code == 0
    whole = call("verify", "someone/stories", "--json")
    (model,) = json.loads(whole.out)["models"]
    assert (whole.code, model["status"]) == (5, "damaged")
    assert [f["path"] for f in model["files"] if f["status"] == "damaged"] == [file]


def test_every_flipped_byte_is_found(tiny_model: Path) -> None:
    """A byte at a time, all over the weights."""
    stored = store_model(tiny_model, "my-stories")
    weights = stored.directory / "model.safetensors"
    size = weights.stat().st_size
    for where in range(0, size, size // 20):
        flip_a_byte(weights, where)
        assert call("verify").code == 5
        flip_a_byte(weights, where)
    assert call("verify").code == 0


def test_files_that_are_missing_cut_or_strange(tiny_model: Path) -> None:
    stored = store_model(tiny_model, "my-stories")
    whole = (stored.directory / "merges.txt").read_bytes()
    (stored.directory / "merges.txt").write_bytes(whole[:-1])
    assert "it has" in call("verify").err
    (stored.directory / "merges.txt").unlink()
    assert call("verify").code == 5
    (stored.directory / "merges.txt").mkdir()
    assert call("verify").code == 5
    (stored.directory / "merges.txt").rmdir()
    (stored.directory / "merges.txt").write_bytes(whole)
    assert call("verify").code == 0
    (stored.directory / "tokenizer.json").write_text("{}")
    outcome = call("verify")
    assert outcome.code == 5 and "tokenizer.json" in outcome.err


def test_a_model_with_the_right_hashes_that_is_none(tmp_path: Path) -> None:
    """The wrong files, faithfully kept."""
    directory = make_model(tmp_path / "m")
    write_json(directory / "config.json", {"model_type": "gpt2", "n_layer": 3})
    store_model(directory, "odd")
    outcome = call("verify", "--json")
    (model,) = json.loads(outcome.out)["models"]
    assert (outcome.code, model["status"], len(model["problems"])) == (5, "damaged", 1)


def test_the_cache_is_held_against_the_names_of_its_blobs(tiny_model: Path) -> None:
    snapshot = cache_model(tiny_model, "someone/else")
    assert call("verify").code == 0
    for file in ("model.safetensors", "config.json"):
        flip_a_byte(snapshot / file)
        outcome = call("verify", "someone/else", "--json")
        (model,) = json.loads(outcome.out)["models"]
        assert outcome.code == 5 and "hf download someone/else" in model["repair"]
        flip_a_byte(snapshot / file)
    assert call("verify").code == 0


def test_what_has_no_hash_is_not_called_verified(tiny_model: Path) -> None:
    outcome = call("verify", tiny_model)
    assert outcome.code == 1 and "\tunverified\t" in outcome.out
    snapshot = cache_model(tiny_model, "someone/else")
    copy = (snapshot / "config.json").read_bytes()
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_bytes(copy)
    assert call("verify", "someone/else", "--json").code == 1
    stored = store_model(tiny_model, "my-stories")
    record = stored.directory.parent / "local.json"
    content = json.loads(record.read_text())
    content["files"][0]["sha256"] = "?"
    write_json(record, content)
    assert call("verify", "my-stories").code == 1
    write_json(record, content | {"files": []})
    outcome = call("verify", "my-stories")
    # What the manifest does not know was not there.
    assert outcome.code == 5 and "verified\t" not in outcome.out


@pytest.mark.parametrize(("text", "code"), [("nothing", 3), ("a//b", 2), ("./x", 3)])
def test_what_is_not_there(text: str, code: int) -> None:
    assert call("verify", text).code == code


def test_nothing_to_verify() -> None:
    outcome = call("verify")
    assert (outcome.code, outcome.out) == (0, "") and "no models" in outcome.err


# Published texts


def test_a_model_that_does_not_say_what_is_published(tiny_model: Path) -> None:
    """The right hashes of the wrong model."""
    store_model(tiny_model, GPT2, COMMIT, kind="hub")
    outcome = call("verify", "gpt2")
    assert outcome.code == 5
    assert "0 of 7 texts are as published" in outcome.out and "'The dog'" in outcome.err
    assert call("verify", "gpt2", "--files-only").code == 0


def test_a_model_without_a_tokenizer_cannot_say_it(tmp_path: Path) -> None:
    store_model(make_model(tmp_path / "m", tokenizer=None), GPT2, COMMIT)
    outcome = call("verify", "gpt2", "--json")
    assert outcome.code == 5 and "no tokenizer" in json.loads(outcome.out)["models"][0]["problems"][0]


def test_a_machine_that_is_too_small_does_not_make_a_model_damaged(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_model(tiny_model, "gpt2")
    monkeypatch.setattr("gpt2cli.core.memory.available_memory", lambda: 10)
    outcome = call("verify", "gpt2", "--json")
    (model,) = json.loads(outcome.out)["models"]
    assert (outcome.code, model["status"]) == (1, "unverified")
    assert "memory" in model["problems"][0]


def test_a_model_that_says_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained model of others, and what its authors' own program makes of a prompt."""
    directory = shared("models", "slm_4096_kunal", "hf")
    texts = json.loads(shared("models", "slm_4096_kunal", "expected.json").read_text())
    text = texts["greedy_until_newline_sliding_window_128"][QUESTION]
    new = len(text) - len(QUESTION)
    facts = (Continuation("slm", GPT2, QUESTION, new, text, None, "its authors"),)
    monkeypatch.setattr("gpt2cli.cli.verify.continuations", lambda name: facts if name == GPT2 else ())
    cache_model(directory, GPT2)
    outcome = call("verify", "gpt2", tty="out err")
    assert outcome.code == 0, outcome.err
    assert "1 of 1 texts are as published" in outcome.out and "its authors" in outcome.out
    (model,) = call("verify", "gpt2", "--json").document["models"]
    assert model["texts"][0]["as_published"] and model["texts"][0]["found"] == text


@pytest.mark.slow
def test_as_a_process(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And from a store that was copied elsewhere."""
    store_model(tiny_model, "my-stories")
    home = tmp_path / "elsewhere"
    from gpt2cli import paths

    shutil.copytree(paths.store_dir(), home / "models")
    monkeypatch.setenv("GPT2CLI_HOME", str(home))
    outcome = run("verify")
    assert (outcome.code, outcome.err) == (0, "")
    assert run("generate", "-q", "-m", "my-stories", "--max-new-tokens", "1", "a").code == 0
    used = {line.split("\t")[0]: line.split("\t")[5] for line in run("list").out.splitlines()}
    assert used["my-stories"] != ""
    flip_a_byte(home / "models" / "my-stories" / "local" / "model.safetensors")
    outcome = run("verify")
    assert outcome.code == 5 and "Traceback" not in outcome.err


def test_damaged_converted_weights_are_no_fault_of_the_model(tiny_model: Path) -> None:
    """They were deleted, and then a pull of the model was named as the repair."""
    stored = store_model(tiny_model, "mine")
    folder = weights_cache(stored)
    folder.mkdir(parents=True)
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(name.encode())
        (folder / f"{name}.sha256").write_text(sha256(folder / "a.safetensors") + "\n")
    outcome = call("verify", "mine")
    assert (outcome.code, "repair" in outcome.err) == (0, False), outcome.err
    assert "b.safetensors: not what was written; deleted" in outcome.err
    assert [path.name for path in sorted(folder.glob("*.safetensors"))] == ["a.safetensors"]
    (folder / "b.safetensors").mkdir()
    document = call("verify", "mine", "--json")
    (model,) = json.loads(document.out)["models"]
    assert document.code == 5 and model["repair"] == f"delete {folder}"
