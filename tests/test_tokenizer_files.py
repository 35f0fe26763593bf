"""Crafted tokenizer files: a `ModelFileError` of one line, never a panic of the Rust library.

A panic writes to standard error before Python hears of it, and an allocation too large aborts the
process: each case here does the one or the other where the library is handed the file as it is.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import END_OF_TEXT, byte_symbols, write_byte_tokenizer

from gpt2cli.errors import Gpt2cliError, ModelFileError, UsageError
from gpt2cli.text import tokenizer_files
from gpt2cli.text.detokenizer import Detokenizer
from gpt2cli.text.tokenizer import Tokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K_POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}},
}
VOCAB = {"a": 0, "b": 1, "ab": 2, "##b": 3, "<unk>": 4, "é": 5, "▁": 6}


def table(model: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    model = {"type": "BPE", "vocab": VOCAB, "merges": [["a", "b"]], **(model or {})}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": model,
        **parts,
    }


def added(content: str, *, normalized: bool = True, token_id: int = 7) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    return {"id": token_id, "content": content, "normalized": normalized, **flags}


def template(**changes: Any) -> dict[str, Any]:
    return {**TEMPLATE, **changes}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def load(directory: Path, content: dict[str, Any] | str | bytes) -> Tokenizer:
    text = json.dumps(content) if isinstance(content, dict) else content
    data = text.encode() if isinstance(text, str) else text
    (directory / "tokenizer.json").write_bytes(data)
    found = Tokenizer.from_directory(directory)
    assert found is not None
    return found


REFUSED: dict[str, dict[str, Any]] = {
    "precompiled map cut short": table(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "/wAAAA=="}
    ),
    "precompiled map missing": table(normalizer={"type": "Precompiled"}),
    "precompiled map untagged": table(normalizer={"type": "NFC", "precompiled_charsmap": "AAAA"}),
    "precompiled map nested": table(
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": ""}]},
            ],
        }
    ),
    "strip of the end": table(decoder={"type": "Strip", "content": "a", "start": 1, "stop": 1}),
    "strip under another name": table(decoder={"type": "Fuse", "content": "a", "start": 1, "stop": 9}),
    "strip nested": table(
        decoder={
            "type": "Sequence",
            "decoders": [{"type": "Strip", "content": "a", "start": 0, "stop": 2**40}],
        }
    ),
    "pieces of no length": table(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "template with an unknown token": table(post_processor=template(special_tokens={})),
    "template of a second text": table(
        post_processor=template(single=[{"Sequence": {"id": "B", "type_id": 0}}])
    ),
    "template of many texts": table(post_processor=template(single=[TEMPLATE["single"][1]] * 1000)),
    "two templates": table(post_processor={"type": "Sequence", "processors": [TEMPLATE, TEMPLATE]}),
    "merge without its prefix": table({"continuing_subword_prefix": "##", "merges": [["a", "b"]]}),
    "merge inside a character": table({"continuing_subword_prefix": "#", "merges": [["a", "é"]]}),
    "merge that gives no token": table({"vocab": {"aa": 0, "bb": 1}, "merges": [["aa", "bb"]]}),
    "merge of the old form": table({"continuing_subword_prefix": "##", "merges": ["a b"]}),
    "token normalised to nothing": table(
        added_tokens=[added("b")],
        normalizer={"type": "Replace", "pattern": {"String": "b"}, "content": ""},
    ),
    "id twice": table({"vocab": {"a": 0, "b": 0}, "merges": []}),
    "id negative": table({"vocab": {"a": -1}, "merges": []}),
    "id huge": table({"vocab": {"a": 2**32 - 1}, "merges": []}),
    "id over a word": table({"vocab": {"a": 2**64}, "merges": []}),
    "id a switch": table({"vocab": {"a": True}, "merges": []}),
    "id a fraction": table({"vocab": {"a": 0.5}, "merges": []}),
    "id a text": table({"vocab": {"a": "0"}, "merges": []}),
    "added token too long": table(added_tokens=[added("x" * (tokenizer_files.MAX_TRIE_DEPTH + 1))]),
    "unigram token too long": table(
        {"type": "Unigram", "unk_id": 0, "vocab": [["é" * (tokenizer_files.MAX_TRIE_DEPTH // 2 + 1), 0.0]]}
    ),
    "unigram tokens too long in all": table(
        {"type": "Unigram", "vocab": [["x" * 1000, 0.0]] * (tokenizer_files.MAX_TRIE_BYTES // 999)}
    ),
    "too many merges": table({"merges": [["a", "b"]] * tokenizer_files.MAX_BRACKETS}),
    "too many parts": table(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Whitespace"}] * tokenizer_files.MAX_COMPONENTS,
        }
    ),
    "no model": {"version": "1.0"},
    "model of no kind": table({"type": "Other"}),
    "model a list": {**table(), "model": []},
    "vocab missing": {**table(), "model": {"type": "BPE", "merges": []}},
    "merge out of the vocabulary": table({"merges": [["x", "y"]]}),
    "merge of one": table({"merges": [["a"]]}),
    "unknown normalizer": table(normalizer={"type": "Other"}),
    "normalizer a text": table(normalizer="NFC"),
    "added token without content": table(added_tokens=[{"id": 1}]),
    "added tokens a text": table(added_tokens="abc"),
}

EXPLOSIVE = [
    r"(a|a)*$",
    r"(a*)*b",
    r"(a+)+$",
    r"(?:a|aa)+$",
    r"(a{1,9}){1,9}",
    r"a+*",
    r"a{1,9}+",
    r"(a)\1",
    r"(?<x>a)\k<x>",
    r"(?<x>a|\g<x>b)",
    "a?" * 6000,
]


@pytest.fixture
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The test writes nothing to standard error, not even from Rust."""
    yield
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        load(tmp_path, REFUSED[name])
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "tokenizer.json"))
    assert "\n" not in message
    assert caught.value.exit_code == 5


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{\0",
        b'{"model": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"normalizer": {"type": "Precompiled"}, "normalizer": null}',
        b"[{}]" * (tokenizer_files.MAX_BRACKETS // 2 + 1),
        b" " * (tokenizer_files.MAX_FILE_BYTES + 1),
        b'{"model": "\\ud800"}',
        b'{"model": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_no_json_of_ours(content: bytes, tmp_path: Path) -> None:
    for load_it in (load, load_vocab):
        with pytest.raises(ModelFileError):
            load_it(tmp_path, content)


def load_vocab(directory: Path, content: bytes, merges: bytes = b"#version: 0.2\n") -> Tokenizer:
    (directory / "tokenizer.json").unlink(missing_ok=True)
    (directory / "vocab.json").write_bytes(content)
    (directory / "merges.txt").write_bytes(merges)
    found = Tokenizer.from_directory(directory)
    assert found is not None
    return found


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    ("vocab", "merges"),
    [
        ({"a": 0, "b": 0}, b""),
        ({"a": -1}, b""),
        ({"a": tokenizer_files.MAX_TOKEN_ID}, b""),
        ({"a": 2**70}, b""),
        ({"a": None}, b""),
        ({"a": [0]}, b""),
        ({"a": 0, "b": 1}, b"a b\n"),
        ({"a": 0, "b": 1, "ab": 2}, b"a b c\n"),
        ({"a": 0, "b": 1, "ab": 2}, b"ab\n"),
        ({"a": 0, "b": 1, "ab": 2}, b"\xff \xff\n"),
        ({"a": 0}, b" " * (tokenizer_files.MAX_FILE_BYTES + 1)),
        ({"a": 0, "b": 1, "ab": 2}, b"a b\n" * (tokenizer_files.MAX_MERGES + 1)),
    ],
)
def test_refused_vocabularies(vocab: dict[str, Any], merges: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        load_vocab(tmp_path, json.dumps(vocab).encode(), merges)


@pytest.mark.usefixtures("silent")
def test_the_largest_id(tmp_path: Path) -> None:
    """An id is no index: one far out must not cost memory for all before it."""
    last = tokenizer_files.MAX_TOKEN_ID - 1
    assert load(tmp_path, table({"vocab": {"a": last}, "merges": []})).encode("a") == [last]
    assert load_vocab(tmp_path, json.dumps({"a": last}).encode()).encode("a") == [last]


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("regex", EXPLOSIVE, ids=lambda regex: regex[:20])
def test_regexes_that_never_end_are_refused(regex: str, tmp_path: Path) -> None:
    """The library panics when a match takes more than ten million steps, and only a prompt brings it out."""
    for parts in (
        {"pre_tokenizer": split(regex)},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": regex}, "content": ""}},
        {"decoder": {"type": "Replace", "pattern": {"Regex": regex}, "content": ""}},
    ):
        with pytest.raises(ModelFileError, match="regular expression"):
            load(tmp_path, table(**parts))


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    "regex",
    [GPT2, CL100K, CL100K_POSSESSIVE, O200K, r".", r"\d{1,3}", r"\s+", r"[()+*]+", r"\(+\)*", r"(a)?b"],
)
def test_regexes_of_real_tokenizers_are_not(regex: str, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, table(pre_tokenizer=split(regex)))
    assert tokenizer.encode("a a") == [0, 0]
    assert tokenizer.encode("a" * 20_000 + " " * 20_000)[:3] == [0, 0, 0]


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("regex", [r"é{0}", r"a*", r"a?", r"^", r"\b", r"(?=a)", r"a|", r"$", r"\A"])
def test_a_match_of_nothing_is_not_replaced(regex: str, tmp_path: Path) -> None:
    """A text put in where there was none breaks what the library knows of the places of characters."""
    replace = {"type": "Replace", "pattern": {"Regex": regex}, "content": "bb"}
    before = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    with pytest.raises(ModelFileError, match="regular expression"):
        load(tmp_path, table(normalizer=replace, pre_tokenizer=before))


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("regex", [r" {2,}", r"\s+", r"[^b]", r"a", r".", r"\p{Z}\p{Z}+"])
def test_a_match_of_something_is(regex: str, tmp_path: Path) -> None:
    replace = {"type": "Replace", "pattern": {"Regex": regex}, "content": "b"}
    assert load(tmp_path, table(normalizer=replace)).encode("b  ")[0] == 1


@pytest.mark.usefixtures("silent")
def test_a_regex_that_gets_through_is_still_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whether a regex ends cannot be told for all: a panic at the prompt is no traceback at least."""
    monkeypatch.setenv("RUST_BACKTRACE", "0")
    tokenizer = load(tmp_path, table(pre_tokenizer=split("a*a*a*a*$")))
    with pytest.raises(ModelFileError, match="tokenizer"):
        tokenizer.encode("a" * 1000 + "b")
    assert "panicked" in capfd.readouterr().err


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    "parts",
    [
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
        {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 2}},
        {
            "padding": {
                "strategy": {"Fixed": 2**40},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "a",
            }
        },
        {
            "padding": {
                "strategy": "BatchLongest",
                "direction": "Left",
                "pad_to_multiple_of": 2**40,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "a",
            }
        },
    ],
)
def test_a_file_neither_cuts_nor_pads_a_prompt(parts: dict[str, Any], tmp_path: Path) -> None:
    """It would drop the end of a prompt in silence, or fill the memory."""
    assert load(tmp_path, table(**parts)).encode("abba") == [2, 1, 0]


@pytest.mark.usefixtures("silent")
def test_a_template_may_add_a_token(tmp_path: Path) -> None:
    assert load(tmp_path, table(post_processor=TEMPLATE)).encode("bb") == [0, 1, 1]


@pytest.mark.usefixtures("silent")
def test_a_prefix_that_is_kept(tmp_path: Path) -> None:
    content = table({"continuing_subword_prefix": "##", "merges": ["a ##b"]})
    assert load(tmp_path, content).encode("ab") == [2]


@pytest.mark.usefixtures("silent")
def test_a_fifo_or_a_directory_is_no_tokenizer(tmp_path: Path) -> None:
    """Opening a FIFO would wait for ever."""
    import os

    write_byte_tokenizer(tmp_path)
    os.mkfifo(tmp_path / "tokenizer.json")
    found = Tokenizer.from_directory(tmp_path)
    assert found is not None
    assert found.encode("ab")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    assert Tokenizer.from_directory(tmp_path) is not None


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place inside ``value``: its container and its key there."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from leaves(value[key])


def changed(rng: random.Random, value: Any) -> Any:
    """Another value, mostly of the same kind, since the library stops at the first of a wrong kind."""
    numbers = [0, 1, -1, 2, 100, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 0.5, 1e308]
    texts = ["", "a", "b", "é", "ab", "##", "\0", "😀", "[", "(a", ".", "^", "$", "x" * 300, "Fuse", "Strip"]
    if rng.random() < 0.1:
        return rng.choice([*numbers, *texts, None, True, [], {}])
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return rng.choice([[], value[:1], value * 2, value[::-1]])
    if isinstance(value, dict):
        return dict(rng.sample(list(value.items()), rng.randint(0, len(value))))
    return rng.choice(texts if isinstance(value, str) else numbers)


def mutants(count: int) -> Iterator[dict[str, Any]]:
    """Seeded tables, each of one model and some parts, with one to three places changed."""
    rng = random.Random(0)
    bpe = {"unk_token": "<unk>", "continuing_subword_prefix": "##", "fuse_unk": True, "merges": ["a ##b"]}
    models = [{}, bpe, {"type": "WordLevel", "unk_token": "<unk>"}]
    models += [{"type": "Unigram", "unk_id": 4, "vocab": [[token, -1.0] for token in VOCAB]}]
    models += [{"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##"}]
    models[-1]["max_input_chars_per_word"] = 100
    parts: dict[str, list[Any]] = {
        "normalizer": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": "a"}, "content": "b"},
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
            {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip", "strip_left": True}]},
        ],
        "pre_tokenizer": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            {"type": "FixedLength", "length": 2},
            split(r"\w+"),
        ],
        "post_processor": [TEMPLATE, {"type": "Sequence", "processors": [TEMPLATE]}],
        "decoder": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            {"type": "Strip", "content": "a", "start": 1, "stop": 1},
            {"type": "WordPiece", "prefix": "##", "cleanup": True},
            {
                "type": "Sequence",
                "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": "a", "start": 1}],
            },
        ],
        "added_tokens": [[added("<x>")], [added("a", normalized=False, token_id=0)]],
    }
    for _ in range(count):
        chosen = {part: rng.choice(kinds) for part, kinds in parts.items() if rng.random() < 0.5}
        content = copy.deepcopy(table(rng.choice(models), **chosen))
        for _ in range(rng.randint(1, 3)):
            container, key = rng.choice(list(leaves(content)))
            container[key] = changed(rng, container[key])
        yield content


@pytest.mark.usefixtures("silent")
def test_mutants(tmp_path: Path) -> None:
    """2,000 damaged files load and work, or are refused, without a word on standard error."""
    worked = 0
    for content in mutants(2000):
        try:
            tokenizer = load(tmp_path, content)
            ids = [*tokenizer.encode(f"ab é\0 {END_OF_TEXT} a  😀"), *range(9)]
        except Gpt2cliError as error:
            assert isinstance(error, ModelFileError | UsageError)
            continue
        whole = tokenizer.decode(ids)
        detokenizer = Detokenizer(tokenizer)
        assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == whole
        worked += 1
    assert worked > 100


def test_symbols_of_bytes_are_the_alphabet() -> None:
    """The fixtures of these tests are built on the same 256 characters."""
    from gpt2cli.text.tokenizer import byte_alphabet

    assert set(byte_symbols()) == byte_alphabet().keys()
