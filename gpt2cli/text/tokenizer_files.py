"""The files of a tokenizer, checked and handed to the ``tokenizers`` library.

The library is written in Rust: what it does not expect in a file can make it panic, which prints a
report of its own before Python sees an exception, or take memory until the process is aborted. What
is known to end so is refused here, before the library sees it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2cli.errors import Gpt2cliError, ModelFileError
from gpt2cli.model_files import SENTENCEPIECE_FILES, TOKENIZER_FILE, VOCABULARY_FILES
from gpt2cli.options import shown
from gpt2cli.text.charsmap import check_charsmap
from gpt2cli.untrusted import parse_json, read_capped, read_json

END_OF_TEXT = "<|endoftext|>"
OFFICIAL = "8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6"
"""sha256 of ``tokenizer.json`` of gpt2 and its siblings, which need not be found harmless at each start."""

MAX_FILE_BYTES = 48 * 2**20
MAX_MERGES = 500_000
MAX_BRACKETS = 900_000
"""Gemma 2 has 580,000 merges, each a list."""
MAX_CONFIG_BYTES = 2**20
MAX_COMPONENTS = 100
MAX_TOKEN_ID = 1_000_000
MAX_TRIE_BYTES = 3_000_000
"""The limit for all added tokens, and for a Unigram vocabulary: the library takes up to 330 bytes a byte."""
MAX_TRIE_DEPTH = 1000
"""The limit for one such token: the library frees a long one by recursion, and overflows its stack."""
MAX_REGEX_CHARS = 10_000

_WORD_END = "</w>"
_TYPES_OF_PAIRS = ("gpt2", "gpt_neo", "gptj", "openai-gpt")
"""The types of models whose ``vocab.json`` and ``merges.txt`` are GPT-2's or GPT-1's; others cut a text into
words in a way that is not written there.
"""
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_NESTED = ("normalizers", "pretokenizers", "processors", "decoders")
_REGEX_ATOM = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
_REGEX_EXPLOSIVE = re.compile(r"[)}*+?][*{]|[)}]\+")
_REGEX_OF_SOMETHING = re.compile(r"[^()|^$?*{}]+(?:\{[1-9][^}]*\})?")


def read_backend(directory: Path) -> Any | None:
    """The library's tokenizer of a model directory: of ``tokenizer.json``, else of ``vocab.json`` and
    ``merges.txt``; None where there is none. Raises `ModelFileError`.
    """
    found = _tokenizer_paths(directory)
    if not found:
        _refuse_sentencepiece(directory)
        return None
    if len(found) > 1 and (kind := _model_type(directory)) not in _TYPES_OF_PAIRS:
        raise ModelFileError(
            f"{directory}: vocab.json and merges.txt do not say how a {shown(kind)} cuts a text into words",
            hint="write a tokenizer.json beside them: transformers.AutoTokenizer.from_pretrained(DIR)"
            ".save_pretrained(DIR) does",
        )
    with library_errors(f"{found[0]}: not a tokenizer"):
        return _read_tokenizer_json(found[0]) if len(found) == 1 else _read_vocab_and_merges(*found)


def hides_special_tokens(directory: Path) -> bool:
    """Whether a text leaves out the special tokens that a model draws, as transformers' pipelines do.

    A GPT-2 shows its end-of-text where it does not end the text.
    """
    return bool(_model_type(directory) != "gpt2")


def _model_type(directory: Path) -> Any:
    path = directory / "config.json"
    return read_json(path, MAX_CONFIG_BYTES).get("model_type", "gpt2") if path.is_file() else "gpt2"


def _refuse_sentencepiece(directory: Path) -> None:
    for name in SENTENCEPIECE_FILES:
        if (directory / name).is_file():
            raise ModelFileError(
                f"{directory}: its tokenizer is a sentencepiece file, {name}, which is not read",
                hint="write a tokenizer.json beside it: transformers.AutoTokenizer.from_pretrained(DIR)"
                ".save_pretrained(DIR) does, with sentencepiece installed",
            )


def has_tokenizer(directory: Path) -> bool:
    """Whether a model directory holds the files of a tokenizer."""
    return bool(_tokenizer_paths(directory))


def _tokenizer_paths(directory: Path) -> tuple[Path, ...]:
    """``tokenizer.json`` alone, else ``vocab.json`` and ``merges.txt``; none where neither is there."""
    whole, pair = directory / TOKENIZER_FILE, tuple(directory / name for name in VOCABULARY_FILES)
    if whole.is_file():
        return (whole,)
    return pair if all(path.is_file() for path in pair) else ()


@contextmanager
def library_errors(subject: str, kind: type[Gpt2cliError] = ModelFileError) -> Iterator[None]:
    """What the library raises becomes an error of ``kind`` about ``subject``, a panic a `ModelFileError`."""
    try:
        yield
    except Gpt2cliError:
        raise
    except Exception as error:
        raise kind(f"{subject}: {error}") from error
    except BaseException as error:
        # A panic of the Rust library is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise ModelFileError(f"{subject}: {error}") from None


def _read_tokenizer_json(path: Path) -> Any:
    import tokenizers

    data = read_capped(path, MAX_FILE_BYTES)
    if hashlib.sha256(data).hexdigest() != OFFICIAL:
        _check_table(_parse(data, path), path)
    backend = tokenizers.Tokenizer.from_buffer(data)
    # Whether a prompt is too long is the engine's business.
    backend.no_truncation()
    backend.no_padding()
    if backend.normalizer is not None:
        for token in backend.get_added_tokens_decoder().values():
            if token.normalized and not backend.normalizer.normalize_str(token.content):
                raise ModelFileError(f"{path}: the token {shown(token.content)} is normalised to nothing")
    return backend


def _read_vocab_and_merges(vocab_path: Path, merges_path: Path) -> Any:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocab = _parse(read_capped(vocab_path, MAX_FILE_BYTES), vocab_path)
    _check_ids(vocab, vocab_path)
    data = read_capped(merges_path, MAX_FILE_BYTES)
    if data.count(b"\n") > MAX_MERGES:
        raise ModelFileError(f"{merges_path}: has more lines than any tokenizer")
    lines = data.decode("utf-8").replace("\r\n", "\n").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in pairs):
        raise ModelFileError(f"{merges_path}: a line is not a pair of tokens")
    _check_merges(pairs, vocab, "", merges_path)
    merges = [(a, b) for a, b in pairs]
    if any(b.endswith(_WORD_END) for _, b in pairs[:1000]):
        return _gpt1_backend(vocab, merges)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if END_OF_TEXT in vocab:
        backend.add_special_tokens([END_OF_TEXT])
    return backend


def _gpt1_backend(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """GPT-1's: lower-cased words that end with ``</w>`` (Radford et al. 2018)."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    unknown = "<unk>" if "<unk>" in vocab else None
    model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=_WORD_END, unk_token=unknown)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=_WORD_END)
    if unknown:
        backend.add_special_tokens([unknown])
    return backend


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    if data.count(b"{") + data.count(b"[") > MAX_BRACKETS:
        raise ModelFileError(f"{path}: has more parts than any tokenizer")
    return parse_json(data, path)


def _check_table(table: Mapping[str, Any], path: Path) -> None:
    try:
        _check_model(table["model"], path)
        _check_trie([token["content"] for token in table.get("added_tokens") or ()], path)
        components = [component for part in _PARTS for component in _components(table.get(part))]
        for component in components:
            _check_component(component, path)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelFileError(f"{path}: not laid out as a tokenizer is") from None
    if len(components) > MAX_COMPONENTS:
        raise ModelFileError(f"{path}: has more parts than any tokenizer")
    if sum("single" in component for component in components) > 1:
        raise ModelFileError(f"{path}: more than one template for a text is not supported")


def _check_model(model: Mapping[str, Any], path: Path) -> None:
    vocab = model["vocab"]
    if not isinstance(vocab, dict):
        return _check_trie([token for token, _ in vocab], path)
    _check_ids(vocab, path)
    if "merges" in model:
        _check_merges(model["merges"], vocab, model.get("continuing_subword_prefix") or "", path)


def _check_ids(vocab: Mapping[str, Any], path: Path) -> None:
    """Ids are small whole numbers, and no two tokens share one: it would be anyone's guess which is shown."""
    if not all(type(token_id) is int and 0 <= token_id < MAX_TOKEN_ID for token_id in vocab.values()):
        raise ModelFileError(f"{path}: a token's id is not a whole number from 0 to {MAX_TOKEN_ID - 1}")
    if len(set(vocab.values())) != len(vocab):
        raise ModelFileError(f"{path}: two tokens have the same id")


def _check_merges(
    merges: Iterable[str | list[str]], vocab: Mapping[str, int], prefix: str, path: Path
) -> None:
    """What a merge gives is a token. The library cuts off the second part's prefix by its length alone."""
    cut = len(prefix)
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left + right[cut:] not in vocab or (cut and not right.startswith(prefix)):
            raise ModelFileError(f"{path}: a merge gives no token of the vocabulary")


def _check_trie(tokens: list[str], path: Path) -> None:
    sizes = [len(token.encode()) for token in tokens]
    if sum(sizes) > MAX_TRIE_BYTES or max(sizes, default=0) > MAX_TRIE_DEPTH:
        raise ModelFileError(f"{path}: its tokens are too long")


def _components(part: Any) -> Iterator[Mapping[str, Any]]:
    """The components of a part: itself, or those of a sequence at any depth."""
    for component in part if isinstance(part, list) else [] if part is None else [part]:
        yield component
        for name in _NESTED:
            yield from _components(component.get(name))


def _check_component(component: Mapping[str, Any], path: Path) -> None:
    """What a component is shows in its fields: the library tries every kind that has them."""
    if component["type"] == "Precompiled" or "precompiled_charsmap" in component:
        wrong = check_charsmap(component.get("precompiled_charsmap"))
        if wrong is not None:
            raise ModelFileError(f"{path}: its map of characters is damaged: {wrong}")
    if component.get("stop"):
        raise ModelFileError(f"{path}: a decoder that strips the end of tokens is not supported")
    if component.get("length") == 0:
        raise ModelFileError(f"{path}: it cuts the text into pieces of no length")
    if "single" in component:
        _check_template(component, path)
    pattern = component.get("pattern")
    if isinstance(pattern, dict) and "Regex" in pattern:
        _check_regex(pattern["Regex"], "content" in component, path)


def _check_template(component: Mapping[str, Any], path: Path) -> None:
    """The text stands in the template once, and the special tokens beside it are all described."""
    pieces = component["single"]
    texts = [piece["Sequence"]["id"] for piece in pieces if "Sequence" in piece]
    special = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
    if texts != ["A"] or not special <= component["special_tokens"].keys():
        raise ModelFileError(f"{path}: its template for one text is damaged")


def _check_regex(pattern: str, replaces: bool, path: Path) -> None:
    """The library panics where a match takes too long: no repetition of a repetition, no back reference;
    and where it replaces a match of nothing.
    """
    bare = _REGEX_ATOM.sub("x", pattern)
    if len(pattern) > MAX_REGEX_CHARS or _REGEX_EXPLOSIVE.search(bare) or re.search(r"\\[1-9kg]", pattern):
        raise ModelFileError(f"{path}: a regular expression in it may take for ever, and is refused")
    if replaces and (not _REGEX_OF_SOMETHING.fullmatch(bare) or re.search(r"\\[bBAzZGKyY]", pattern)):
        raise ModelFileError(f"{path}: a regular expression in it may replace nothing, and is refused")
