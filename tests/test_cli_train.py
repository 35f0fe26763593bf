"""``train``, ``finetune`` and ``distill`` as a user runs them: results, resumption, bad data."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from cli import Outcome, call, run, start
from support import END_OF_TEXT, make_model, series, write_json

from gpt2cli.train.documents import find_sources

SENTENCE = "the cat sat on a mat and saw red birds fly over one old house while it rained"
WORDS = SENTENCE.split()


def make_text(documents: int = 60, seed: int = 0) -> str:
    """Little stories that a small model can learn something from."""
    chance = random.Random(seed)
    stories = [" ".join(chance.choices(WORDS, k=60)) + "." for _ in range(documents)]
    return f"\n{END_OF_TEXT}\n".join(stories) + "\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text(make_text(), "utf-8")
    return path


SMALL = (
    *("--layers", "2", "--width", "32", "--heads", "2", "--context", "64", "--vocab-size", "300"),
    *("--batch-size", "4", "--warmup", "2", "--learning-rate", "3e-3", "--precision", "fp32"),
    *("--threads", "1", "--log-every", "1", "--sample-tokens", "20"),
)


def train(*arguments: str | os.PathLike[str]) -> Outcome:
    return call("train", *SMALL, *arguments)


def events(outcome: Outcome, kind: str) -> list[dict[str, Any]]:
    assert outcome.code == 0, outcome.err
    return [event for event in outcome.events if event["event"] == kind]


def test_train_makes_a_model_that_both_programs_load(text: Path, tmp_path: Path) -> None:
    """The directory is a model for transformers and for gpt2cli, with the same greedy text."""
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    made = train(text, "--steps", "12", "--output", tmp_path / "model", "--license", "cc0-1.0")
    assert made.code == 0, made.err
    assert made.out == f"{tmp_path / 'model'}\n"
    done = call(
        "generate", "-m", tmp_path / "model", "--greedy", "--max-new-tokens", "20", "--json", "the cat"
    )
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    prompt = tokenizer("the cat", return_tensors="pt")
    expected = model.generate(**prompt, do_sample=False, max_new_tokens=20, pad_token_id=299)
    assert done.document["choices"][0]["token_ids"] == expected[0, prompt["input_ids"].shape[1] :].tolist()
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training",
    ]


def test_who_may_read_a_model(text: Path, tmp_path: Path) -> None:
    """Its files were readable by all, whatever the umask."""
    before = os.umask(0o027)
    try:
        assert train(text, "--steps", "2", "--output", tmp_path / "model").code == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_the_card_says_what_happened(text: Path, tmp_path: Path) -> None:
    """Data by hash and size, options, seed, curve, figures, samples."""
    import hashlib

    other = tmp_path / "other.txt"
    other.write_text(make_text(3, seed=9), "utf-8")
    made = train(
        *(text, "--steps", "8", "--seed", "5", "--output", tmp_path / "model", "--jsonl"),
        *("--test-data", other, "--samples", "2", "--title", "Birds"),
        *("--default-temperature", "0.7", "--default-repetition-penalty", "1.1"),
        *("--default-no-repeat-ngram-size", "4"),
    )
    (end,) = events(made, "end")
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    for path in (text, other):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
        assert f"{path.stat().st_size:,}" in card
    assert "# Birds" in card
    assert (
        "temperature 0.7, top k 50, repetition penalty 1.1, no repeat ngram size 4, with the seeds 1 to 2"
        in card
    )
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text("utf-8"))
    names = ("temperature", "repetition_penalty", "no_repeat_ngram_size")
    assert [settings[name] for name in names] == [0.7, 1.1, 4]
    assert "| seed | 5 |" in card
    assert f"| {end['bits_per_byte']:.4f} |" in card
    assert f"| {end['tests'][0]['bits_per_byte']:.4f} |" in card
    last = events(made, "evaluation")[-1]
    assert f"| 8 | {events(made, 'step')[-1]['loss']:.4f} | {last['loss']:.4f} |" in card
    for seed in (1, 2):
        drawn = call(
            *("generate", "-m", tmp_path / "model", "--seed", str(seed), "--max-new-tokens", "20", "-p", ""),
        )
        assert f"Seed {seed}:\n\n    " + drawn.out.rstrip("\n").replace("\n", "\n    ") in card


def test_the_figures_are_those_of_the_saved_weights(text: Path, tmp_path: Path) -> None:
    """Bits per byte, computed again with transformers from the files as they are."""
    import math

    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    test = tmp_path / "test.txt"
    test.write_text("the cat sat on a mat. and saw red birds fly. " * 40, "utf-8")
    made = train(
        *(text, "--steps", "6", "--output", tmp_path / "model", "--jsonl", "--save-precision", "fp16"),
        *("--test-data", test),
    )
    (end,) = events(made, "end")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    content = test.read_text("utf-8")
    ids = torch.tensor([299, *tokenizer(content)["input_ids"]])
    nats = 0.0
    for start_at in range(0, len(ids) - 1, 64):
        window = ids[start_at : start_at + 65][None]
        with torch.no_grad():
            logits = model(window[:, :-1]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    assert end["tests"][0]["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(content), abs=1e-5)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses(text: Path, tmp_path: Path) -> None:
    losses = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        made = train(text, "--steps", "5", "--seed", seed, "--output", tmp_path / name, "--jsonl")
        losses.append([event["loss"] for event in events(made, "step")])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def test_resuming_goes_on_to_the_same_losses(text: Path, tmp_path: Path, optimizer: str) -> None:
    """With dropout, accumulation and a short window first, so that all there is to restore is restored."""
    options = (
        *(text, "--steps", "9", "--save-every", "3", "--evaluate-every", "3", "--dropout", "0.1"),
        *("--optimizer", optimizer, "--micro-batch-size", "2", "--short-window", "32", "--jsonl"),
        "--keep-checkpoints",
    )
    whole = train(*options, "--output", tmp_path / "whole")
    train(*options, "--output", tmp_path / "broken")
    checkpoints = tmp_path / "broken" / "training" / "checkpoints"
    (checkpoints / "checkpoint-9" / "complete").unlink()
    again = call("train", "--resume", "--output", tmp_path / "broken", "--jsonl")
    (resumed,) = events(again, "resume")
    assert resumed["checkpoint"].endswith("checkpoint-6")
    losses = {event["step"]: event["loss"] for event in events(whole, "step")}
    for event in events(again, "step"):
        assert event["loss"] == pytest.approx(losses[event["step"]], abs=1e-6)
    assert [event["step"] for event in events(again, "step")] == [7, 8, 9]
    assert events(again, "end")[0]["loss"] == pytest.approx(events(whole, "end")[0]["loss"], abs=1e-6)


def test_resuming_needs_the_same_data(text: Path, tmp_path: Path) -> None:
    train(text, "--steps", "4", "--output", tmp_path / "model")
    text.write_text(make_text(seed=3), "utf-8")
    again = call("train", "--resume", "--output", tmp_path / "model")
    assert (again.code, again.err.splitlines()[0]) == (
        2,
        f"error: {tmp_path / 'model'}: the data is not what the training began with",
    )


@pytest.mark.slow
def test_resuming_what_is_done(text: Path, tmp_path: Path) -> None:
    """The finished model is left as it is."""
    train(text, "--steps", "2", "--output", tmp_path / "model")
    before = (tmp_path / "model" / "README.md").read_bytes()
    again = call("train", "--resume", "--output", tmp_path / "model")
    assert (again.code, "the training is done" in again.err) == (2, True)
    assert (tmp_path / "model" / "README.md").read_bytes() == before


def test_a_wrong_option_does_not_spoil_what_was_recorded(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    call("train", *SMALL, text, "--steps", "8", "--save-every", "4", "--output", output, "--keep-checkpoints")
    (output / "training" / "checkpoints" / "checkpoint-8" / "complete").unlink()
    wrong = call("train", "--resume", "--output", output, "--window", "2048")
    assert wrong.code == 2, wrong.err
    again = call("train", "--resume", "--output", output, "--jsonl")
    assert events(again, "resume")[0]["checkpoint"].endswith("checkpoint-4")


@pytest.mark.parametrize(("name", "content"), [("blank.md", "\n\n"), ("none.jsonl", '{"text": ""}\n')])
def test_a_test_file_without_text_is_refused_at_the_start(
    name: str, content: str, text: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    done = train(text, "--test-data", tmp_path / name, "--output", tmp_path / "model")
    assert done.code == 2 and "no text in it to score" in done.err
    assert not (tmp_path / "model").exists()


def test_a_training_among_its_data_is_not_read(text: Path, tmp_path: Path) -> None:
    folder = text.parent
    first = call("train", *SMALL, folder, "--steps", "4", "--output", folder / "model", "--keep-checkpoints")
    assert first.code == 0, first.err
    names = [source.name for source in find_sources([folder])]
    assert names == ["stories.txt"]


def test_resume_without_a_training(tmp_path: Path) -> None:
    done = call("train", "--resume", "--output", tmp_path)
    assert (done.code, done.err) == (2, f"error: {tmp_path}: no training to resume there\n")


@pytest.mark.slow
def test_early_stopping_keeps_the_best(text: Path, tmp_path: Path) -> None:
    """A learning rate that ruins the model: the weights kept are those of the best evaluation."""
    made = train(
        *(text, "--steps", "60", "--evaluate-every", "3", "--patience", "2", "--output", tmp_path / "model"),
        *("--learning-rate", "0.5", "--schedule", "constant", "--decay", "0", "--warmup", "6", "--jsonl"),
    )
    evaluations = {event["step"]: event["loss"] for event in events(made, "evaluation")}
    assert events(made, "early_stop")
    assert max(evaluations) < 60
    assert events(made, "end")[0]["loss"] == pytest.approx(min(evaluations.values()), abs=1e-5)


def test_a_name_puts_the_model_into_the_store(text: Path) -> None:
    made = train(text, "--steps", "3", "--name", "my-birds")
    assert (made.code, made.out) == (0, "my-birds\n"), made.err
    done = call("generate", "-m", "my-birds", "--max-new-tokens", "3", "-q", "the")
    assert done.code == 0, done.err
    again = train(text, "--steps", "3", "--name", "my-birds")
    assert (again.code, again.err.splitlines()[0]) == (
        2,
        "error: there already is a model my-birds in the store",
    )


def test_a_recipe_file_gives_options_and_flags_come_before_it(text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("steps = 50\nseed = 7\nwidth = 16\n", "utf-8")
    made = call(
        *("train", text, "--config", recipe, "--steps", "2", "--vocab-size", "300", "--heads", "2"),
        *("--context", "64", "--layers", "1", "--output", tmp_path / "model", "--jsonl"),
    )
    (begin,) = events(made, "start")
    assert (begin["steps"], begin["seed"]) == (2, 7)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["n_embd"] == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("colour = 1", "there is no option colour"),
        ("steps = 'many'", "--steps: 'many' is not allowed"),
        ("steps = ", "not valid TOML"),
        ("resume = true", "there is no option resume"),
    ],
)
def test_a_recipe_file_that_is_wrong(text: Path, tmp_path: Path, content: str, message: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(content, "utf-8")
    done = call("train", text, "--config", recipe, "--output", tmp_path / "model")
    assert done.code == 2
    assert message in done.err


def test_the_terminal_shows_progress_a_curve_and_the_next_step(text: Path, tmp_path: Path) -> None:
    made = call(
        *("train", *SMALL, text, "--steps", "6", "--evaluate-every", "2", "--output", tmp_path / "model"),
        tty="err",
    )
    assert made.code == 0, made.err
    assert "\r\x1b[K" in made.err
    assert "bits per byte" in made.err
    assert f"try it: gpt2cli generate -m {tmp_path / 'model'}" in made.err


def test_a_plot_is_drawn(text: Path, tmp_path: Path) -> None:
    made = train(text, "--steps", "4", "--output", tmp_path / "model", "--plot", tmp_path / "loss.svg")
    assert made.code == 0, made.err
    assert (tmp_path / "loss.svg").read_text("utf-8").lstrip().startswith("<?xml")
    refused = train(text, "--output", tmp_path / "other", "--plot", tmp_path / "loss.gif")
    assert refused.code == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_stdin_is_data(tmp_path: Path) -> None:
    made = call("train", *SMALL, "--steps", "2", "--output", tmp_path / "a", "-", stdin=make_text().encode())
    assert made.code == 0, made.err
    lines = "".join(json.dumps({"body": f"{n} " + " ".join(WORDS)}) + "\n" for n in range(80))
    made = call(
        *("train", *SMALL, "--steps", "2", "--output", tmp_path / "b", "--field", "body", "-"),
        stdin=lines.encode(),
    )
    assert made.code == 0, made.err


# Fine-tuning and distillation


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for a moment."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "stories.txt").write_text(make_text(), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2CLI_HOME", str(folder / "home"))
        made = train(folder / "stories.txt", "--layers", "4", "--steps", "30", "--output", folder / "model")
    assert made.code == 0, made.err
    return folder / "model"


FAST = ("--batch-size", "4", "--warmup", "2", "--precision", "fp32", "--threads", "1", "--samples", "0")


def test_finetune_lowers_the_loss(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"{n} dogs ran and {n} dogs slept" for n in range(400)), "utf-8")
    made = call(
        *("finetune", other, "-m", base, *FAST, "--steps", "20", "--learning-rate", "3e-3", "--jsonl"),
        *("--output", tmp_path / "tuned"),
    )
    (end,) = events(made, "end")
    assert end["bits_per_byte"] < end["before"]
    assert call("generate", "-m", tmp_path / "tuned", "-q", "--max-new-tokens", "2", "1 dogs").code == 0


@pytest.mark.slow
def test_lora_trains_few_weights_and_is_merged(base: Path, tmp_path: Path) -> None:
    """The result is a plain model; what is untouched by adapters is as it was."""
    from safetensors.torch import load_file

    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"{n} dogs ran and {n} dogs slept" for n in range(400)), "utf-8")
    made = call(
        *("finetune", other, "-m", base, *FAST, "--steps", "10", "--learning-rate", "3e-3", "--jsonl"),
        *("--lora", "--lora-rank", "2", "--output", tmp_path / "tuned"),
    )
    (begin,), (end,) = events(made, "start"), events(made, "end")
    assert begin["trainable"] < begin["parameters"] / 5
    assert end["bits_per_byte"] < end["before"]
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "tuned"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {
        f"transformer.h.{n}.{part}.weight"
        for n in range(4)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_a_kept_adapter_gives_the_merged_model(base: Path, text: Path, tmp_path: Path) -> None:
    """To the last bit, with `--adapter` and the base; and no other file tells that it was kept."""
    import torch
    from adapters import adapter_tensors
    from support import backend_logits

    from gpt2cli.core.engine import Engine
    from gpt2cli.options import LoadOptions

    tuned = tmp_path / "tuned"
    made = call(
        *("finetune", text, "-m", base, *FAST, "--steps", "4", "--learning-rate", "3e-3"),
        *("--lora", "--lora-rank", "2", "--keep-adapter", "--output", tuned),
    )
    assert made.code == 0, made.err
    assert f"--adapter {tuned / 'adapter'}" in made.err
    assert sorted(path.name for path in (tuned / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert len(adapter_tensors(tuned / "adapter")) == 2 * 4 * 4
    assert not (tuned / "training" / "adapter").exists() and not (tuned / "adapter_config.json").exists()
    config = json.loads((tuned / "adapter" / "adapter_config.json").read_bytes())
    assert config["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    assert config["base_model_name_or_path"] == str(base)
    for backend in ("auto", "torch"):
        load = LoadOptions(device="cpu", precision="fp32", threads=1, backend=backend)  # type: ignore[arg-type]
        one, other, plain = (
            backend_logits(Engine.load(directory, load, adapter=adapter).backend, [1, 2, 3, 4, 5])[0]
            for directory, adapter in ((base, tuned / "adapter"), (tuned, None), (base, None))
        )
        assert torch.equal(one, other) and not torch.equal(one, plain)


@pytest.mark.slow
def test_an_adapter_can_be_kept_of_a_training_that_is_resumed(base: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned"
    options = ("--lora", "--steps", "2", "--keep-checkpoints", "--output", output)
    assert call("finetune", text, "-m", base, *FAST, *options).code == 0
    assert not (output / "adapter").exists()
    again = call("finetune", "--resume", "--keep-adapter", "--output", output)
    assert again.code == 0, again.err
    assert (output / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_lora_resumes(base: Path, text: Path, tmp_path: Path) -> None:
    options = (
        *("finetune", text, "-m", base, *FAST, "--lora", "--steps", "6", "--save-every", "2", "--jsonl"),
        *("--keep-checkpoints", "--log-every", "1"),
    )
    whole = call(*options, "--output", tmp_path / "whole")
    call(*options, "--output", tmp_path / "broken")
    (tmp_path / "broken" / "training" / "checkpoints" / "checkpoint-6" / "complete").unlink()
    again = call("finetune", "--resume", "--output", tmp_path / "broken", "--jsonl")
    assert events(again, "end")[0]["loss"] == pytest.approx(events(whole, "end")[0]["loss"], abs=1e-6)


def test_distill_halves_the_layers(base: Path, text: Path, tmp_path: Path) -> None:
    made = call(
        *("distill", text, "--teacher", base, *FAST, "--steps", "10", "--output", tmp_path / "student"),
        "--jsonl",
    )
    (end,) = events(made, "end")
    assert end["bits_per_byte"] < end["before"]
    assert 0 < end["acceptance"] < 1
    card = (tmp_path / "student" / "README.md").read_text("utf-8")
    assert f"draws the teacher's token {end['acceptance']:.0%} of the time" in card
    assert json.loads((tmp_path / "student" / "config.json").read_text())["n_layer"] == 2
    assert call("generate", "-m", tmp_path / "student", "-q", "--max-new-tokens", "2", "the").code == 0


NO_WEIGHTS = ("--soft-weight", "0", "--lm-weight", "0", "--cosine-weight", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("distill",), "there is no teacher"),
        (("distill", "--teacher", "BASE", "--student-layers", "4"), "is not fewer than the teacher's 4"),
        (
            (
                "distill",
                "--teacher",
                "BASE",
                "--soft-weight",
                "0",
                "--lm-weight",
                "0",
                "--cosine-weight",
                "0",
            ),
            "",
        ),
        (("finetune", "-m", "BASE", "--window", "65"), "is more than the model's context of 64"),
        (("finetune", "-m", "BASE", "--lora", "--lora-rank", "33"), "--lora-rank 33 is more than"),
        (("finetune", "-m", "BASE", "--keep-adapter"), "--keep-adapter needs --lora"),
        (("train", "--heads", "3"), "the width 256 is not divisible by 3"),
        (("train", "--steps", "1", "--epochs", "1"), "not together with steps"),
        (("train", "--batch-size", "4", "--micro-batch-size", "3"), "is not divisible by it"),
        (("train", "--learning-rate", "0"), "--learning-rate"),
        (("train", "--device", "cuda"), "there is no CUDA device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_options_that_cannot_be(
    base: Path, text: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [base if argument == "BASE" else argument for argument in arguments]
    done = call(*given, text, "--output", tmp_path / "model")
    assert done.code == 2, done.err
    assert message in done.err
    assert not (tmp_path / "model" / "config.json").exists()


def test_a_model_without_a_tokenizer_cannot_be_tuned(text: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "ids", tokenizer=None)
    done = call("finetune", text, "-m", model, "--output", tmp_path / "tuned")
    assert (done.code, done.err) == (2, f"error: {model}: the model has no tokenizer\n")


# Bad data


def _bad(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


BAD = {
    "empty.txt": (b"", "the file is empty"),
    "blank.txt": (b"\n \n" * 9, "too little to learn from"),
    "binary.txt": (bytes(range(256)) * 40, "not"),
    "nul.txt": (b"abc\0def\n" * 400, "binary, not text (it has NUL bytes)"),
    "latin.txt": ("café ".encode("latin-1") * 400, "not UTF-8 text"),
    "one-line.txt": (b"a cat sat on a mat\n", "too little to learn from"),
    "same.txt": (b"ab " * 1000, "gives a vocabulary of"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
    "field.jsonl": (b'{"body": "a cat"}\n' * 90, "line 1: has no field 'text'"),
    "number.jsonl": (b'{"text": 5}\n' * 90, "line 1: the field 'text' is not a text"),
    "list.jsonl": (b"[1]\n" * 90, "line 1: is not a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    done = train(_bad(tmp_path, name, content), "--output", tmp_path / "model")
    lines = [line for line in done.err.splitlines() if not line.startswith("training a tokenizer")]
    assert done.code == 2
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert [line[:6] for line in lines[1:]] in ([], ["hint: "]), done.err
    assert not (tmp_path / "model").exists()
    assert done.out == ""


def test_a_training_that_failed_can_be_tried_again(text: Path, tmp_path: Path) -> None:
    """Its record was left behind, and blocked the same command with a better option."""
    output = tmp_path / "model"
    output.mkdir()
    for flags in (("--vocab-size", "5000"), ("--window", "65")):
        failed = train(text, "--steps", "2", "--output", output, *flags)
        assert failed.code == 2 and "already there" not in failed.err, failed.err
        assert [*output.iterdir()] == []
    assert train(text, "--steps", "2", "--output", output).code == 0
    (name_failed, named) = (train(text, "--name", "mine", *flags) for flags in (flags, ("--steps", "2")))
    assert name_failed.code == 2 and named.code == 0, named.err


def test_data_that_is_not_there(tmp_path: Path) -> None:
    done = train(tmp_path / "nothing.txt", "--output", tmp_path / "model")
    assert (done.code, "No such file or directory" in done.err) == (2, True)
    (tmp_path / "folder").mkdir()
    done = train(tmp_path / "folder", "--output", tmp_path / "model")
    assert (done.code, "no text in this folder" in done.err) == (2, True)
    assert train("--output", tmp_path / "model").code == 2
    assert not (tmp_path / "model").exists()


def test_a_directory_in_use_is_left_alone(text: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "used" / "config.json", {}) if (tmp_path / "used").mkdir() else None
    (tmp_path / "used" / "notes.txt").write_text("mine")
    done = train(text, "--output", tmp_path / "used")
    assert (done.code, "already there, and not empty" in done.err) == (2, True)
    assert train(text, "--output", text).code == 2
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_training(text: Path, tmp_path: Path) -> None:
    made = train(
        *(text, "--steps", "60", "--learning-rate", "1", "--muon-scale", "100", "--optimizer", "muon"),
        *("--clip", "0", "--weight-decay", "1", "--output", tmp_path / "model"),
    )
    assert (made.code, "error: the loss is not finite" in made.err) == (1, True)
    assert not (tmp_path / "model" / "config.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 700 KiB."""
    import subprocess

    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(where)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=False)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_no_model(text: Path, small_disk: Path) -> None:
    done = run("train", *SMALL, "--width", "128", text, "--steps", "4", "--output", small_disk / "model")
    lines = [line for line in done.err.splitlines() if line.startswith(("error", "Traceback"))]
    assert done.code == 1, done.err
    assert len(lines) == 1
    assert "No space left" in lines[0] or "cannot write" in lines[0], lines
    assert not (small_disk / "model" / "config.json").exists()


# Processes


LONG = (
    "--steps",
    "40",
    "--save-every",
    "4",
    "--evaluate-every",
    "20",
    "--sample-every",
    "0",
    "--samples",
    "0",
)


@pytest.mark.slow
def test_an_interrupt_leaves_a_checkpoint(text: Path, tmp_path: Path) -> None:
    """SIGINT: the step is finished, a checkpoint written, and a line says how to go on."""
    process = start("train", *SMALL, text, "--steps", "5000", "--output", tmp_path / "model", "--jsonl")
    assert process.stdout is not None
    while b'"step": 3,' not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"gpt2cli train --resume --output {tmp_path / 'model'}" in err.decode()
    assert list((tmp_path / "model" / "training" / "checkpoints").glob("*/complete"))
    assert not (tmp_path / "model" / "config.json").exists()


@pytest.mark.slow
def test_kill_at_random_moments(text: Path, tmp_path: Path) -> None:
    """Every killed training goes on, and ends with the loss of the unbroken one."""
    whole = call("train", *SMALL, *LONG, text, "--output", tmp_path / "whole", "--jsonl")
    expected = events(whole, "end")[0]["loss"]
    chance = random.Random(3)
    for attempt in range(series(10, 3)):
        output = tmp_path / f"broken-{attempt}"
        began = time.monotonic()
        process = start("train", *SMALL, *LONG, text, "--output", output, "--jsonl")
        assert process.stdout is not None
        # The moments lie in the training itself, at any step and while a checkpoint is written.
        last_step = chance.randrange(1, 40)
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "step" and event["step"] >= last_step:
                break
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        again = call("train", "--resume", "--output", output, "--jsonl")
        final = events(again, "end")[0]["loss"]
        assert final == pytest.approx(expected, abs=1e-6), (attempt, last_step, time.monotonic() - began)
