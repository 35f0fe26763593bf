"""Tokens scored as transformers scores them, and grouped into whole characters."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import load_fp32, make_model
from transformers import GPT2LMHeadModel

from gpt2cli.analysis.inspect import Token, TokenGroup, score_tokens, summarise, token_groups
from gpt2cli.analysis.logprobs import TokenScore
from gpt2cli.core.engine import Engine
from gpt2cli.errors import InvalidOption, PromptTooLong
from gpt2cli.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("inspect") / "m", std=0.2, seed=2)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return load_fp32(directory)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> GPT2LMHeadModel:
    model: GPT2LMHeadModel = GPT2LMHeadModel.from_pretrained(directory)
    return model.eval()


def logprobs_of(model: GPT2LMHeadModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("length", [1, 2, 17, 64, 65])
def test_scores_as_transformers(engine: Engine, theirs: GPT2LMHeadModel, length: int) -> None:
    """Log-probability, rank, entropy and alternatives of every token; the last may lie beyond the context."""
    pick = random.Random(length)
    ids = [pick.randrange(257) for _ in range(length)]
    tokens = score_tokens(engine, ids, top=3)
    assert [(t.place, t.token) for t in tokens] == list(enumerate(ids, 1))
    assert tokens[0].score is None
    if length == 1:
        return
    expected = logprobs_of(theirs, ids[:-1])
    for token, row in zip(tokens[1:], expected, strict=True):
        score = token.score
        assert score is not None
        assert score.logprob == pytest.approx(float(row[token.token]), abs=1e-4)
        assert score.rank == int((row > row[token.token]).sum()) + 1
        assert score.entropy == pytest.approx(float(-(row.exp() * row).sum()), abs=1e-4)
        values, best = row.topk(3)
        assert [t for t, _ in score.top] == best.tolist()
        assert [p for _, p in score.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_longer_than_the_context(engine: Engine, theirs: GPT2LMHeadModel) -> None:
    """Only with a stride; each token then has the context of its window."""
    pick = random.Random(0)
    ids = [pick.randrange(257) for _ in range(150)]
    with pytest.raises(PromptTooLong) as caught:
        score_tokens(engine, ids)
    assert caught.value.hint is not None and "--stride 32" in caught.value.hint
    tokens = score_tokens(engine, ids, stride=20)
    done = 1
    for begin in range(0, 150, 20):
        window = ids[begin : begin + 64]
        expected = logprobs_of(theirs, window)
        for at in range(max(done, begin + 1), begin + len(window)):
            score = tokens[at].score
            assert score is not None
            assert score.logprob == pytest.approx(float(expected[at - begin - 1, ids[at]]), abs=1e-4)
        done = begin + len(window)
        if done == 150:
            break
    apart = score_tokens(engine, ids, stride=64)
    assert [token.place for token in apart if token.score is None] == [1, 65, 129]
    with pytest.raises(InvalidOption):
        score_tokens(engine, ids, stride=0)


@given(st.lists(st.integers(0, 256), max_size=30))
def test_pieces_are_the_text(tiny_model: Path, ids: list[int]) -> None:
    """Joined, the pieces are the decoded text, and each token is in one of them."""
    tokenizer = Tokenizer.from_directory(tiny_model)
    assert tokenizer is not None
    tokens = [Token(place, token, None) for place, token in enumerate(ids, 1)]
    pieces = token_groups(tokenizer, tokens)
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
    assert [token for piece in pieces for token in piece.tokens] == tokens


def test_an_emoji_is_one_piece(tiny_model: Path) -> None:
    tokenizer = Tokenizer.from_directory(tiny_model)
    assert tokenizer is not None
    tokens = [Token(n, token, None) for n, token in enumerate(tokenizer.encode("a🎉b"))]
    assert [(p.text, len(p.tokens)) for p in token_groups(tokenizer, tokens)] == [
        ("a", 1),
        ("🎉", 4),
        ("b", 1),
    ]


def piece(*scores: TokenScore | None) -> TokenGroup:
    return TokenGroup("x", tuple(Token(1, 0, score) for score in scores))


def test_levels_are_bits() -> None:
    def score(probability: float, rank: int = 1, entropy: float = 0.0) -> TokenScore:
        return TokenScore(0, math.log(probability) if probability else -math.inf, rank, entropy)

    assert [piece(score(p)).level("probability") for p in (1, 0.6, 0.5, 0.25, 0.2, 2**-9, 0)] == [
        *(0, 0, 1, 2, 2, 9, 9)
    ]
    assert piece(score(0.5), score(0.25)).level("probability") == 3
    assert [piece(score(1, rank)).level("rank") for rank in (1, 2, 3, 4, 511, 512, 99999)] == [
        *(0, 1, 1, 2, 8, 9, 9)
    ]
    assert [piece(score(1, 1, n * math.log(2))).level("entropy") for n in (0, 0.9, 1, 15)] == [0, 0, 1, 9]
    assert piece(None).level("probability") is None
    assert piece(None, score(0.5)).level("probability") == 1


def test_summary(engine: Engine) -> None:
    assert engine.tokenizer is not None
    tokens = score_tokens(engine, engine.encode("some text"))
    nll = -sum(token.score.logprob for token in tokens if token.score)
    found = summarise(engine.tokenizer, tokens)
    assert (found.tokens, found.scored) == (9, 8)
    assert found.nll == pytest.approx(nll)
    assert found.perplexity == pytest.approx(math.exp(nll / 8))
    assert found.bits_per_byte == pytest.approx(nll / math.log(2) / 8)
    without = summarise(engine.tokenizer, tokens, {tokens[-1].token})
    assert without.bits_per_byte is not None and without.bits_per_byte > found.bits_per_byte
    alone = summarise(engine.tokenizer, tokens[:1])
    assert (alone.nll, alone.perplexity, alone.bits_per_byte) == (0, None, None)
