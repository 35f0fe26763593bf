"""`replay`: the same text again, or where it parts and why; and records that strangers made."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from adapters import make_adapter
from cli import Outcome, call
from runs import record
from support import make_model, native_available, replace_tensor, series, shared, tensors_of

from gpt2cli.runs.log import RunLog
from gpt2cli.runs.record import RunModel, write_record

ON = {"GPT2CLI_LOG": "1"}
SAME = "the same text, bit for bit\n"
needs_native = pytest.mark.skipif(not native_available(), reason="the native library is not available")


def generate(*arguments: str | os.PathLike[str], **environ: str) -> Outcome:
    done = call("generate", *arguments, **{**ON, **environ})
    assert done.code == 0, done.err
    return done


def instruction_sets() -> list[str]:
    from gpt2cli.core.native.library import library

    names: list[str] = library().gpt2_instruction_sets().decode("ascii").split()
    return names


# The same text


def test_it_prints_what_generate_does() -> None:
    first = generate("--seed", "5", "--max-new-tokens", "6", "-n", "2", "Once upon")
    again = call("replay", "1")
    assert (again.out, again.err) == (first.out, first.err) and again.code == 0
    document = call("replay", "1", "--json").document
    assert document["prompt"] == "Once upon" and document["seed"] == 5
    assert call("replay", "1", "--echo").out.startswith("Once upon")
    assert call("replay", "1", "--check").out == "the same 2 texts, bit for bit\n"
    assert call("replay", "1", "--check", "--json").document == {
        "same": True,
        "difference": None,
        "changes": [],
    }
    with RunLog.open() as log:
        # What is only run again is no run of its own.
        assert log.count() == 1


def test_an_adapter_is_part_of_the_model(tmp_path: Path, tiny_model: Path) -> None:
    """It is found again for a replay and by --continue, and another one in its place is noticed."""
    adapter = make_adapter(tmp_path / "voice", tiny_model, std=0.5)
    options = ("--seed", "5", "--max-new-tokens", "6")
    first = generate("-m", tiny_model, "--adapter", adapter, *options, "ab")
    assert first.out != generate("-m", tiny_model, *options, "ab").out
    assert call("replay", "1").out == first.out and call("replay", "1", "--check").out == SAME
    call("logs", "rm", "2")
    longer = generate("-c", *options, "--json").document
    assert longer["model"] == f"{tiny_model.resolve()}+{adapter.resolve()}"
    make_adapter(adapter, tiny_model, std=0.5, seed=9)
    changed = call("replay", "1", "--check")
    assert changed.code == 1 and "model hash" in changed.out


PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")


@needs_native
@pytest.mark.parametrize("model", ["trained", pytest.param("tiny", marks=pytest.mark.slow)])
def test_the_same_with_any_threads_and_instructions(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every precision: recorded in one way, and run again in another."""
    named = shared("models", "slm_4096_kunal", "hf") if model == "trained" else "tiny"
    chance, sets = random.Random(model), instruction_sets()
    prompts = ("Once upon a time", "The", "She said: no.\n", "A dragon came to the castle and")
    count = series(100, 5)
    for number in range(count):
        monkeypatch.setenv("GPT2CLI_NATIVE", chance.choice(sets))
        options = ["--threads", chance.choice("12"), "--max-new-tokens", str(chance.randint(1, 30))]
        options += ["--precision", PRECISIONS[number % len(PRECISIONS)]]
        options += chance.choice(
            ([], ["--greedy"], ["-n", "3"], ["--top-p", "0.9", "--repetition-penalty", "1.2"])
        )
        generate("-q", "-m", named, *options, chance.choice(prompts))
    for run in range(1, count + 1):
        monkeypatch.setenv("GPT2CLI_NATIVE", chance.choice(sets))
        checked = call("replay", str(run), "--check", "--json", "--threads", chance.choice("12"))
        assert checked.document["same"], (run, checked.document)
        assert {change["what"] for change in checked.document["changes"]} <= {"threads", "kernels"}


OPTIONS: list[tuple[str, ...]] = [
    ("--rng", "transformers", "-n", "2"),
    ("--overflow", "slide", "--max-new-tokens", "90", "--ignore-eos"),
    ("--overflow", "truncate", "--max-length", "80", "--stop", "e", "--stop", "\n"),
    (
        "--logit-bias",
        "70=5",
        "--presence-penalty",
        "1",
        "--frequency-penalty",
        "0.5",
        "--logprobs",
        "2",
        "--json",
    ),
    ("--special-tokens", "--typical-p", "0.5", "--min-p", "0.01", "--no-repeat-ngram-size", "2"),
    ("--draft", "lookup", "--greedy"),
    ("--draft", "tiny"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_every_option_is_recorded(options: tuple[str, ...], tiny_model: Path, tmp_path: Path) -> None:
    """In a log and in a file."""
    given = [str(tiny_model) if option == "tiny" else option for option in options]
    if not {"--max-new-tokens", "--max-length"} & {*options}:
        given += ["--max-new-tokens", "12"]
    prompt = "Once <|endoftext|> upon a time there was a time there was"
    text = generate("-m", tiny_model, "--seed", "9", *given, "--record", tmp_path / "r", prompt)
    for flags in (("1",), (str(tmp_path / "r"), "-m", str(tiny_model))):
        assert call("replay", *flags, "--check").code == 0
        if "--json" not in options:
            assert call("replay", *flags).out == text.out


def test_turns_of_a_chat_are_replayed(tiny_model: Path) -> None:
    """They are of tokens, which their text need not give."""
    lines = b"Hi\nWhat <|endoftext|>?\nAnd\n"
    for arguments in (("--format", "dialogpt"), ("--format", "transcript", "--system", "A talk."), ()):
        call("chat", "-m", tiny_model, "--max-new-tokens", "7", *arguments, stdin=lines, **ON)
    with RunLog.open() as log:
        assert log.count() == 9
    for run in range(1, 10):
        assert call("replay", str(run), "--check").out == SAME


def test_torch_and_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who computed is part of a record: what torch drew is drawn by torch."""
    monkeypatch.setenv("GPT2CLI_NATIVE", "0")
    generate("--seed", "3", "--max-new-tokens", "8", "Once")
    monkeypatch.delenv("GPT2CLI_NATIVE")
    assert call("replay", "1", "--check").out == SAME


# Another text


def test_where_it_parts(tmp_path: Path) -> None:
    """Another precision of a model that has learnt nothing."""
    model = make_model(tmp_path / "random")
    document = generate("-m", model, "--greedy", "--max-new-tokens", "40", "--json", "ab").document
    other = call("replay", "1", "--check", "--precision", "int4")
    lines = other.out.splitlines()
    assert other.code == 1 and lines[0] == "the text is another one"
    place = int(lines[1].removeprefix("token ").partition(":")[0]) - 1
    ids = call("replay", "1", "--precision", "int4", "--json").document["choices"][0]["token_ids"]
    then = document["choices"][0]["token_ids"]
    assert then[:place] == ids[:place] and then[place] != ids[place]
    assert f"{then[place]} " in lines[1] and f"{ids[place]} " in lines[1]
    assert "precision fp16 → int4" in lines[-1] and len(lines) == 4
    found = call("replay", "1", "--check", "--precision", "int4", "--json")
    assert found.code == 1
    difference = json.loads(found.out)["difference"]
    assert difference["token"] == place and difference["recorded"]["token_id"] == then[place]


def test_a_model_that_has_changed(tmp_path: Path) -> None:
    """The name leads to it, and the hash tells."""
    model = make_model(tmp_path / "random")
    generate("-m", model, "--seed", "1", "--max-new-tokens", "20", "ab")
    assert call("replay", "1").err == "seed 1\n"
    replace_tensor(model, "transformer.wte.weight", tensors_of(model)["transformer.wte.weight"].flip(0))
    assert "is not the model of the run: its hash is" in call("replay", "1").err
    checked = call("replay", "1", "--check")
    assert checked.code == 1 and "model hash" in checked.out.splitlines()[-1]
    shutil.rmtree(model)
    gone = call("replay", "1")
    assert gone.code == 3 and "no such directory" in gone.err


def test_another_model() -> None:
    generate("--seed", "1", "--max-new-tokens", "4", "Once")
    with RunLog.open() as log:
        log.set_hash([1], "0" * 64)
    checked = call("replay", "1", "--check")
    # It may still give the same text.
    assert checked.code == 0 and "though changed since: model hash 000000000000 → " in checked.out


# Records of others


def test_a_record_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the log or of this place is in it."""
    first = call("generate", "--seed", "1", "--max-new-tokens", "6", "--record", tmp_path / "r", "Once")
    assert first.code == 0
    monkeypatch.setenv("GPT2CLI_HOME", str(tmp_path / "elsewhere"))
    assert call("replay", tmp_path / "r").out == first.out
    assert call("replay", tmp_path / "r", "--check").out == SAME
    assert not list((tmp_path / "elsewhere").rglob("*sqlite*"))


def test_a_directory_is_only_found_with_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record has its name and no path, and a name is never taken for one."""
    model = make_model(tmp_path / "random")
    call("generate", "-m", model, "--seed", "1", "--max-new-tokens", "6", "--record", tmp_path / "r", "ab")
    assert str(tmp_path) not in (tmp_path / "r").read_text()
    monkeypatch.chdir(tmp_path)
    refused = call("replay", "r", "--check")
    assert refused.code == 3 and "random: no model of that name on this disk" in refused.err
    assert call("replay", "r", "--check", "-m", "random").out.startswith(SAME.removesuffix("\n"))


@pytest.mark.parametrize(
    ("name", "code"),
    [("../random", 2), ("/etc", 2), ("~", 2), (".", 2), ("", 2), ("http://x/v1#m", 2), ("a/b", 3)],
)
def test_a_name_leads_nowhere_else(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to a path, not to a server, not to the Hub."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(make_model(tmp_path / "random"), tmp_path / "here" / "a" / "b")
    write_record(Path("r"), record(model=RunModel(name=name)))
    done = call("replay", "r")
    assert (done.code, done.out) == (code, "") and len(done.err.splitlines()) <= 2


def test_the_revision_that_is_there(tmp_path: Path) -> None:
    """Another one will do, with a word."""
    model = make_model(tmp_path / "random")
    assert call("import", model, "--name", "mine").code == 0
    call("generate", "-m", "mine", "--seed", "1", "--max-new-tokens", "4", "--record", tmp_path / "r", "ab")
    assert call("replay", tmp_path / "r", "--check").out == SAME
    raw = json.loads((tmp_path / "r").read_text())
    raw["model"] = {**raw["model"], "revision": "f" * 40, "sha256": "0" * 64}
    (tmp_path / "r").write_text(json.dumps(raw))
    assert "is not the model of the run" in call("replay", tmp_path / "r").err
    raw["model"]["revision"] = "../../x"
    (tmp_path / "r").write_text(json.dumps(raw))
    assert call("replay", tmp_path / "r").code == 2


def changed(**fields: Any) -> dict[str, Any]:
    raw = record().document()
    for name, value in fields.items():
        section, _, key = name.partition("__")
        if key:
            raw[section][key] = value
        else:
            raw[section] = value
    return raw


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (changed(record="x"), "not the record of a run"),
        (changed(format=9), "newer gpt2cli"),
        (changed(options__temperature=-1), "temperature: -1 is not allowed"),
        (changed(options__pickle="x"), "'pickle' is not an option"),
        (changed(prompt_ids=[2**31 - 1]), "outside the model's vocabulary"),
        (changed(prompt_ids=[1] * 5000), "the prompt has 5000 tokens"),
        (changed(options__logit_bias=[[2**40, 1.0]]), "the model's vocabulary has"),
        (changed(options__draft="evil/model", engine__device="cuda", options__logprobs=10**9), None),
        (changed(engine__kernels=["\x1b[2J"], model__sha256=None, engine__machine="\x1b]0;x\x07"), None),
    ],
    ids=str,
)
def test_records_of_strangers(raw: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    """Each is one line; what does not matter for the text does nothing."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps(raw))
    for flags in ((), ("--check",)):
        done = call("replay", path, *flags)
        assert "Traceback" not in done.err and "defect" not in done.err
        if said is None:
            assert done.code in (0, 1) and "\x1b" not in done.out + done.err
        else:
            assert said in done.err and done.code in (2, 5, 6) and done.out == ""


def test_what_is_named() -> None:
    assert call("replay", "7").code == 2 and "the log is empty" in call("replay", "7").err
    absent = call("replay", "none.json")
    assert absent.code == 2 and "neither the number of a run nor a file" in absent.err
    generate("--max-new-tokens", "1", "Once")
    assert "there is no run 7" in call("replay", "7").err and call("replay", "9" * 40).code == 2
    for flags in (("--echo",), ("--jsonl",), ("-o", "x"), ("--sanitize",)):
        assert "--check prints no text" in call("replay", "1", "--check", *flags).err


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    """Said before anything is generated; and a log has no part in it."""
    for path, said in (
        (tmp_path, "it is a directory"),
        (tmp_path / "no" / "x", "no directory"),
        ("-", "needs a file"),
    ):
        done = call("generate", "--record", path, "Once")
        assert (done.code, done.out) == (2, "") and said in done.err


def test_what_the_log_shows_is_a_record(tmp_path: Path) -> None:
    generate("--max-new-tokens", "5", "Once")
    (tmp_path / "r").write_text(call("logs", "show", "1", "--json").out)
    assert call("replay", tmp_path / "r", "--check").out == SAME
