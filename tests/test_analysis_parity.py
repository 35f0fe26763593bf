"""Scores and features are those of transformers, over random tiny models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support import load_fp32, some_slow
from test_parity import ALL_CASES, CONTEXT, Pair, _ids, _write

from gpt2cli.analysis.features import FeatureOptions, extract, extract_batch
from gpt2cli.analysis.logprobs import score_ids, score_rows
from gpt2cli.analysis.score import score_text
from gpt2cli.analysis.windows import WindowOptions

LOGPROB_TOLERANCE = 1e-4
STATE_TOLERANCE = 1e-4
ATTENTION_TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=some_slow(ALL_CASES[:110], 30), ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory: Path = tmp_path_factory.mktemp("analysis")
    theirs = _write(request.param, directory)
    theirs.set_attn_implementation("eager")
    return Pair(request.param, load_fp32(directory), theirs)


def test_log_probabilities(pair: Pair) -> None:
    """Each token's, its rank, the entropy and the alternatives, of a text that fills the context."""
    vocab = pair.ours.config.vocab_size
    ids = _ids(pair.pick, vocab, CONTEXT)
    with torch.inference_mode():
        wanted = pair.theirs(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
    found = score_ids(pair.ours.model, ids, top=4)
    assert [score.token for score in found] == ids[1:]
    for score, row in zip(found, wanted, strict=True):
        assert abs(score.logprob - float(row[score.token])) <= LOGPROB_TOLERANCE
        assert abs(score.entropy + float((row.exp() * row).sum())) <= 1e-3
        # Near ties may fall either way.
        low = int((row > row[score.token] + LOGPROB_TOLERANCE).sum()) + 1
        high = int((row > row[score.token] - LOGPROB_TOLERANCE).sum()) + 1
        assert low <= score.rank <= high
        best = row.topk(min(4, vocab)).values
        for (token, logprob), other in zip(score.top, best.tolist(), strict=True):
            assert abs(logprob - other) <= LOGPROB_TOLERANCE
            assert abs(logprob - float(row[token])) <= LOGPROB_TOLERANCE


def test_texts_of_unequal_length_in_one_batch(pair: Pair) -> None:
    """Padding must not leak into another row's scores, and only what is asked for is scored."""
    pick, vocab = pair.pick, pair.ours.config.vocab_size
    rows = [_ids(pick, vocab, pick.randint(2, CONTEXT + 1)) for _ in range(5)]
    firsts = [pick.randint(1, len(row) - 1) for row in rows]
    for row, first, scores in zip(rows, firsts, score_rows(pair.ours.model, rows, firsts), strict=True):
        with torch.inference_mode():
            wanted = pair.theirs(torch.tensor([row[:-1]])).logits[0].log_softmax(dim=-1)
        assert scores.tokens.tolist() == row[first:]
        expected = wanted[range(first - 1, len(row) - 1), row[first:]]
        torch.testing.assert_close(scores.logprobs, expected, rtol=0, atol=LOGPROB_TOLERANCE)


def test_the_guides_loop(pair: Pair) -> None:
    """Perplexity by sliding windows is what the Hugging Face guide's loop prints."""
    ids = _ids(pair.pick, pair.ours.config.vocab_size, pair.pick.randint(2, 3 * CONTEXT))
    for stride in (7, CONTEXT // 2, CONTEXT):
        total, count = guide(pair.theirs, ids, CONTEXT, stride)
        found = score_text(pair.ours, ids, WindowOptions.of(CONTEXT, None, stride))
        assert found.guide_tokens == count
        if count:
            assert found.guide_nll == pytest.approx(total, rel=1e-4, abs=1e-4)


def guide(model: torch.nn.Module, ids: list[int], max_length: int, stride: int) -> tuple[float, int]:
    """The loop of docs/source/en/perplexity.md: the sum of nll, and the number of tokens it divides by."""
    encodings = torch.tensor([ids])
    seq_len = encodings.shape[1]
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - prev_end_loc
        input_ids = encodings[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        with torch.no_grad():
            loss = model(input_ids, labels=target_ids).loss
        num_loss_tokens = int((target_ids != -100).sum()) - 1
        # A window of one token has no label, and a mean of nothing: the guide would print nan.
        nll_sum += 0.0 if math.isnan(float(loss)) else float(loss) * num_loss_tokens
        n_tokens += num_loss_tokens
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    return nll_sum, n_tokens


def test_features(pair: Pair) -> None:
    """Hidden states of all layers and attention of all blocks, alone and beside texts of other lengths."""
    pick, config = pair.pick, pair.ours.config
    rows = [_ids(pick, config.vocab_size, pick.randint(1, CONTEXT)) for _ in range(4)]
    layers, blocks = tuple(range(config.n_layer + 1)), tuple(range(1, config.n_layer + 1))
    options = FeatureOptions(layers, attention=blocks)
    together = extract_batch(pair.ours.model, range(4), rows, options)
    for row, features in zip(rows, together, strict=True):
        with torch.inference_mode():
            theirs = pair.theirs.transformer(
                torch.tensor([row]), output_hidden_states=True, output_attentions=True
            )
        (alone,) = extract_batch(pair.ours.model, [0], [row], options)
        for found in (features, alone):
            assert found.tokens == tuple(row)
            for layer in layers:
                close(found.layers[layer], theirs.hidden_states[layer][0], STATE_TOLERANCE)
            for block in blocks:
                close(found.attention[block], theirs.attentions[block - 1][0], ATTENTION_TOLERANCE)
        close(features.layers[config.n_layer], theirs.last_hidden_state[0], STATE_TOLERANCE)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Within ``tolerance``; of numbers far from 1, relative to them, for fp32 has no more."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_pooled(pair: Pair, pool: str) -> None:
    pick, config = pair.pick, pair.ours.config
    rows = [_ids(pick, config.vocab_size, pick.randint(1, CONTEXT)) for _ in range(9)]
    layers = (0, config.n_layer)
    whole = extract(pair.ours.model, enumerate(rows), FeatureOptions(layers))
    pooled = extract(pair.ours.model, enumerate(rows), FeatureOptions(layers, pool), batch_tokens=50)  # type: ignore[arg-type]
    for number, (all_states, one) in enumerate(zip(whole, pooled, strict=True)):
        assert all_states.tag == one.tag == number
        for layer in layers:
            states = all_states.layers[layer]
            wanted = states.mean(dim=0) if pool == "mean" else states[-1]
            close(one.layers[layer], wanted, STATE_TOLERANCE)
