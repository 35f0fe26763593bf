"""Turns over a real engine: what is computed, what is drawn again, what is dropped."""

from __future__ import annotations

import dataclasses
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chats import FORMATS, chat_model, conversation, say
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.core.engine import Engine
from gpt2cli.errors import InvalidOption, PromptTooLong, UsageError
from gpt2cli.options import GenerateOptions
from gpt2cli.repl.context import ids_of_text
from gpt2cli.repl.turn_request import turn_seed

WORDS = ("Once upon a time", "a dog", "", "came by!", "the end")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(chat_model(tmp_path_factory.mktemp("chat") / "m"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A context of 64 tokens, soon full."""
    return Engine.load(chat_model(tmp_path_factory.mktemp("chat") / "small", n_positions=64))


@pytest.mark.parametrize("format", FORMATS)
def test_a_turn_prefills_only_what_is_new(engine: Engine, format: str) -> None:
    """A chat that prefills its whole history at each turn grows slower with every turn."""
    chat = conversation(engine, format, system="Be brief.")
    seen = []
    for words in WORDS:
        context = chat.context(words)
        turn = say(chat, words, ignore_eos=True)
        seen.append((context.ids, list(turn.answer_ids), chat.last))
        assert chat.last.prompt_tokens == len(context.ids)
        assert chat.last.cached_tokens + chat.last.prefilled_tokens == chat.last.prompt_tokens
    for (before, answer, _), (ids, _, stats) in pairwise(seen):
        known = [*before, *answer]
        assert ids[: len(known)] == known
        # All the new ones, and the last token drawn, which nothing had followed yet.
        lost = 8 - len(answer)
        assert stats.prefilled_tokens == len(ids) - len(known) + (1 if lost == 0 else 0)


@pytest.mark.parametrize("format", FORMATS)
def test_undo_and_the_same_words_give_the_same_answer(engine: Engine, format: str) -> None:
    chat = conversation(engine, format)
    turns = [say(chat, words) for words in WORDS]
    for words, turn in zip(WORDS[::-1], turns[::-1], strict=True):
        assert chat.undo() is turn
        again = say(chat, words)
        assert (again.answer, again.seed, list(again.answer_ids)) == (
            turn.answer,
            turn.seed,
            list(turn.answer_ids),
        )
        assert again.id != turn.id
        assert chat.last.prefilled_tokens == 1, "only the last token of the prompt, to have its logits"
        chat.undo()


def test_another_engine_draws_the_same_conversation(engine: Engine) -> None:
    """The seed of the session decides, not what was in the cache."""
    first = [say(chat, words).answer for chat in [conversation(engine)] for words in WORDS]
    other = Engine.load(engine.checkpoint.directory)
    assert first == [say(chat, words).answer for chat in [conversation(other)] for words in WORDS]
    different = [say(chat, words).answer for chat in [conversation(other, seed=8)] for words in WORDS]
    assert first != different


def test_the_first_answer_is_that_of_generate(engine: Engine) -> None:
    turn = say(conversation(engine, seed=11), "Once upon")
    assert turn.answer == engine.generate("Once upon", engine.options(seed=11, max_new_tokens=8)).text


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(0, 10**6))
def test_seeds_are_seeds(seed: int, depth: int, draw: int) -> None:
    GenerateOptions(seed=turn_seed(seed, depth, draw))
    assert turn_seed(seed, depth, draw) != turn_seed(seed, depth, draw + 1)
    assert turn_seed(seed, 0, 0) == seed


def test_regenerate_draws_beside(engine: Engine) -> None:
    chat = conversation(engine)
    say(chat, "one")
    first = say(chat, "two")
    answers = [first.answer]
    for _ in range(4):
        list(chat.regenerate())
        answers.append(chat.tree.current.answer)
        assert chat.last.prefilled_tokens == 1
    assert len(set(answers)) == 5
    assert [turn.draw for turn in chat.tree.siblings(first.id)] == [0, 1, 2, 3, 4]
    list(chat.regenerate(temperature=0.0))
    greedy = chat.tree.current
    assert greedy.options["temperature"] == 0
    list(chat.regenerate(temperature=0.0))
    assert chat.tree.current.answer == greedy.answer
    assert chat.options.temperature == 1, "for one draw only"


def test_branches_are_drawn_together_and_can_be_drawn_alone(engine: Engine) -> None:
    chat = conversation(engine)
    say(chat, "one")
    turn = say(chat, "two")
    list(chat.branch(4, temperature=1.3))
    assert chat.tree.current is turn and len(chat.branches) == 4
    assert chat.last.prefilled_tokens == 1
    branches = list(chat.branches)
    for branch in branches:
        list(chat.regenerate(seed=branch.seed, temperature=1.3))
        assert chat.tree.current.answer == branch.answer
    list(chat.branch(2))
    taken = chat.take(1)
    assert chat.tree.current is taken is chat.branches[1]
    with pytest.raises(UsageError):
        chat.take(2)
    before = chat.last.prompt_tokens
    context = chat.context("three").ids
    say(chat, "three")
    # What a batch has computed is gone: the answer taken is computed again.
    assert chat.last.prefilled_tokens == len(context) - before
    with pytest.raises(UsageError):
        conversation(engine).branch(2)
    with pytest.raises(InvalidOption):
        chat.branch(2, temperature=0.0)


def test_an_answer_that_was_cut_goes_on_as_if_it_had_not(engine: Engine) -> None:
    """The random numbers belong to places in the text."""
    chat = conversation(engine)
    say(chat, "one", ignore_eos=True)
    say(chat, "two", ignore_eos=True)
    list(chat.continue_answer(ignore_eos=True, max_new_tokens=12))
    longer = chat.tree.current
    assert longer.continues == 2 and longer.parent == 1
    assert chat.last.prefilled_tokens == 1
    chat.undo()
    assert say(chat, "two", ignore_eos=True, max_new_tokens=20).answer == longer.answer


def test_a_character_that_was_cut_is_made_whole(tmp_path: Path) -> None:
    """A length limit can fall inside a character's bytes."""
    engine = Engine.load(chat_model(tmp_path / "m", seed=3))
    chat = conversation(engine, given={"max_new_tokens": 1, "top_k": 0})
    for seed in range(400):
        turn = say(chat, "x", seed=seed, ignore_eos=True)
        whole = engine.generate(
            chat.context().ids[: -len(turn.answer_ids)],
            engine.options(seed=seed, max_new_tokens=4, top_k=0, ignore_eos=True),
        )
        if turn.answer == "\ufffd" and not whole.text.startswith("\ufffd"):
            list(chat.continue_answer(max_new_tokens=4, ignore_eos=True))
            assert chat.tree.current.answer == whole.text
            return
        chat.clear()
    pytest.fail("no seed drew the beginning of a character")


@pytest.mark.parametrize("end", ["interrupt", "close", "error"])
def test_what_was_generated_is_kept_however_the_stream_ends(engine: Engine, end: str) -> None:
    chat = conversation(engine, given={"max_new_tokens": 50, "ignore_eos": True})
    chunks, shown = chat.answer("Once"), ""
    for number, chunk in enumerate(chunks):
        shown += chunk.text
        if number == 5 and end == "interrupt":
            engine.interrupt()
        elif number == 5 and end == "close":
            chunks.close()
        elif number == 5:
            with pytest.raises(KeyboardInterrupt):
                chunks.throw(KeyboardInterrupt())
    turn = chat.tree.current
    assert turn.finish_reason == "interrupted"
    assert turn.answer == shown
    assert engine.tokenizer is not None and engine.tokenizer.decode(turn.answer_ids) == shown
    assert chat.last.prompt_tokens == 4
    again = say(chat, "again", max_new_tokens=3)
    assert again.parent == turn.id


def test_an_interrupt_before_the_first_token_leaves_nothing(engine: Engine) -> None:
    chat = conversation(engine)
    chunks = chat.answer("Once")
    engine.interrupt()
    assert [chunk.token for chunk in chunks if chunk.token] == []
    assert chat.tree.current is None


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_context_drops_whole_oldest_turns(engine: Engine, format: str) -> None:
    """Never half a turn, never the system text; and not at every turn, for that computes all again."""
    chat = conversation(engine, format, system="Stay.", given={"max_new_tokens": 16})
    dropping = []
    for number in range(60):
        context = chat.context(f"turn number {number}")
        assert context.text.startswith("<|im_start|>system\nStay." if format == "template" else "Stay.")
        assert len(context.ids) + 16 <= 512
        shown = [turn.id for turn in context.turns]
        assert shown == list(range(number - len(shown) + 1, number + 1))
        assert context.dropped + len(shown) == number
        say(chat, f"turn number {number}")
        assert chat.last.dropped_turns == context.newly_dropped
        if context.newly_dropped:
            dropping.append(number)
    assert dropping
    assert len(dropping) < 25
    assert all(later - earlier > 1 for earlier, later in pairwise(dropping))


def test_what_is_dropped_is_the_same_when_drawn_again(small: Engine) -> None:
    chat = conversation(small, given={"max_new_tokens": 6})
    for number in range(20):
        turn = say(chat, f"turn {number}")
        chat.undo()
        again = say(chat, f"turn {number}")
        assert again.answer == turn.answer
        alone = turn.first == turn.id
        assert again.first == (again.id if alone else turn.first)


def test_a_message_larger_than_the_context_is_refused_and_the_session_goes_on(small: Engine) -> None:
    chat = conversation(small, system="Stay.")
    say(chat, "one")
    for words in ("x" * 70, "x" * 100_000):
        with pytest.raises(PromptTooLong):
            chat.answer(words)
    assert say(chat, "two").parent == 1
    fits = say(chat, "y" * 55)
    assert fits.first == fits.id, "alone it fits"


def test_a_huge_message_is_refused_before_it_is_tokenised(small: Engine) -> None:
    chat = conversation(small)
    started = time.process_time()
    with pytest.raises(PromptTooLong, match="characters"):
        chat.answer("x" * 30_000_000)
    assert time.process_time() - started < 5


def test_an_answer_goes_on_in_the_context_that_it_had(engine: Engine) -> None:
    """Also where turns were dropped for it."""
    chat = conversation(engine, given={"max_new_tokens": 8, "ignore_eos": True})
    for number in range(200):
        turn = say(chat, f"turn number {number}")
        if chat.last.dropped_turns:
            break
    list(chat.continue_answer(max_new_tokens=12))
    longer = chat.tree.current
    assert longer.first == turn.first and chat.last.prefilled_tokens == 1
    whole = engine.generate(
        chat._contexts.fit(chat.tree, chat.tree[turn.parent], turn.user, 8).ids,
        engine.options(seed=turn.seed, max_new_tokens=20, ignore_eos=True),
    )
    # A last character that was cut in the middle was drawn again.
    assert whole.text.startswith(longer.answer.rstrip("\ufffd")) and len(longer.answer_ids) > 16


def test_an_answer_that_fills_the_context(small: Engine) -> None:
    chat = conversation(small, given={"max_new_tokens": 500, "ignore_eos": True})
    turn = say(chat, "one")
    assert turn.finish_reason == "context" and len(turn.answer_ids) == 61
    assert len(chat.context().ids) == 64
    with pytest.raises(PromptTooLong, match="the turn"):
        chat.continue_answer()
    assert say(chat, "two").first == 2


def test_a_text_that_begins_with_nothing(engine: Engine) -> None:
    """bos stands before it in every turn, and not only in the first."""
    chat = conversation(engine)
    say(chat, "", ignore_eos=True)
    assert chat.context("a").ids[:2] == [256, *chat.tree.current.answer_ids[:1]]
    say(chat, "")
    assert chat.last.prefilled_tokens == 1


def test_other_contexts_look_again_at_what_fits(small: Engine) -> None:
    chat = conversation(small, given={"max_new_tokens": 2})
    for number in range(12):
        say(chat, f"turn {number}")
    dropped = chat.context("next").dropped
    assert dropped
    chat.set_format("raw")
    assert chat.context("next").newly_dropped == chat.context("next").dropped
    chat.set_system("s" * 30)
    context = chat.context("next")
    assert context.text.startswith("s" * 30) and len(context.ids) + 2 <= 64
    assert context.dropped > dropped
    with pytest.raises(UsageError):
        chat.set_format("poem")
    assert chat.format.name == "raw"


def test_another_model_reads_the_same_conversation(engine: Engine, tmp_path: Path) -> None:
    """Its vocabulary may be another one: what was generated is then tokenised again."""
    chat = conversation(engine, "template")
    say(chat, "one")
    other = Engine.load(chat_model(tmp_path / "other", seed=5))
    (other.checkpoint.directory / "tokenizer_config.json").unlink()
    chat.want_logprobs = True
    say(chat, "more")
    assert chat.tree.current is not None and chat.tree.current.logprobs
    chat.set_model(other, "other")
    # They are of tokens of the model that was left.
    assert chat.tree.current.logprobs is None
    chat.undo()
    assert chat.format.name == "story"
    text = chat.context("two").text
    assert text == f"one{chat.tree.current.answer} two"
    builtin = Engine.load(Path(__file__).parents[1] / "gpt2cli" / "builtin")
    chat.set_model(builtin, "tiny")
    assert builtin.tokenizer is not None
    assert chat.context("two").text == text
    say(chat, "two")


def test_options(engine: Engine) -> None:
    chat = conversation(engine)
    chat.set_option("top-k", "5")
    chat.set_option("temp", "0.5")
    chat.set_option("stop", "\\n")
    assert (chat.options.top_k, chat.options.temperature, chat.options.stop) == (5, 0.5, ("\n",))
    for name, text in [("top-k", "-1"), ("top_k", "x"), ("poem", "1"), ("temperature", "nan"), ("stop", "")]:
        with pytest.raises(UsageError):
            chat.set_option(name, text)
    assert (chat.options.top_k, chat.options.temperature) == (5, 0.5)
    for name in ("top_k", "temperature", "stop"):
        chat.set_option(name, "default")
    assert chat.options.top_k == 50 and chat.options.stop == ()
    assert chat.parse_overrides(["temperature=1.2", "seed=5"]) == {"temperature": 1.2, "seed": 5}
    with pytest.raises(UsageError):
        chat.parse_overrides(["temperature"])
    with pytest.raises(UsageError):
        chat.answer("x", num_beams=3)
    chat.set_option("seed", "3")
    assert say(chat, "x").seed == 3


def test_probabilities_of_the_last_answer_only(engine: Engine) -> None:
    """They would be most of the memory of a long session."""
    chat = conversation(engine)
    chat.want_logprobs = True
    first = say(chat, "one", ignore_eos=True)
    assert [token for token, _ in first.logprobs or ()] == list(first.answer_ids)
    assert all(logprob <= 0 for _, logprob in first.logprobs or ())
    second = say(chat, "two", ignore_eos=True)
    assert second.logprobs and first.logprobs is None


def test_the_tree_is_walked(engine: Engine) -> None:
    chat = conversation(engine)
    first, second = say(chat, "one"), say(chat, "two")
    list(chat.regenerate())
    other = chat.tree.current
    assert chat.undo() is other and chat.undo() is first and chat.undo() is None
    assert chat.redo() is first and chat.redo() is other and chat.redo() is None
    assert chat.go(second.id) is second
    assert [turn.id for turn in chat.tree.path()] == [1, 2]
    chat.undo()
    assert chat.redo() is second
    with pytest.raises(UsageError):
        chat.go(99)
    chat.clear()
    assert chat.tree.current is None and len(chat.tree) == 3
    assert say(chat, "one").answer == first.answer
    assert [turn.id for turn in chat.tree.children(None)] == [1, 4]


@given(st.data())
def test_tokens_of_a_text_that_was_cut(data: st.DataObject) -> None:
    """A stop may begin in the middle of a token, a character end in the next one."""
    pieces = ["a", "ab", "b\n", "\nUs", "er:", "ü".encode()[:1], "ü".encode()[1:], "😀".encode()[:2]]

    class Pieces:
        def decode(self, ids: Any, **ignored: Any) -> str:
            raw = (pieces[i] if isinstance(pieces[i], bytes) else str(pieces[i]).encode() for i in ids)
            return b"".join(raw).decode("utf-8", "replace")

        def encode(self, text: str, **ignored: Any) -> list[Any]:
            return [("new", text)]

    ids = data.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=8))
    text = Pieces().decode(ids)
    cut = text[: data.draw(st.integers(0, len(text)))]
    found = ids_of_text(Pieces(), ids, cut)  # type: ignore[arg-type]
    kept = [i for i in found if isinstance(i, int)]
    rest = "".join(i[1] for i in found if isinstance(i, tuple))
    assert kept == ids[: len(kept)]
    assert Pieces().decode(kept) + rest == cut


def test_a_stop_inside_a_token_is_cut_out() -> None:
    """tiny has tokens such as ``,"`` that a stop cuts."""
    engine = Engine.load(Path(__file__).parents[1] / "gpt2cli" / "builtin")
    chat = conversation(engine, given={"max_new_tokens": 60})
    turn = say(chat, "Once upon a time", stop=("e",))
    assert turn.finish_reason == "stop" and "e" not in turn.answer
    assert engine.tokenizer is not None and engine.tokenizer.decode(turn.answer_ids) == turn.answer
    assert chat.context("X").text == f"Once upon a time{turn.answer} X"


def test_turns_hold_no_objects_a_token(engine: Engine) -> None:
    turn = say(conversation(engine, given={"max_new_tokens": 40}), "one", ignore_eos=True)
    assert turn.answer_ids.itemsize == 4 and dataclasses.is_dataclass(turn)
