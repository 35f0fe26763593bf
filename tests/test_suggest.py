"""What the model sees of a text, and drawing in a thread that a key can stop."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from chats import conversation
from hypothesis import given
from hypothesis import strategies as st
from support import load_fp32, make_model

from gpt2cli.suggest.drawing import PIECE, Drawing, draw, greedy, read_ahead
from gpt2cli.suggest.ghost import Ghost
from gpt2cli.suggest.window import TextWindow, next_word, whole_words, without_last_space
from gpt2cli.suggest.worker import Wanted, Worker


def always() -> bool:
    return True


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_fp32(make_model(tmp_path_factory.mktemp("model") / "m", n_positions=512, n_layer=1))


def by_words(text: str) -> list[int]:
    return [len(word) for word in text.split(" ")] if text else [0]


def test_a_window_is_the_end_and_keeps_its_place() -> None:
    """It begins at the same place while the text grows, and moves by a quarter when it is full."""
    window, starts = TextWindow(by_words, 100), []
    text = ""
    for number in range(1000):
        text += f"word{number} "
        seen = window.see(text.rstrip())
        assert len(seen.ids) <= 100
        assert by_words(text.rstrip()[seen.dropped :]) == seen.ids
        starts.append(seen.dropped)
    assert starts[:100] == [0] * 100
    moves = sum(one != other for one, other in itertools.pairwise(starts))
    assert 25 <= moves <= 50, "some forty tokens at a time"
    inserted = "new words at the beginning " + text.rstrip()
    assert window.see(inserted).dropped == starts[-1] + 27, "what is written above it moves it"
    assert window.see("short").dropped == 0


@given(st.text(alphabet="ab \n日", max_size=60), st.integers(1, 9))
def test_a_window_never_has_more_than_fits(text: str, limit: int) -> None:
    window = TextWindow(lambda part: [ord(char) for char in part] or [0], limit)
    for end in range(0, len(text), 7):
        seen = window.see(text[:end])
        assert 0 < len(seen.ids) <= limit
        assert "".join(map(chr, seen.ids)) in (text[:end][-len(seen.ids) :], "\0")


def test_the_end_of_a_text() -> None:
    assert without_last_space("a dog ") == ("a dog", True)
    assert without_last_space("a  ") == ("a ", True)
    assert without_last_space("a\n") == ("a\n", False)
    assert whole_words("once upon a ti") == "once upon a"
    assert whole_words("once upon a ") == "once upon"
    assert whole_words("one") == "" == whole_words("")
    assert (
        next_word(" was a dog") == " was" and next_word("日本語") == "日" and next_word("\n\nA b") == "\n\nA"
    )


def test_three_texts_of_one_reading_and_then_only_what_is_new(engine: Any) -> None:
    """The cache holds the prompt behind a batch, too; a suggestion is what `generate` gives for its seed."""
    ids = [*range(40, 240), 7]
    options = engine.options(seed=5, max_new_tokens=6, num_return_sequences=3)
    first, second = Drawing(wanted=3), Drawing(wanted=3)
    draw(engine, ids, options, first, always)
    assert first.cached_tokens >= len(ids) - PIECE and first.done
    draw(engine, [*ids, 9], options, second, always)
    assert second.cached_tokens == len(ids)
    alone = engine.generate([*ids, 9], engine.options(seed=6, max_new_tokens=6))
    assert second.suggestions[1].seed == 6
    assert alone.text.replace("\ufffd", "").rstrip().startswith(second.suggestions[1].text[:1])


def test_reading_ahead_stops_at_a_piece(engine: Any) -> None:
    ids = [n % 250 for n in range(400)]
    asked = 0

    def twice() -> bool:
        nonlocal asked
        asked += 1
        return asked <= 2

    read_ahead(engine, ids, twice)
    assert engine.known_prefix(ids) == 2 * PIECE
    read_ahead(engine, ids, always, to_the_end=True)
    assert engine.known_prefix(ids) == len(ids)
    assert greedy(engine).greedy and greedy(engine).stop == ("\n",)


def test_a_drawing_ends_at_the_next_step(engine: Any) -> None:
    drawing, steps = Drawing(), 0

    def wanted() -> bool:
        nonlocal steps
        steps += 1
        return steps < 8

    draw(engine, [1, 2, 3], engine.options(seed=1, max_new_tokens=200, ignore_eos=True), drawing, wanted)
    assert drawing.done and steps == 8


def test_after_a_space_only_what_begins_with_one_fits() -> None:
    class Words:
        """An engine that says what it is told to."""

        def known_prefix(self, ids: Any) -> int:
            return len(ids)

        def options(self, **given: Any) -> Any:
            from gpt2cli.options import GenerateOptions

            return GenerateOptions(**given)

        def stream(self, ids: Any, options: Any) -> Any:
            from gpt2cli.core.results import Chunk

            for number, text in enumerate([" dog", "s", "\n", " a\x1b[2Jb\ufffdc", ""]):
                yield Chunk(number, text, token=1)
                yield Chunk(number, " end ", finish_reason="eos")

    engine: Any = Words()
    drawing = Drawing(wanted=3)
    options = engine.options(seed=1, num_return_sequences=5)
    draw(engine, [1], options, drawing, always, after_space=True)
    assert [each.text for each in drawing.shown] == ["dog end", "\n end", "a[2Jb"]


def test_a_worker_runs_the_last_job_only_and_pause_waits() -> None:
    worker, ran, begun, go = Worker(), [], threading.Event(), threading.Event()

    def first(wanted: Wanted) -> None:
        begun.set()
        go.wait(10)
        ran.append(("first", wanted()))

    worker.do(first)
    begun.wait(10)
    worker.do(lambda wanted: ran.append(("second", wanted())))
    worker.do(lambda wanted: ran.append(("third", wanted())))
    go.set()
    end = time.monotonic() + 10
    while len(ran) < 2 and time.monotonic() < end:
        time.sleep(0.005)
    assert ran == [("first", False), ("third", True)]

    slow = threading.Event()

    def until_unwanted(wanted: Wanted) -> None:
        slow.set()
        while wanted():
            time.sleep(0.002)
        ran.append("ended")

    worker.do(until_unwanted)
    slow.wait(10)
    worker.pause()
    assert ran[-1] == "ended"
    worker.close()
    worker.do(first)


def test_ghost_text_is_typed_along(engine: Any) -> None:
    worker = Worker()
    ghost = Ghost(worker, lambda text: (engine, engine.encode(text)), lambda: None)
    ghost._shown = ("The dog", " was here")
    assert ghost.behind("The dog") == " was here" and ghost.behind("The dog wa") == "s here"
    assert ghost.behind("The dog wx") == "" == ghost.behind("The do")
    ghost.drop()
    assert ghost.behind("The dog") == ""
    ghost.ask("ab")
    end = time.monotonic() + 20
    while worker._running or worker._job:
        assert time.monotonic() < end
        time.sleep(0.005)
    worker.close()


@pytest.mark.parametrize("format", ["story", "transcript", "dialogpt", "raw"])
def test_what_the_model_sees_of_a_message_that_is_typed(engine: Any, format: str) -> None:
    """The beginning of the context that the whole message will have."""
    chat = conversation(engine, format)
    list(chat.answer("First words"))
    typed = engine.tokenizer.decode(chat.typed("Then a"))
    whole = chat.context("Then a dog").text
    assert typed.endswith("Then a") and whole.startswith(typed)


def test_the_template_of_a_message_that_is_typed(tmp_path: Path) -> None:
    from chats import chat_model

    chat = conversation(load_fp32(chat_model(tmp_path / "m")), "template")
    typed = chat.engine.tokenizer.decode(chat.typed("Then a"))
    assert typed.endswith("Then a") and "user" in typed and "assistant" not in typed
