"""Presets: templates, the tasks of the GPT-2 paper, the user's own, and what a preset does for a command."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli import Outcome, call
from hypothesis import given, settings
from hypothesis import strategies as st
from support import series, shared

from gpt2cli import paths
from gpt2cli.errors import UsageError
from gpt2cli.presets.preset import Preset, read_preset
from gpt2cli.presets.store import (
    all_presets,
    builtin_names,
    find_preset,
    remove_preset,
    save_preset,
)
from gpt2cli.presets.template import Template

QUICK = ("--max-new-tokens", "6", "--seed", "7")


# Templates


def fill(template: str, **values: str) -> str:
    return Template.parse(template).fill(values)


def test_fields_and_braces() -> None:
    assert fill("{input}\nTL;DR:", input="An article.\n") == "An article.\n\nTL;DR:"
    assert fill("{{{a}}} {{a}} {a}", a="x") == "{x} {a} x"
    assert fill("}}{{") == "}{"
    assert fill(" \n") == " \n"


@pytest.mark.parametrize(
    "template",
    ["{", "}", "{}", "{0}", "{a.b}", "{a!r}", "{a:>9}", "{a[0]}", "{a}}", "{ a }", "{a-b}", "{é}", "{a\n}"],
)
def test_anything_else_between_braces_is_refused(template: str) -> None:
    """`str.format` would look into the values."""
    with pytest.raises(UsageError, match="belongs to no field") as error:
        Template.parse(template)
    assert error.value.hint


def test_a_value_is_not_a_template() -> None:
    assert fill("{a}{b}", a="{b}", b="{a}") == "{b}{a}"
    assert fill("{a}", a="{{x}} {input.__class__}") == "{{x}} {input.__class__}"


def test_missing_and_unknown_fields() -> None:
    with pytest.raises(UsageError, match="the field b of the template has no value") as error:
        fill("{a}{b}", a="x")
    assert error.value.hint == "--field b=VALUE gives it"
    with pytest.raises(UsageError, match="no field 'c'") as error:
        fill("{a}", a="x", c="y")
    assert error.value.hint == "the fields of the template: a"


def test_a_short_template_makes_no_huge_prompt() -> None:
    with pytest.raises(UsageError, match="more than 32 Mi"):
        Template.parse("{a}" * 1000).fill({"a": "x" * 2**16})


values = st.text(alphabet="{}ab\n:.!é", max_size=12)


@settings(max_examples=series(3_000, 200))
@given(st.lists(st.sampled_from(["{a}", "{b}", "{{", "}}", "x", "\n", ":"]), max_size=12), values, values)
def test_filling_is_what_is_between_the_fields(parts: list[str], a: str, b: str) -> None:
    """Each part in its place, and nothing of a value is looked at again."""
    put = {"{a}": a, "{b}": b, "{{": "{", "}}": "}"}
    template = Template.parse("".join(parts))
    used = {name: value for name, value in (("a", a), ("b", b)) if name in template.names}
    assert template.fill(used) == "".join(put.get(part, part) for part in parts)


@settings(max_examples=series(3_000, 200))
@given(st.text(alphabet="{}ab_0.![:\n é\x00", max_size=20), st.dictionaries(st.sampled_from("ab_"), values))
def test_nothing_but_the_one_error(template: str, given: dict[str, str]) -> None:
    """Whatever the template: it is filled in, or `UsageError` says what is wrong in one short line."""
    try:
        read = Template.parse(template)
        filled = read.fill(given)
    except UsageError as error:
        assert len(str(error)) < 120 and "\n" not in str(error)
    else:
        # Python's own formatting agrees, where it knows no more than we do.
        assert filled == template.format(**given)
        assert {name for _, name, _, _ in string.Formatter().parse(template) if name} == {*read.names}


# Files


def test_a_saved_preset_is_read_as_it_was() -> None:
    preset = Preset(
        about="Über",
        model="gpt2",
        options={"temperature": 0.5, "ignore_eos": True},
        stop=("\n", '"', "\\"),
        system="A\r\nB\t\x1b",
        template='\n "x" {a}\n\n{input}\n',
        fields={"a": "  one\ntwo\n"},
    )
    save_preset("mine", preset, force=False)
    assert find_preset("mine").preset == preset
    with pytest.raises(UsageError, match="already"):
        save_preset("mine", preset, force=False)
    save_preset("mine", replace(preset, about="B"), force=True)
    assert all_presets()[0].name == "mine"
    remove_preset("mine")
    with pytest.raises(UsageError, match="there is no preset mine"):
        remove_preset("mine")


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00{}"), max_size=20)


@settings(max_examples=series(500, 40))
@given(texts, texts, st.lists(texts.filter(bool), max_size=3))
def test_any_text_survives_its_file(template: str, value: str, stops: list[str]) -> None:
    preset = Preset(template=template + "{a}", fields={"a": value}, stop=tuple(stops), system=value)
    save_preset("any", preset, force=True)
    assert find_preset("any").preset == preset


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "top_k = 'x'",
        "top_k = -1",
        "unknown = 1",
        "ignore_eos = 1",
        "template = '{'",
        "template = 5",
        "stop = 'x'",
        "stop = ['']",
        "stop = [1]",
        "model = ''",
        "format = 'x'",
        "task = 'x'",
        "seed = 5",
        "fields = 5",
        "template = '{a}'\n[fields]\nb = 'x'",
        "template = '{a}'\n[fields]\na = 5",
        "[fields]\na = 'x'",
        "template = '{input}'\n[fields]\ninput = 'x'",
        "max_length = 5\nmax_new_tokens = 5",
        'system = "a\\u0000b"',
        "a = " + "[" * 5000,
    ],
)
def test_a_damaged_file_is_one_line(text: str) -> None:
    with pytest.raises(UsageError):
        read_preset(text)
    folder = paths.presets_dir()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bad.toml").write_text(text)
    outcome = call("generate", "--preset", "bad", "a b")
    assert outcome.code == 2 and "bad.toml: " in outcome.err and "Traceback" not in outcome.err
    listed = {entry["name"]: entry for entry in call("preset", "list", "--json").document["presets"]}
    assert listed["bad"]["problem"] and listed["bad"]["preset"] is None


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "A", "a b", "-x", "con", "x" * 65, "é", "a.toml"])
def test_names_are_checked(name: str) -> None:
    for arguments in (("show", "--", name), ("rm", "--", name), ("save", "--greedy", "--", name)):
        outcome = call("preset", *arguments)
        assert outcome.code == 2 and "is not a name for a preset" in outcome.err, arguments


def test_the_users_preset_comes_before_a_built_in_one() -> None:
    """A later version may have a built-in preset of a name that somebody has used."""
    assert "is a built-in preset" in call("preset", "save", "answer", "--greedy").err
    folder = paths.presets_dir()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answer.toml").write_text("top_k = 3\n")
    assert find_preset("answer").preset == Preset(options={"top_k": 3})
    assert "before the built-in one" in call("preset", "show", "answer").out
    assert call("preset", "rm", "answer").code == 0
    assert find_preset("answer").builtin
    assert "stays" in call("preset", "rm", "answer").err


# The commands


def test_save_list_show() -> None:
    saved = call(
        *("preset", "save", "letter", "-m", "tiny", "--greedy", "--stop", "\n", "--about", "Letters"),
        *("--template", "Dear {name},\n{input}", "--field", "name=Ann", "--max-new-tokens", "9"),
    )
    assert saved.code == 0 and "saved" in saved.err
    document = call("preset", "show", "letter", "--json").document
    assert document["preset"] == {
        "about": "Letters",
        "model": "tiny",
        "temperature": 0.0,
        "max_new_tokens": 9,
        "stop": ["\n"],
        "template": "Dear {name},\n{input}",
        "fields": {"name": "Ann"},
    }
    assert document["used_by"] == ["generate", "batch"] and document["problem"] is None
    assert "    Dear {name},\n    {input}\n" in call("preset", "show", "letter").out
    rows = [line.split("\t") for line in call("preset", "list").out.splitlines()]
    assert rows[0] == ["letter", "yours", "generate, batch", "Letters"]
    assert [row[0] for row in rows[1:]] == builtin_names()
    assert "NAME" in call("preset", "list", tty="out").out


def test_save_begins_with_another_one() -> None:
    call("preset", "save", "mine", "--from", "answer", "--max-length", "60")
    mine = find_preset("mine").preset
    answer = find_preset("answer").preset
    assert mine is not None and answer is not None
    assert mine.options == {"temperature": 0, "max_length": 60} and mine.fields == answer.fields
    call("preset", "save", "other", "--from", "answer", "--template", "{input}?")
    other = find_preset("other").preset
    assert other is not None and other.reported == () and other.limits is None and other.stop == ("\n",)


def test_a_model_directory_is_found_from_anywhere(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    call("preset", "save", "here", "-m", tiny_model.name)
    found = find_preset("here").preset
    assert found is not None and found.model == str(tiny_model.resolve())
    call("preset", "save", "both", "-m", f"./{tiny_model.name}+./{tiny_model.name}")
    found = find_preset("both").preset
    assert found is not None and found.model == "+".join([str(tiny_model.resolve())] * 2)


def test_the_setting_quiet() -> None:
    for words in (("save", "x", "--top-k", "5"), ("rm", "x")):
        done = call("preset", *words, GPT2CLI_QUIET="1")
        assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("save", "x"), "nothing to save"),
        (("save", "x", "--top-k", "-1"), "top_k"),
        (("save", "x", "--template", "{a.b}"), "belongs to no field"),
        (("save", "x", "--template", "{a}", "--field", "b=1"), "no field 'b'"),
        (("save", "x", "--template", "{a}", "--field", "a"), "is not KEY=VALUE"),
        (("save", "x", "--template", "{a}", "--field", "1=x"), "not the name of a field"),
        (("save", "x", "--template", "{a}", "--field", "a=1", "--field", "a=2"), "given twice"),
        (("save", "x", "--field", "a=1"), "no field 'a'"),
        (("save", "x", "--greedy", "--temperature", "1"), "do not go together"),
        (("show", "summarize"), "there is no preset summarize"),
    ],
)
def test_usage(arguments: tuple[str, ...], error: str) -> None:
    outcome = call("preset", *arguments)
    assert outcome.code == 2 and error in outcome.err


def options_of(*arguments: str, **environ: str) -> dict[str, Any]:
    document = call("generate", "--json", *QUICK, *arguments, "a b", **environ).document
    return {**document["options"], "model": document["model"]}


def test_flag_preset_environment(tiny_model: Path) -> None:
    """Flag > preset > environment > config.toml."""
    call(
        "preset", "save", "mine", "-m", str(tiny_model), "--top-k", "7", "--temperature", "0.5", "--stop", "z"
    )
    call("config", "set", "top_k", "3")
    call("config", "set", "min_p", "0.1")
    found = options_of("--preset", "mine", GPT2CLI_TOP_K="4", GPT2CLI_MODEL="tiny", GPT2CLI_TOP_P="0.9")
    assert (found["top_k"], found["top_p"], found["min_p"]) == (7, 0.9, 0.1)
    assert (found["temperature"], found["stop"], found["model"]) == (0.5, ["z"], str(tiny_model))
    found = options_of("--preset", "mine", "--top-k", "9", "--greedy", "--stop", "q", "-m", "tiny")
    assert (found["top_k"], found["temperature"], found["stop"], found["model"]) == (9, 0, ["q"], "tiny")


def test_lengths_do_not_meet() -> None:
    """A limit of the one kind on the command line keeps the preset's of the other kind out."""
    call("preset", "save", "short", "--max-new-tokens", "3")
    call("preset", "save", "all", "--max-length", "9")
    assert call("generate", "--preset", "short", "--max-length", "8", "--json", "a b").code == 0
    document = call("generate", "--preset", "all", "--max-new-tokens", "2", "--json", "a b").document
    assert (document["options"]["max_new_tokens"], document["options"]["max_length"]) == (2, None)


def prompt_of(*arguments: str, stdin: bytes = b"") -> str:
    document = call("generate", "--json", "--max-new-tokens", "1", *arguments, stdin=stdin).document
    return str(document["prompt"])


def test_prompts_are_exact(tmp_path: Path) -> None:
    call("preset", "save", "form", "--template", "\n {a} \n{input}\n\n", "--field", "a=x ")
    assert prompt_of("--preset", "form", "one") == "\n x  \none\n\n"
    # One final newline of stdin or of a file goes, as from any prompt; the template's own stay.
    assert prompt_of("--preset", "form", stdin=b"one\n\n") == "\n x  \none\n\n\n"
    assert prompt_of("--preset", "form", "--field", "a={input}", "one") == "\n {input} \none\n\n"
    (tmp_path / "a.txt").write_text("two\nlines\n")
    assert prompt_of("--preset", "form", "--field-file", f"a={tmp_path / 'a.txt'}", "one") == (
        "\n two\nlines \none\n\n"
    )
    (tmp_path / "t.txt").write_text("<{input}>\n")
    call("preset", "save", "file", "--template-file", str(tmp_path / "t.txt"))
    assert prompt_of("--preset", "file", "one") == "<one>"


def test_a_template_without_input_reads_no_stdin() -> None:
    call("preset", "save", "fixed", "--template", "Once {name}", "--field", "name=upon")
    assert prompt_of("--preset", "fixed", stdin=b"not read") == "Once upon"
    outcome = call("generate", "--preset", "fixed", "word")
    assert outcome.code == 2 and "no field 'input'" in outcome.err


def test_chat_takes_the_system_text() -> None:
    call("preset", "save", "talk", "--format", "transcript", "--system", "A talk.", "--greedy")
    spoken = ("chat", "--json", "--max-new-tokens", "12", "--seed", "1")
    flags = call(*spoken, "--format", "transcript", "--system", "A talk.", "--greedy", stdin=b"Hello\n")
    by_preset = call(*spoken, "--preset", "talk", stdin=b"Hello\n")
    other = call(*spoken, "--preset", "talk", "--system", "The dog was big and red.", stdin=b"Hello\n")
    assert by_preset.document["answer"] == flags.document["answer"] != other.document["answer"]
    warned = call(*spoken, "--preset", "answer", stdin=b"Hello\n")
    assert warned.code == 0 and "also says template, which chat does not use" in warned.err


def test_batch_fills_the_template_of_each_row(tmp_path: Path) -> None:
    call("preset", "save", "form", "--template", "{a}: {input}", "--field", "a=x", *QUICK[:2], "--greedy")
    rows = [{"id": 1, "prompt": "one"}, {"id": 2, "prompt": "two", "fields": {"a": "y"}}, {"id": 3}]
    rows += [{"id": 4, "prompt": "p", "fields": {"b": "y"}}, {"id": 5, "messages": []}]
    rows += [{"id": 6, "prompt": [5, 6]}, {"id": 7, "prompt": "one", "fields": 5}]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = call("batch", "--preset", "form", "--simple", str(file))
    found = {row["id"]: row for row in outcome.events}
    assert outcome.code == 1 and len(found) == len(rows)
    for id, prompt in (("1", "x: one"), ("2", "y: two")):
        plain = call("generate", "--greedy", "--max-new-tokens", "6", "--json", prompt).document
        assert found[id]["text"] == plain["choices"][0]["text"]
    assert all("error" in found[str(id)] for id in (3, 4, 5, 6, 7))


def test_a_batch_goes_on_with_the_same_template_only(tmp_path: Path) -> None:
    file, out = tmp_path / "in.txt", str(tmp_path / "out.jsonl")
    file.write_text("one\n")
    call("preset", "save", "form", "--template", "{a} {input}", "--field", "a=x", "--max-new-tokens", "2")
    assert call("batch", "--preset", "form", str(file), "-o", out).code == 0
    assert call("batch", "--preset", "form", str(file), "-o", out).code == 0
    assert call("batch", "--preset", "form", "--field", "a=y", str(file), "-o", out).code == 2


# The tasks of the paper

QUESTION = "Who wrote the book the origin of species?"
PAIRS = """Q: What is the capital of Italy?
A: Rome
Q: Who wrote the play Romeo and Juliet?
A: William Shakespeare
Q: How many days are there in a leap year?
A: 366
Q: What gas do plants take in from the air?
A: Carbon dioxide
"""
FRENCH = (
    ("The weather is beautiful today.", "Il fait beau aujourd'hui."),
    ("I would like a cup of coffee, please.", "Je voudrais une tasse de café, s'il vous plaît."),
    ("The children are playing in the garden.", "Les enfants jouent dans le jardin."),
    ("Where is the train station?", "Où est la gare ?"),
    ("She has been living in Paris for ten years.", "Elle habite à Paris depuis dix ans."),
)
FORMS = [
    ("summarise", (), "An article.", "An article.\nTL;DR:"),
    ("answer", (), QUESTION, f"{PAIRS}Q: {QUESTION}\nA:"),
    ("answer", ("--field", "pairs="), QUESTION, f"Q: {QUESTION}\nA:"),
    (
        "translate-en-fr",
        (),
        "The dog runs.",
        "".join(f"{english} = {french}\n" for english, french in FRENCH) + "The dog runs. =",
    ),
    (
        "translate-fr-en",
        (),
        "Le chien court.",
        "".join(f"{french} = {english}\n" for english, french in FRENCH) + "Le chien court. =",
    ),
    ("translate-en-fr", ("--field", "pairs=one = un"), "two", "one = un\ntwo ="),
    (
        "reading",
        ("--field", "document=Tom sat.", "--field", "history=Q: Did Tom sit?\nA: Yes\n"),
        "Who sat?",
        "Tom sat.\n\nQ: Did Tom sit?\nA: Yes\nQ: Who sat?\nA:",
    ),
    ("reading", ("--field", "document=Tom sat."), "Who sat?", "Tom sat.\n\nQ: Who sat?\nA:"),
]


@pytest.mark.parametrize(("name", "fields", "given", "prompt"), FORMS)
def test_the_prompts_of_the_paper(name: str, fields: tuple[str, ...], given: str, prompt: str) -> None:
    """The whole prompt, to the last character, run on tiny."""
    document = call("generate", "-m", "tiny", "--preset", name, *fields, "--json", given).document
    assert document["prompt"] == prompt
    options = document["options"]
    if name == "summarise":
        assert (options["top_k"], options["max_new_tokens"], options["max_sentences"]) == (2, 100, 3)
    else:
        assert (options["temperature"], options["stop"]) == (0, ["\n"])
        assert "\n" not in document["choices"][0]["text"]
    if name.startswith("translate"):
        assert options["max_sentences"] == 1


def test_every_built_in_preset_says_what_the_paper_reports() -> None:
    for named in all_presets():
        assert named.builtin and named.preset is not None
        assert named.preset.about and named.preset.limits
        assert all("Radford et al. 2019" in text for text in named.preset.reported), named.name
        assert "the paper reports:" in call("preset", "show", named.name).out
    assert {name for name in builtin_names()} == {
        *("answer", "cbt", "lambada", "reading", "summarise", "winograd"),
        *("translate-en-fr", "translate-fr-en"),
    }


ANSWERS = "greedy_until_newline_sliding_window_128"
OWN_PAIR = """Q: Are you AGI?
A: I am AGI in the same way a paper airplane is aerospace. Technically airborne.
"""


def answers() -> Iterator[tuple[str, str]]:
    """The questions of a small trained model, and how it answers them."""
    path = shared("models/slm_4096_kunal/expected.json")
    for prompt, text in json.loads(path.read_text())[ANSWERS].items():
        question = prompt.removeprefix("Q: ").removesuffix("\nA:")
        yield question, text.removeprefix(prompt).removesuffix("\n")


def asked(*arguments: str) -> Outcome:
    model = shared("models/slm_4096_kunal/hf")
    return call("generate", "-m", model, "--preset", "answer", "--overflow", "slide", *arguments)


def test_a_trained_model_gives_its_answers() -> None:
    """Its form is the preset's without pairs: Q:, A:, and a line for each."""
    for question, answer in answers():
        outcome = asked("--field", "pairs=", "--max-new-tokens", "200", question)
        assert outcome.out == f"{answer}\n"


def test_a_trained_model_answers_after_a_pair() -> None:
    """With a pair of its training text before them the questions that it knows have the same answers.

    (Its context is 128 characters, and it knows neither J nor N: our own pairs are not for it.)
    """
    for question, answer in [*answers()][:2]:
        outcome = asked("--field", f"pairs={OWN_PAIR}", "--max-new-tokens", "200", question)
        assert outcome.out == f"{answer}\n"


# Tasks of score

TROPHY = {
    "text": "The trophy does not fit in the suitcase because ___ is too big.",
    "choices": ["the trophy", "the suitcase"],
    "answer": 0,
}


@pytest.fixture
def schemas(tmp_path: Path) -> Path:
    file = tmp_path / "schemas.jsonl"
    file.write_text(json.dumps(TROPHY) + "\n")
    return file


def test_winograd_scores_what_follows(schemas: Path) -> None:
    """The log-probability of what follows the gap, as `--choice` gives it after each beginning."""
    document = call("score", "-m", "tiny", "--preset", "winograd", "--json", schemas).document
    assert document["task"] == "winograd"
    found = document["items"][0]["logprobs"]
    for choice, logprob in zip(TROPHY["choices"], found, strict=True):
        before = f"The trophy does not fit in the suitcase because {choice}"
        ranked = call("score", "-m", "tiny", "--choice", " is too big.", "--json", before).document
        assert ranked["texts"][0]["choices"][0]["logprob"] == pytest.approx(logprob, abs=1e-4)
    assert document["items"][0]["chosen"] == found.index(max(found))


def test_winograd_needs_something_after_the_gap(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"text": "Who is ___", "choices": ["he", "she"]}))
    outcome = call("score", "-m", "tiny", "--task", "winograd", file)
    assert outcome.code == 2 and "nothing follows the gap" in outcome.err


def test_presets_of_score(schemas: Path) -> None:
    by_task = call("score", "-m", "tiny", "--task", "cloze", schemas)
    assert call("score", "-m", "tiny", "--preset", "cbt", schemas).out == by_task.out
    outcome = call("score", "--preset", "answer", schemas)
    assert outcome.code == 2 and "no preset for score" in outcome.err
    for command in ("generate", "chat", "batch"):
        outcome = call(command, "--preset", "winograd", *([] if command == "chat" else ["x"]))
        assert outcome.code == 2 and "is a preset for score" in outcome.err
