"""Totals, choices and tasks against sums made by hand, and against published figures."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support import load_fp32, make_model, series, shared, text_logits
from test_analysis_parity import guide
from transformers import GPT2LMHeadModel

from gpt2cli.analysis.choices import rank_choices
from gpt2cli.analysis.score import Batcher, Scorer, score_text
from gpt2cli.analysis.surprisal import PLACES, Surprisal
from gpt2cli.analysis.tasks import LambadaResult, last_words, passage, read_cloze, score_cloze
from gpt2cli.analysis.totals import TokenUnits
from gpt2cli.analysis.windows import WindowOptions, windows
from gpt2cli.core.engine import Engine
from gpt2cli.errors import PromptTooLong, UsageError
from gpt2cli.hub.resolve import resolve


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Engine:
    return load_fp32(tiny_model)


def brute_force(engine: Engine, context: list[int], ids: list[int]) -> float:
    """The product of the probabilities, one whole forward pass a token, in float64."""
    total = 0.0
    for n, token in enumerate(ids):
        (logits,) = text_logits(engine.model, [*context, *ids[:n]])
        total += float(logits[-1].double().log_softmax(dim=-1)[token])
    return total


@pytest.mark.slow
@pytest.mark.parametrize("stride", [512, 256])
def test_wikitext_by_the_built_in_model(stride: int) -> None:
    """The beginning of WikiText-2's test text, by the guide's own loop over transformers."""
    engine = load_fp32(resolve(None).directory)
    text = shared("texts", "wiki.test.raw").read_text("utf-8")[: series(130_000, 25_000)]
    ids = engine.encode(text)
    theirs = GPT2LMHeadModel.from_pretrained(engine.checkpoint.directory, dtype=torch.float32).eval()
    total, count = guide(theirs, ids, 512, stride)
    found = score_text(engine, ids, WindowOptions.of(512, None, stride))
    assert found.guide_tokens == count
    assert found.guide_perplexity == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found.perplexity == pytest.approx(found.guide_perplexity, rel=1e-3)


def test_slm_mean_nll() -> None:
    engine = load_fp32(shared("models", "slm_4096_kunal", "hf"))
    expected = json.loads(shared("models", "slm_4096_kunal", "expected.json").read_text())
    ids = engine.encode(shared("models", "slm_4096_kunal", "source", "corpus.txt").read_text("utf-8"))
    found = score_text(engine, ids, WindowOptions.of(128, 129, 128))
    assert found.tokens == expected["n_targets"]
    assert found.mean_nll == pytest.approx(expected["mean_nll_disjoint_windows_128"], abs=1e-6)
    assert found.perplexity == pytest.approx(expected["ppl"], abs=1e-6)
    assert found.bits_per_byte == pytest.approx(found.nll / 4095 / math.log(2))


def test_makemore_names() -> None:
    """Some thousand names with their beginning and end; all of them by the command, in the slow run."""
    engine = load_fp32(shared("models", "makemore_names_lmj9", "hf"))
    expected = json.loads(shared("models", "makemore_names_lmj9", "expected.json").read_text())
    names = shared("models", "makemore_names_lmj9", "source", "names.txt").read_text().split()[:3000]
    found: dict[str, float] = {}
    options = WindowOptions.of(16, 17)
    texts = (w for name in names for w in windows(name, [[0, *engine.encode(name), 0]], options))
    for group in Scorer(engine).groups(texts, whole_texts=True):
        for part in group:
            found[part.window.tag] = part.totals.nll
    for name, nll in expected["per_name_nll"].items():
        assert found[name] == pytest.approx(nll, abs=1e-4)
    assert len(found) == len(set(names))


def test_sums_do_not_depend_on_batches(tiny: Engine) -> None:
    pick = random.Random(1)
    ids = [pick.randrange(257) for _ in range(700)]
    options = WindowOptions.of(64, None, 20)
    sums = []
    for batch_tokens in (1, 64, 200, 10_000):
        total = 0.0
        for group in Scorer(tiny, batch_tokens=batch_tokens).groups(windows(None, [ids], options)):
            total += math.fsum(part.totals.nll for part in group)
        sums.append(total)
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-6)


def test_words_and_bytes() -> None:
    """Words are counted where they begin in a scored token, however the text is cut into windows."""
    engine = load_fp32(resolve(None).directory)
    text = "  One  upon a time,\n\n there was\ta Überraschung — and it's gone. "
    ids = engine.encode(text)
    units = TokenUnits(engine.tokenizer, engine.config.vocab_size, {4095})
    bos = torch.tensor([4095, *ids])
    assert units.count(bos, 1) == (len(text.split()), len(text.encode()))
    whole = torch.tensor(ids)
    for cut in range(2, len(ids)):
        first, second = units.count(whole[:cut], 1), units.count(whole, cut)
        assert tuple(a + b for a, b in zip(first, second, strict=True)) == units.count(whole, 1)


def test_choices_equal_brute_force(tiny: Engine) -> None:
    context = tiny.encode("The capital of France is")
    texts = [" Paris", " London", " a very long answer", "x"]
    followers = [tiny.encode(text) for text in texts]
    found = rank_choices(tiny, context, texts, followers, batcher=Batcher(tiny.model, 50))
    for choice in found:
        wanted = brute_force(tiny, context, followers[choice.index])
        assert choice.logprob == pytest.approx(wanted, abs=1e-4)
        assert choice.probability == pytest.approx(math.exp(wanted), rel=1e-3)
    assert [c.logprob for c in found] == sorted((c.logprob for c in found), reverse=True)
    assert math.fsum(c.share for c in found) == pytest.approx(1)
    total = math.fsum(c.probability for c in found)
    assert found[0].share == pytest.approx(found[0].probability / total)


@pytest.mark.parametrize(("normalize", "length"), [("tokens", len), ("bytes", len)])
def test_length_normalised(tiny: Engine, normalize: Any, length: Any) -> None:
    texts = ["a", "bc", "def", "é"]
    followers = [tiny.encode(text) for text in texts]
    found = rank_choices(tiny, tiny.encode("x"), texts, followers, normalize)
    for choice in found:
        # A token is a byte here.
        assert choice.score == pytest.approx(choice.logprob / len(choice.text.encode()))
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_an_exhaustive_set_sums_to_one(tmp_path: Path) -> None:
    """All first tokens, and all pairs of tokens."""
    engine = load_fp32(make_model(tmp_path, tokenizer=None, vocab_size=23))
    singles = [[n] for n in range(23)]
    pairs = [list(pair) for pair in itertools.product(range(23), repeat=2)]
    for followers in (singles, pairs):
        names = [str(f) for f in followers]
        found = rank_choices(engine, [3, 1, 4], names, followers)
        assert math.fsum(choice.probability for choice in found) == pytest.approx(1, abs=1e-5)
        for choice in found:
            assert choice.share == pytest.approx(choice.probability, abs=1e-6)


def test_choices_that_cannot_be_scored(tiny: Engine) -> None:
    with pytest.raises(UsageError):
        rank_choices(tiny, [1], ["a", ""], [[1], []])
    with pytest.raises(UsageError):
        rank_choices(tiny, [], ["a"], [[1]])
    with pytest.raises(PromptTooLong):
        rank_choices(tiny, [1] * 64, ["ab"], [[1, 2]])
    assert len(rank_choices(tiny, [1] * 64, ["a", "b"], [[1], [2]])) == 2


def test_lambada_by_hand(tiny: Engine) -> None:
    """Accuracy by greedy decoding, perplexity by brute force."""
    texts = ["The cat sat on the mat", "one two", "a\nb c", "x" * 80 + " end"]
    passages = [passage(tiny, n, text, tiny.encode) for n, text in enumerate(texts)]
    assert [p.truncated for p in passages] == [0, 0, 0, 80 + 4 - 65]
    result = LambadaResult()
    nll = last = 0.0
    for word in last_words(Batcher(tiny.model, 100), passages):
        result.add(word)
        made = word.passage
        whole = brute_force(tiny, list(made.context), list(made.target))
        before = brute_force(tiny, list(made.context), list(made.target[:-1]))
        assert word.logprob == pytest.approx(whole, abs=1e-4)
        assert word.last_token_logprob == pytest.approx(whole - before, abs=1e-4)
        nll, last = nll - whole, last - (whole - before)
    document = result.document()
    assert document["passages"] == 4 and document["truncated_passages"] == 1
    assert document["perplexity"] == pytest.approx(math.exp(nll / 4), rel=1e-3)
    assert document["last_token_perplexity"] == pytest.approx(math.exp(last / 4), rel=1e-3)


def test_lambada_is_right_where_greedy_decoding_is(tiny: Engine) -> None:
    options = tiny.options(temperature=0, max_new_tokens=3, ignore_eos=True)
    context = tiny.encode("Some words")
    drawn = tiny.generate(context, options).choices[0].token_ids
    from gpt2cli.analysis.tasks import Passage

    wrong = [drawn[0], (drawn[1] + 1) % 257, drawn[2]]
    good, bad = last_words(Batcher(tiny.model), [Passage(0, context, drawn), Passage(1, context, wrong)])
    assert good.correct and good.last_token_correct and not bad.correct


@pytest.mark.parametrize("text", ["word", " word", "", "   "])
def test_a_passage_of_one_word(tiny: Engine, text: str) -> None:
    with pytest.raises(UsageError):
        passage(tiny, "line 1", text, tiny.encode)


def test_cloze(tiny: Engine) -> None:
    record = {"choices": ["dog", "cat"], "answer": "cat"}
    cloze = read_cloze("line 1", record, "Tom had a ___ at home.")
    found = score_cloze(Batcher(tiny.model), tiny, cloze, tiny.encode)
    context = tiny.encode("Tom had a")
    for text, logprob in zip((" dog at home.", " cat at home."), found.logprobs, strict=True):
        assert logprob == pytest.approx(brute_force(tiny, context, tiny.encode(text)), abs=1e-4)
    assert found.correct == (found.logprobs[1] > found.logprobs[0])
    assert read_cloze("", {"choices": ["a", "b"], "answer": 1}, "XXXXX c").answer == 1


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({}, "a ___ b"),
        ({"choices": ["a"]}, "a ___ b"),
        ({"choices": ["a", 2]}, "a ___ b"),
        ({"choices": ["a", "b"]}, "a b"),
        ({"choices": ["a", "b"]}, "a ___ ___ b"),
        ({"choices": ["a", "b"], "answer": "c"}, "a ___ b"),
        ({"choices": ["a", "b"], "answer": 2}, "a ___ b"),
        ({"choices": ["a", "b"], "answer": True}, "a ___ b"),
    ],
)
def test_cloze_records_that_are_wrong(record: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError):
        read_cloze("line 1", record, text)


def test_surprisal_is_bounded_and_goes_on() -> None:
    """A plot of any length has at most 512 points, and a state makes an equal one."""
    pick = random.Random(7)
    logprobs = torch.tensor([-pick.expovariate(0.5) for _ in range(5000)])
    whole, again = Surprisal(), Surprisal()
    whole.add(1, logprobs)
    for at in range(0, 5000, 333):
        again.add(1 + at, logprobs[at : at + 333])
        again = Surprisal(json.loads(json.dumps(again.state())))
    assert sum(whole.by_place(), ()) == pytest.approx(sum(again.by_place(), ()))
    assert whole.distribution() == again.distribution()
    assert PLACES / 2 < len(whole.by_place()) <= PLACES
    assert math.fsum(share for _, share in whole.distribution()) == pytest.approx(1)
    first = whole.by_place()[1]
    stretch = whole.stretch
    mean = math.exp(float(logprobs[stretch - 1 : 2 * stretch - 1].double().mean()))
    assert first[1] == pytest.approx(mean)


def test_one_token_and_none(tiny: Engine) -> None:
    for ids in ([], [5]):
        found = score_text(tiny, ids)
        assert found.tokens == 0 and found.perplexity is None and found.bits_per_byte is None
