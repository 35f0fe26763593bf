"""The next word's probability, against every beginning written out with transformers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support import load_fp32, make_model
from transformers import GPT2LMHeadModel

from gpt2cli.analysis.nextword import FLOOR, NextWords, continuing_tokens
from gpt2cli.core.engine import Engine
from gpt2cli.errors import PromptTooLong, UsageError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """257 byte tokens: a word of one letter is two tokens, of two letters three."""
    return make_model(tmp_path_factory.mktemp("words") / "m", std=0.25, seed=5)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return load_fp32(directory)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> GPT2LMHeadModel:
    model: GPT2LMHeadModel = GPT2LMHeadModel.from_pretrained(directory)
    return model.eval()


def after(model: GPT2LMHeadModel, rows: list[list[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor(rows)).logits[:, -1].double().softmax(-1)


def is_letter(engine: Engine, token: int) -> bool:
    """A byte that makes a word longer: a letter, a digit, _ or a part of a character of several bytes."""
    assert engine.tokenizer is not None
    byte = engine.tokenizer.token_bytes(token)
    return token < 256 and (byte.isalnum() or byte == b"_" or byte[0] >= 0x80)


def test_what_makes_a_word_longer(engine: Engine) -> None:
    found = continuing_tokens(engine).tolist()
    assert found == [is_letter(engine, token) for token in range(257)]


@pytest.mark.parametrize("prompt", ["The cat", "a", "x y z "])
def test_every_short_word_by_brute_force(engine: Engine, theirs: GPT2LMHeadModel, prompt: str) -> None:
    """No word of up to two tokens that is likelier than the last of the list is missing or wrong."""
    assert engine.tokenizer is not None
    ids = engine.encode(prompt)
    letters = [token for token in range(257) if is_letter(engine, token)]
    others = torch.tensor([token for token in range(257) if token not in letters])
    decode = engine.tokenizer.decode
    first = after(theirs, [ids])[0]
    second = after(theirs, [[*ids, token] for token in range(257)])
    ending = second[:, others].sum(-1)
    (space,) = engine.encode(" ")
    expected: dict[str, float] = {}
    for token in range(257):
        text = decode([token])
        if token in letters and not prompt[-1].isspace():
            continue
        if token in letters:
            expected[text] = expected.get(text, 0.0) + float(first[token] * ending[token])
        elif text == "\n" or text.strip():
            expected[text] = expected.get(text, 0.0) + float(first[token])
    for token in range(257):
        text = decode([space, token])
        if token not in letters and (text.endswith("\n") or text.strip()):
            expected[text] = expected.get(text, 0.0) + float(first[space] * second[space, token])
    found, finished = NextWords(engine, ids).likeliest(60)
    assert finished and len(found) == 60
    assert [w.probability for w in found] == sorted((w.probability for w in found), reverse=True)
    for word in found:
        if word.text in expected and "\ufffd" not in word.text:
            assert word.probability == pytest.approx(expected[word.text], abs=1e-6)
    missing = {w for w, p in expected.items() if p > found[-1].probability + 1e-6} - {w.text for w in found}
    assert not {word for word in missing if "\ufffd" not in word}


@pytest.mark.parametrize("word", [" a", " cat", "s", " naïve", ",", "\n", " don't"])
def test_a_word_by_the_chain_rule(engine: Engine, theirs: GPT2LMHeadModel, word: str) -> None:
    ids = engine.encode("The dog")
    path = engine.encode(word)
    expected = math.prod(float(after(theirs, [[*ids, *path[:n]]])[0][token]) for n, token in enumerate(path))
    if is_letter(engine, path[-1]):
        rest = after(theirs, [[*ids, *path]])[0]
        expected *= float(sum(rest[t] for t in range(257) if not is_letter(engine, t)))
    words = NextWords(engine, ids)
    assert words.path_of("The dog", word) == (
        tuple(path) if word[0] in " \n" else (*engine.encode(" "), *path)
    )
    assert words.probability([tuple(path)]) == pytest.approx(expected, rel=1e-4)


def test_all_words_together_are_one(tmp_path: Path) -> None:
    """Where words must be short: a context that leaves room for two tokens."""
    model = make_model(tmp_path / "m", std=0.2, seed=9, n_positions=3)
    engine = load_fp32(model)
    found, finished = NextWords(engine, engine.encode(",")).likeliest(100_000)
    total = sum(word.probability for word in found)
    assert finished
    assert 1 - 257 * 257 * FLOOR <= total <= 1 + 1e-6


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [("The cat", True), ("don'", True), ("naïv\u00e9", True), (",", False), ("a ", False)],
)
def test_what_ends_the_prompts_word_is_no_next_word(engine: Engine, prompt: str, inside: bool) -> None:
    """`compare --vary` listed "s" after "The cat" among the next words."""
    found, _ = NextWords(engine, engine.encode(prompt)).likeliest(40)
    letters = [word.text for word in found if word.text[0].isalnum() or word.text[0] in "_\ufffd"]
    assert bool(letters) is not inside


def test_a_word_found_has_its_probability(tiny_words: NextWords) -> None:
    """The list and the sum over a word's ways to be written say the same."""
    found, finished = tiny_words.likeliest(12)
    assert finished
    for word in found:
        assert tiny_words.probability(word.paths) == pytest.approx(word.probability, rel=1e-4)
    assert [w.text for w in found[:2]] == [" girl", " boy"]


@pytest.fixture(scope="module")
def tiny_words() -> NextWords:
    from gpt2cli.hub.resolve import resolve

    engine = load_fp32(resolve("tiny").directory)
    return NextWords(engine, engine.encode("Once upon a time there was a little"))


def test_no_room_and_no_bytes(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(PromptTooLong):
        NextWords(engine, [1] * 64)
    ids_only = load_fp32(make_model(tmp_path / "ids", tokenizer=None))
    with pytest.raises(UsageError, match="byte-level"):
        NextWords(ids_only, [1])
