"""The split: nothing is on both sides, whatever the data looks like."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.errors import UsageError
from gpt2cli.train import documents
from gpt2cli.train.corpus import Corpus
from gpt2cli.train.documents import DocumentPiece, document_key, survey
from gpt2cli.train.options import DataOptions
from gpt2cli.train.split import MIN_DOCUMENTS, divide, make_split

Divided = tuple[list[str], list[str]]


def whole(texts: Iterable[str]) -> list[DocumentPiece]:
    return [DocumentPiece(text, True) for text in texts]


def divided(pieces: list[DocumentPiece], share: float, excluded: frozenset[bytes] = frozenset()) -> Divided:
    """The texts of both sides."""
    found = survey(pieces)
    sides: Divided = ([], [])
    for piece, held in divide(iter(pieces), found, make_split(found, share, excluded)):
        if piece.starts:
            sides[held].append("")
        sides[held][-1] += piece.text
    return sides


def stories(count: int, seed: int = 0) -> list[str]:
    random_ = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "far", "away"]
    return [" ".join(random_.choices(words, k=random_.randint(5, 80))) + f" {n}" for n in range(count)]


@given(
    st.lists(st.text("ab \n", max_size=6).filter(str.strip), max_size=80), st.sampled_from([0.02, 0.2, 0.5])
)
def test_no_document_is_on_both_sides(texts: list[str], share: float) -> None:
    """However often it comes and however its white space is set."""
    pieces = whole(texts)
    found = survey(pieces)
    if not make_split(found, share).by_document:
        return
    train, validation = divided(pieces, share)
    assert {document_key(t) for t in train}.isdisjoint(document_key(t) for t in validation)
    assert sorted(train + validation) == sorted(texts)


def test_duplicates_stay_together() -> None:
    texts = stories(200) * 3 + [text.replace(" ", "\n") for text in stories(200)]
    train, validation = divided(whole(texts), 0.1)
    assert validation
    assert {document_key(t) for t in train}.isdisjoint(document_key(t) for t in validation)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
def test_share_is_about_held(share: float) -> None:
    texts = stories(3000)
    _, validation = divided(whole(texts), share)
    held = sum(map(len, validation)) / sum(map(len, texts))
    assert held == pytest.approx(share, rel=0.15)


def test_a_long_document_does_not_make_the_validation_text() -> None:
    """One that is more than twice what is wanted is trained on."""
    texts = [*stories(100), "long " * 20_000]
    _, validation = divided(whole(texts), 0.02)
    assert validation
    assert max(map(len, validation)) < 1000


def test_split_depends_on_the_texts_only() -> None:
    """Not on their order, nor on chance."""
    texts = stories(300)
    _, validation = divided(whole(texts), 0.1)
    shuffled = random.Random(1).sample(texts, len(texts))
    assert sorted(divided(whole(shuffled), 0.1)[1]) == sorted(validation)
    assert divided(whole(texts), 0.1)[1] == validation


def test_more_text_moves_little() -> None:
    """What was held back of a data set stays so, mostly, when it grows."""
    texts = stories(400)
    before, after = (set(divided(whole(t), 0.1)[1]) for t in (texts[:200], texts))
    kept = before & after
    assert len(kept) > len(before) * 0.6


def test_few_documents_hold_back_their_ends() -> None:
    texts = ["\n".join(f"{name} line {n}" for n in range(100)) for name in "abc"]
    train, validation = divided(whole(texts), 0.1)
    assert [f"{head}\n{tail}" for head, tail in zip(train, validation, strict=True)] == texts
    for text, tail in zip(texts, validation, strict=True):
        assert len(tail) / len(text) == pytest.approx(0.1, abs=0.02)


def test_twenty_copies_are_one_document() -> None:
    found = survey(whole(["the same text"] * MIN_DOCUMENTS))
    assert not make_split(found, 0.1).by_document
    assert make_split(survey(whole(stories(MIN_DOCUMENTS))), 0.1).by_document
    assert not make_split(survey(whole(stories(MIN_DOCUMENTS - 1))), 0.1).by_document


@pytest.mark.parametrize("word", ["é", "日本", "😀", "a", "line\n", "some words "])
@pytest.mark.parametrize("count", range(1, 30, 4))
def test_ends_cut_no_character(word: str, count: int) -> None:
    """A character that lay across the cut was lost."""
    text = "x" + word * count
    train, validation = divided(whole([text]), 0.3)
    assert "".join("".join(train + validation).split()) == "".join(text.split())


@given(st.lists(st.text("ab é\n", min_size=1, max_size=12), min_size=1, max_size=6), st.floats(0.01, 0.5))
def test_ends_of_documents_in_pieces(parts: list[str], share: float) -> None:
    """The end of a document is one document of its own, wherever its pieces are cut."""
    parts[0] = "a" + parts[0]
    pieces = [DocumentPiece(text, not n) for n, text in enumerate(parts)]
    train, validation = divided(pieces, share)
    assert len(train) <= 1
    assert len(validation) <= 1
    assert "".join("".join(train + validation).split()) == "".join("".join(parts).split())


def test_excluded_documents_are_nowhere() -> None:
    texts = stories(100)
    excluded = frozenset(document_key(text) for text in texts[:10])
    train, validation = divided(whole([text.upper() for text in texts[:2]] + texts), 0.1, excluded)
    assert not excluded.intersection(map(document_key, train + validation))
    assert len(train + validation) == 92
    train, validation = divided(whole(texts[:15]), 0.1, excluded)
    assert "\n".join(train + validation).count(texts[3]) == 0
    assert len(train) == 5


def test_a_share_of_nothing() -> None:
    texts = stories(5)
    assert divided(whole(texts), 0.0) == (texts, [])


def test_data_that_grows_meanwhile() -> None:
    """A file that is appended to between the two readings ended in an IndexError."""
    texts = stories(30)
    found = survey(whole(texts))
    with pytest.raises(UsageError, match="changed"):
        list(divide(iter(whole([*texts, "one more"])), found, make_split(found, 0.1)))


@pytest.mark.parametrize("apart", ["validation_data", "test_data"])
def test_validation_and_test_files_are_not_trained_on(tmp_path: Path, apart: str) -> None:
    """Their documents are left out of the training data, where they were copied from."""
    texts = stories(100)
    (tmp_path / "train.txt").write_text("<|endoftext|>".join(texts))
    (tmp_path / "apart.txt").write_text("\r\n<|endoftext|>\n".join(texts[40:50]))
    options = DataOptions(
        data=(tmp_path / "train.txt",), validation=0.1, **{apart: (tmp_path / "apart.txt",)}
    )
    corpus = Corpus.open(options)
    assert corpus.excluded_documents == 10
    train = list(corpus.training_texts())
    assert not set(train).intersection(texts[40:50])
    validation = {piece.text for piece, held in corpus.pieces() if held}
    if apart == "validation_data":
        assert validation == set(texts[40:50])
        assert len(train) == 90
    else:
        assert validation.isdisjoint(texts[40:50])
        assert len(validation) + len(train) == 90


def test_copies_of_a_long_document_in_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into pieces elsewhere, a copy had another key: it was trained on and validated on."""
    monkeypatch.setattr(documents, "PIECE_CHARS", 64)
    monkeypatch.setattr(documents, "KEY_CHARS", 128)
    texts = [" ".join(stories(9, seed))[: 128 + seed].strip() for seed in range(60)]
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text("y" * 37 * n + "|" + "|".join(texts[n:] + texts[:n]))
    corpus = Corpus.open(DataOptions(data=(tmp_path,), validation=0.1, separator="|"))
    sides: tuple[set[str], set[str]] = (set(), set())
    text = ""
    for piece, held in corpus.pieces():
        text = piece.text if piece.starts else text + piece.text
        if text in texts:
            sides[held].add(text)
    assert sides[0] | sides[1] == set(texts)
    assert sides[1]
    assert sides[0].isdisjoint(sides[1])
