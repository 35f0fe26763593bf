"""Text to ids and back, against transformers on the same files."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import END_OF_TEXT, END_OF_TEXT_ID, shared, write_byte_tokenizer

from gpt2cli.errors import UsageError
from gpt2cli.text.tokenizer import Tokenizer, byte_alphabet

SCRIPTS = [
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,;:!?'\"-()[]{}<>|/\\@#$%^&*_+=~`",
    "éèüßñçåøæœÿİıſ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "αβγδεζηθικλμνξοπρσςτυφχψω",
    "中文字漢語日本語ひらがなカタカナ한국어",
    "العربيةעברית",
    "हिन्दीதமிழ்ไทย",
    "\u0301\u0308\u0323\u20dd\u0e49\u064e",
    "😀👩‍👩‍👧👍🏽🏳️‍🌈🇩🇪❤️🧑🏿‍🚀",
    " \u00a0\u2003\u200b\u200d\u3000\ufeff\u2028",
    "\t\n\r\n\v\f  \n\n",
    "\0\x01\x07\x08\x1b\x7f\x80\x85\x9b\xad",
    "\ufffd\ufffe\uffff\U0001f600\U0010ffff\U000e0041",
]
PIECES = [END_OF_TEXT, "<|endoftext", "'s", "'ll ", "don't", " the", "  ", "\n\n", "\uff11\uff12", "x²½Ⅳ"]


def mixed_texts(count: int) -> list[str]:
    """Seeded texts of mixed scripts, emoji, combining marks, controls and special tokens."""
    rng = random.Random(0)

    def piece() -> str:
        kind = rng.random()
        if kind < 0.15:
            return rng.choice(PIECES)
        if kind < 0.25:
            code = rng.randrange(0x110000 - 0x800)
            return chr(code if code < 0xD800 else code + 0x800)
        return "".join(rng.choices(rng.choice(SCRIPTS), k=rng.randint(1, 8)))

    return ["".join(piece() for _ in range(rng.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = mixed_texts(2000)
    assert sum(END_OF_TEXT in text for text in found) > 100
    return found


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' tokenizer, through its own choice of files."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared("tokenizer_gpt2"))


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json and merges.txt"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    for name in request.param.split(" and "):
        shutil.copy(shared("tokenizer_gpt2", name), directory)
    found = Tokenizer.from_directory(directory)
    assert found is not None
    return found


def load(*parts: str) -> Tokenizer:
    found = Tokenizer.from_directory(shared(*parts))
    assert found is not None
    return found


def test_the_alphabet_writes_every_byte_once() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert byte_alphabet()["A"] == 65
    assert byte_alphabet()["Ġ"] == 32


def test_ids_of_a_whole_book_are_those_of_transformers(tokenizer: Tokenizer, reference: Any) -> None:
    text = shared("texts", "wiki.test.raw").read_bytes().decode()
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text, split_special_tokens=True)
    assert tokenizer.decode(ids) == text


def test_ids_of_any_text_are_those_of_transformers(
    tokenizer: Tokenizer, reference: Any, texts: list[str]
) -> None:
    """Typed special tokens are text here and tokens there, unless either side is told otherwise."""
    for text in texts:
        plain = tokenizer.encode(text)
        assert plain == reference.encode(text, split_special_tokens=True), text
        assert tokenizer.encode(text, special_tokens=True) == reference.encode(text), text
        assert tokenizer.decode(plain) == text


def test_the_class_of_transformers_for_gpt2_agrees(reference: Any, texts: list[str]) -> None:
    from transformers import GPT2TokenizerFast

    other = GPT2TokenizerFast.from_pretrained(shared("tokenizer_gpt2"))
    assert all(other.encode(text) == reference.encode(text) for text in texts[:200])


def test_a_typed_special_token_is_text(tokenizer: Tokenizer) -> None:
    """Else a pasted document could end the text that the model believes to continue."""
    text = f"a{END_OF_TEXT}b"
    special = 50256
    assert special not in tokenizer.encode(text)
    assert tokenizer.encode(text, special_tokens=True) == [64, special, 65]
    assert special not in tokenizer.encode(text)
    assert tokenizer.decode([64, special, 65]) == text


def test_an_id_without_a_token_is_no_text(tokenizer: Tokenizer) -> None:
    """Models whose vocabulary is padded can draw such ids."""
    assert tokenizer.token_bytes(50257) == b""
    assert tokenizer.decode([64, 50257, 2**31, 65]) == "ab"


def test_no_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_the_longest_token_bounds_the_characters(tokenizer: Tokenizer, texts: list[str]) -> None:
    """The engine refuses a prompt by this before it is tokenised: too small a bound refuses good prompts."""
    longest = tokenizer.longest_token
    assert longest is not None
    for text in (*texts, " " * 5000, "-" * 5000, "=" * 5000):
        assert len(text) <= longest * len(tokenizer.encode(text))


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    assert Tokenizer.from_directory(tmp_path) is None
    (tmp_path / "vocab.json").write_text("{}")
    assert Tokenizer.from_directory(tmp_path) is None


def test_merges_with_windows_line_ends(tmp_path: Path) -> None:
    """git's autocrlf rewrites merges.txt in a cloned model."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared("tokenizer_gpt2", name), tmp_path)
    merges = tmp_path / "merges.txt"
    merges.chmod(0o644)
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    found = Tokenizer.from_directory(tmp_path)
    assert found is not None
    assert found.encode("Hello world") == [15496, 995]


def test_bytes_alone_make_a_tokenizer(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    found = Tokenizer.from_directory(tmp_path)
    assert found is not None
    assert found.decode(found.encode("é😀\0")) == "é😀\0"
    assert len(found.encode("é😀\0")) == 7
    assert found.encode(END_OF_TEXT, special_tokens=True) == [END_OF_TEXT_ID]


@pytest.mark.parametrize(
    ("model", "text", "missing"),
    [
        ("slm_4096_kunal", "how #are you", "'#' (U+0023)"),
        ("slm_4096_kunal", "caf\u00e9", "'é' (U+00E9)"),
        ("slm_4096_kunal", "x😀", "'😀' (U+1F600)"),
        ("makemore_names_lmj9", "emma bob", "' ' (U+0020)"),
        ("makemore_names_lmj9", "Emma", "'E' (U+0045)"),
    ],
)
def test_a_character_model_names_what_it_cannot_write(model: str, text: str, missing: str) -> None:
    """The library drops such characters in silence: the model would continue another prompt."""
    tokenizer = load("models", model, "hf")
    with pytest.raises(UsageError) as caught:
        tokenizer.encode(text)
    assert missing in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_special_token_needs_no_characters() -> None:
    """The names model has ``<|endoftext|>`` but no ``<``: as a token it can be written, as text it cannot."""
    tokenizer = load("models", "makemore_names_lmj9", "hf")
    assert tokenizer.encode(f"{END_OF_TEXT}em", special_tokens=True) == [0, 5, 13]
    with pytest.raises(UsageError, match="'<'"):
        tokenizer.encode(f"{END_OF_TEXT}em")
    with pytest.raises(UsageError, match="'>'"):
        tokenizer.encode(f"{END_OF_TEXT}em>", special_tokens=True)


@pytest.mark.parametrize(("model", "text"), [("makemore_names_lmj9", "emma"), ("slm_4096_kunal", "what is")])
def test_a_character_model_reads_its_own(model: str, text: str) -> None:
    tokenizer = load("models", model, "hf")
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def word_level(build: Callable[[Any], Any], directory: Path) -> Tokenizer:
    import tokenizers
    from tokenizers import pre_tokenizers

    backend = tokenizers.Tokenizer(build(tokenizers.models))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(directory / "tokenizer.json"))
    found = Tokenizer.from_directory(directory)
    assert found is not None
    return found


def test_a_word_level_tokenizer(tmp_path: Path) -> None:
    vocab = {"[UNK]": 0, "the": 1, "cat": 2}
    tokenizer = word_level(lambda models: models.WordLevel(vocab, unk_token="[UNK]"), tmp_path)
    assert not tokenizer.byte_level
    assert tokenizer.longest_token is None
    assert tokenizer.encode("the dog cat") == [1, 0, 2]
    assert tokenizer.decode([1, 2]) == "the cat"
    assert tokenizer.decode([1, 99, 2]) == "the cat"


def test_a_word_that_such_a_tokenizer_cannot_write(tmp_path: Path) -> None:
    """The library's own exception would be a traceback."""
    tokenizer = word_level(lambda models: models.WordLevel({"the": 1}, unk_token="[UNK]"), tmp_path)
    with pytest.raises(UsageError, match="cannot read this prompt"):
        tokenizer.encode("the cat")
