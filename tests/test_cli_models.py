"""`gpt2cli list` and `gpt2cli show`."""

from __future__ import annotations

import json
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cli import call
from stores import COMMIT, GPT2, OTHER, cache_model, flip_a_byte, store_model
from support import make_model, write_json

from gpt2cli import paths

CARD = "---\nlicense: mit\n---\n# Limitations and bias\nIt \x1b]0;owned\x07is\x9b biased.\n"


pytestmark = pytest.mark.usefixtures("nothing_built_in")


def test_list_in_a_pipe(tiny_model: Path) -> None:
    store_model(tiny_model, "my-stories")
    store_model(tiny_model, GPT2, COMMIT, kind="hub")
    cache_model(tiny_model, "someone/else", OTHER)
    call("config", "set", "model", "gpt2")
    outcome = call("list")
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    size = str(sum(path.stat().st_size for path in tiny_model.iterdir()))
    assert [row[:2] for row in rows] == [["my-stories", "local"], ["gpt2", COMMIT], ["someone/else", OTHER]]
    assert {row[3] for row in rows} == {"fp32"} and {row[4] for row in rows} == {size}
    assert [row[6] for row in rows] == ["store", "store", "hf-cache"]
    assert [row[7] for row in rows] == ["", "default", ""]
    assert (outcome.code, outcome.err) == (0, "")


def test_list_on_a_terminal(tiny_model: Path) -> None:
    store_model(tiny_model, "my-stories")
    outcome = call("list", tty="out err", NO_COLOR="1")
    header, row = outcome.out.splitlines()
    assert header.startswith("NAME") and row.startswith("my-stories")
    assert "KB in " in outcome.err
    assert call("list", "-q", tty="out err").err == ""


def test_list_as_json(tiny_model: Path) -> None:
    stored = store_model(tiny_model, "my-stories")
    document = call("list", "--json").document
    (model,) = document["models"]
    assert model["path"] == str(stored.directory)
    assert model["parameters"] == 257 * 32 + 64 * 32 + 2 * 12704 + 64
    assert (model["default"], model["last_used"], model["problem"]) == (False, None, None)
    assert document["disk_use"]["store"] == document["disk_use"]["total"] == model["size"]


def test_list_where_there_is_nothing() -> None:
    assert call("list").out == ""
    outcome = call("list", tty="out err")
    assert (outcome.code, outcome.out) == (0, "") and "--available" in outcome.err
    assert call("list", "--json").document["models"] == []


def test_the_precision_on_disk(tmp_path: Path) -> None:
    store_model(make_model(tmp_path / "half", dtype="float16"), "half")
    store_model(make_model(tmp_path / "brain", dtype="bfloat16", shards=2), "brain")
    found = {model["name"]: model["precision"] for model in call("list", "--json").document["models"]}
    assert found == {"half": "fp16", "brain": "bf16"}


def test_a_blob_of_two_snapshots_counts_once(tiny_model: Path) -> None:
    cache_model(tiny_model, GPT2, COMMIT)
    once = call("list", "--json").document["disk_use"]
    cache_model(tiny_model, GPT2, OTHER)
    document = call("list", "--json").document
    assert len(document["models"]) == 2
    assert document["disk_use"] == once


def test_last_used(tiny_model: Path) -> None:
    store_model(tiny_model, "my-stories")
    cache_model(tiny_model, "gpt2")
    before = datetime.now(UTC).replace(microsecond=0)
    for name in ("my-stories", "gpt2"):
        assert call("generate", "-q", "-m", name, "--max-new-tokens", "1", "a").code == 0
    for model in call("list", "--json").document["models"]:
        assert datetime.fromisoformat(model["last_used"]) >= before
    assert "just now" in call("list", tty="out").out
    mark = paths.state_dir() / "used" / "store" / "my-stories@local"
    os.utime(mark, (time.time() - 3 * 86400,) * 2)
    assert "3 days ago" in call("list", tty="out").out


def test_use_that_cannot_be_remembered(tiny_model: Path) -> None:
    """The state directory is a file: the text comes all the same."""
    store_model(tiny_model, "my-stories")
    paths.state_dir().write_text("")
    outcome = call("generate", "-q", "-m", "my-stories", "--max-new-tokens", "1", "a")
    assert (outcome.code, outcome.err) == (0, "")


def test_the_built_in_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("resolve", "inventory"):
        monkeypatch.setattr(f"gpt2cli.hub.{module}.builtin_directory", lambda: tiny_model)
    (model,) = call("list", "--json").document["models"]
    assert (model["name"], model["source"], model["default"]) == ("tiny", "builtin", True)
    assert call("show", "tiny").code == 0
    assert call("rm", "--yes", "tiny").code == 2
    assert call("verify", "tiny").code == 1


def test_available(tiny_model: Path) -> None:
    store_model(tiny_model, GPT2, COMMIT)
    rows = [line.split("\t") for line in call("list", "--available").out.splitlines()]
    assert [row[0] for row in rows] == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"]
    assert [row[2] for row in rows] == ["117M", "345M", "762M", "1.5B", "82M"]
    assert [row[-1] for row in rows] == ["yes", "", "", "", ""]
    shown = call("list", "--available", tty="out", NO_COLOR="1").out
    for text in ("124M", "1,558M", "548 MB", "6.43 GB", "16.3", "21.1", "36/1280/20"):
        assert text in shown
    assert max(map(len, shown.splitlines())) <= 80
    notes = call("list", "--available", tty="out err", NO_COLOR="1").err
    assert "distilgpt2: trained on OpenWebTextCorpus, distilled from gpt2; licence Apache-2.0" in notes
    document = call("list", "--available", "--json").document
    assert [model["on_disk"] for model in document["models"]] == [True, False, False, False, False]
    assert document["sources"].keys() <= document["models"][0].keys()


# Damage


def test_a_damaged_model_is_listed_as_such(tiny_model: Path) -> None:
    good = store_model(tiny_model, "good")
    cut = store_model(tiny_model, "cut")
    os.truncate(cut.directory / "model.safetensors", 100)
    gone = store_model(tiny_model, "gone")
    (gone.directory / "vocab.json").unlink()
    bad = store_model(tiny_model, "bad")
    (bad.directory / "config.json").write_text("{")
    document = call("list", "--json").document
    assert {m["name"] for m in document["models"] if m["problem"] is None} == {good.name}
    outcome = call("list", tty="out err")
    assert outcome.code == 0 and outcome.out.count("damaged") == 3
    assert "gpt2cli verify" in outcome.err
    assert call("show", "cut").code == 0
    assert "damaged" in call("show", "bad").err


@pytest.mark.parametrize("kind", ["import", "hub"])
def test_a_file_of_another_size_is_refused_at_load(tiny_model: Path, kind: str) -> None:
    """What was cut off after it came in must not run; and the next step is named."""
    stored = store_model(tiny_model, "someone/stories", COMMIT, kind=kind, README_md="# Card\n")
    card = stored.directory / "README.md"
    card.write_text("# Another\n")
    outcome = call("generate", "-m", "someone/stories", "--max-new-tokens", "1", "a")
    assert outcome.code == 5 and "README.md" in outcome.err and "8 " not in outcome.out
    command = {"import": "gpt2cli rm someone/stories", "hub": "gpt2cli pull someone/stories"}[kind]
    assert command in outcome.err.splitlines()[-1]
    card.unlink()
    assert call("generate", "-m", "someone/stories", "a").code == 5


def test_a_damaged_manifest_is_told(tiny_model: Path) -> None:
    stored = store_model(tiny_model, "my-stories")
    (stored.directory.parent / "local.json").write_text("{")
    assert "local.json" in call("list", tty="out err").err
    outcome = call("verify")
    assert outcome.code == 5 and "local.json" in outcome.err
    assert call("show", "my-stories").code == 3


# show


def test_show(tiny_model: Path) -> None:
    store_model(tiny_model, GPT2, COMMIT, kind="hub", README_md=CARD)
    outcome = call("show", "gpt2")
    facts = dict(line.split("\t") for line in outcome.out.split("\n\n")[0].splitlines())
    assert facts["name"] == "gpt2" and facts["repository"] == GPT2
    assert facts["licence"] == "mit" and facts["context"] == "64 tokens"
    assert facts["revision"] == f"{COMMIT} (main)" and facts["published as"] == "117M"
    assert "Limitations and bias\n\nIt ]0;ownedis biased." in outcome.out
    assert "\x1b" not in outcome.out and "\x07" not in outcome.out
    document = call("show", f"gpt2@{COMMIT[:7]}", "--json").document
    assert document["card"] == [{"title": "Limitations and bias", "text": "It ]0;ownedis biased."}]
    assert document["published"]["sources"]["licence"]
    assert len(document["files"]) == 5 and document["config"]["n_layer"] == 2


def test_a_directory_is_not_what_it_is_called(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder ``gpt2`` has not the facts of the published model."""
    shutil.copytree(tiny_model, tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert call("show", "gpt2", "--json").document["published"] is None
    assert "published" not in call("verify", "gpt2").out


def test_a_cache_of_before_the_rename(tiny_model: Path) -> None:
    cache_model(tiny_model, "gpt2")
    assert call("show", "gpt2", "--json").document["published"]["published_parameters"] == "117M"
    assert call("list", "--available").out.splitlines()[0].endswith("yes")


def test_show_of_a_directory_and_of_the_cache(tiny_model: Path) -> None:
    document = call("show", tiny_model, "--json").document
    assert (document["source"], document["revision"], document["files"]) == ("directory", None, None)
    snapshot = cache_model(tiny_model, "gpt2")
    document = call("show", "gpt2", "--json").document
    assert (document["source"], document["path"]) == ("hf-cache", str(snapshot))


@pytest.mark.parametrize(("text", "code"), [("nothing", 3), ("gpt2@v9", 3), ("a//b", 2), ("./x", 3), ("", 3)])
def test_show_of_what_is_not_there(text: str, code: int) -> None:
    outcome = call("show", text)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("error: ")


def test_a_manifest_cannot_steer_the_terminal(tiny_model: Path) -> None:
    stored = store_model(tiny_model, "my-stories")
    record = stored.directory.parent / "local.json"
    content = json.loads(record.read_text())
    content |= {"created": "\x1b[2J now", "refs": ["main", "\x1b]0;x\x07"]}
    content["source"] = {"kind": "import", "path": "\x9b2J\u202e", "n\x1b[0m": "x\ty\nz"}
    write_json(record, content)
    for arguments in (("show", "my-stories"), ("list",), ("verify",)):
        for tty in ("", "out err"):
            outcome = call(*arguments, tty=tty, NO_COLOR="1")
            assert outcome.code == 0
            assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(outcome.out + outcome.err)
    assert call("list", "--json").document["models"][0]["refs"][1] == "\x1b]0;x\x07"


def test_a_flipped_byte_is_no_matter_of_list(tiny_model: Path) -> None:
    """``list`` and ``show`` look at sizes; hashing is what ``verify`` is for."""
    stored = store_model(tiny_model, "my-stories")
    flip_a_byte(stored.directory / "model.safetensors")
    assert call("list", "--json").document["models"][0]["problem"] is None
