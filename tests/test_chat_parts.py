"""The parts of the chat's screen, without a terminal: bar, pictures, commands, prompt, loader."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from cli import Tty
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.utils import get_cwidth

from gpt2cli.errors import UsageError
from gpt2cli.repl.commands.arguments import split
from gpt2cli.repl.commands.table import COMMANDS, CommandCompleter, find, run_command
from gpt2cli.repl.loader import Loader
from gpt2cli.repl.prompt import StoredHistory, is_unfinished, message_of
from gpt2cli.repl.status import Status, clipped, short_name, status_line
from gpt2cli.repl.text_layout import (
    Flow,
    TokenText,
    coloured,
    side_by_side,
    token_texts,
    tree_lines,
    with_digits,
    wrapped,
)
from gpt2cli.repl.tree import Tree, Turn
from gpt2cli.repl.view import View
from gpt2cli.terminal.streams import Terminal

WHOLE = Status("gpt2-medium", "", "story", 4294967295, 1000, 1024, 123.456)


@pytest.mark.parametrize("width", range(8, 301))
def test_bar_fits_and_keeps_what_matters(width: int) -> None:
    for name in ("gpt2-medium", "日本語の模型", "x" * 100):
        line = status_line(Status(name, "", "story", 4294967295, 1000, 1024, 123.456), width)
        assert get_cwidth(line) <= width
        assert "1000/1024" in line or width < 9
        assert "loading" in status_line(Status(name, "loading"), width)


def test_bar_tells_all_where_there_is_room() -> None:
    assert status_line(WHOLE, 80) == (
        "gpt2-medium · story · seed 4294967295 · 1000/1024 tokens · 123.5 tokens/s"
    )
    assert status_line(WHOLE, 300).endswith(" · /help")
    assert status_line(WHOLE, 20) == "gpt2-medi… 1000/1024"
    assert status_line(WHOLE, 40) == "gpt2-medium · story · 1000/1024 · 123/s"


def test_names_in_the_bar() -> None:
    assert short_name("/home/x/my-model/") == "my-model"
    assert short_name("owner/name") == "owner/name"
    assert clipped("日本語", 4) == "日…"


def turns(*edges: tuple[int, int | None]) -> Tree:
    tree = Tree()
    for number, parent in edges:
        tree.add(
            Turn(id=number, parent=parent, user=f"u{number}", answer=f"a{number}", answer_ids=[], seed=0)
        )
    return tree


def test_tree_is_indented_where_it_branches() -> None:
    tree = turns((1, None), (2, 1), (3, 2), (4, 2), (5, 4), (6, 1), (7, None))
    tree.go(5)
    assert tree_lines(tree, 80) == [
        "├─ 1  u1 → a1",
        "│  ├─ 2  u2 → a2",
        "│  │  ├─ 3  u3 → a3",
        "│  │  └─ 4  u4 → a4",
        "│  │     5* u5 → a5",
        "│  └─ 6  u6 → a6",
        "└─ 7  u7 → a7",
    ]


def test_long_conversations_stay_at_the_margin() -> None:
    """A session of thousands of turns neither recurses nor runs off the screen."""
    tree = turns(*((n, n - 1 or None) for n in range(1, 3001)))
    lines = tree_lines(tree, 20)
    assert len(lines) == 3000 and all(get_cwidth(line) <= 20 for line in lines)
    assert lines[-1].startswith("3000* u3000")


PIECES = st.lists(st.text("ab 語\n\té", max_size=12), max_size=12)


@given(PIECES, st.integers(4, 30))
def test_flow_only_turns_spaces_into_ends_of_lines(pieces: list[str], width: int) -> None:
    """And gives the same for the same pieces joined, but for words that come in parts."""
    flow = Flow()
    shown = "".join(flow.push(piece, width) for piece in pieces)
    text = "".join(pieces).replace("\t", " ")
    assert "".join(shown.split()) == "".join(text.split())
    assert shown.count("\n") >= text.count("\n")


@given(st.lists(st.text("ab語é", min_size=1, max_size=5), max_size=20), st.integers(12, 30))
def test_flow_breaks_between_words(words: list[str], width: int) -> None:
    flow = Flow()
    shown = "".join(flow.push(" " + word if at else word, width) for at, word in enumerate(words))
    assert all(get_cwidth(line) <= width for line in shown.split("\n"))
    assert shown.split() == words


@given(st.lists(st.text(max_size=80), min_size=1, max_size=5), st.integers(1, 200))
def test_texts_side_by_side_fit(texts: list[str], width: int) -> None:
    heads = [f"{n} · seed {n}" for n in range(len(texts))]
    for line in side_by_side(heads, texts, width):
        # One wide character may be wider than the terminal.
        assert get_cwidth(line) <= max(width, 2)


@given(st.text(max_size=100), st.integers(2, 50))
def test_wrapped_lines_fit(text: str, width: int) -> None:
    assert all(get_cwidth(line) <= width for line in wrapped(text, width))


TOKENS = [TokenText("Once", 0.91, (1,)), TokenText(" upon\n", 0.04, (2,)), TokenText(" 語", 0.3, (3, 4))]


def test_tokens_are_readable_without_colour() -> None:
    assert with_digits(TOKENS, 80)[:4] == ["Once upon", "9   0", " 語", "3"]
    assert with_digits(TOKENS, 6)[:2] == ["Once u", "9   0"]


def test_tokens_in_colour() -> None:
    shown = coloured(TOKENS, 80)
    assert shown.startswith("\x1b[32mOnce\x1b[0m\x1b[1;31m upon\n\x1b[0m\x1b[33m 語\x1b[0m\n")
    assert "under 5%" in shown


def test_bytes_of_one_character_are_one_token() -> None:
    """The least likely of them is shown."""
    pieces = {1: "a", 2: "", 3: "語"}
    found = token_texts([(1, 0.0), (2, -1.0), (3, -0.1), (2, -2.0)], pieces.__getitem__)
    assert [(token.text, token.ids) for token in found] == [("a", (1,)), ("語", (2, 3)), ("", (2,))]
    assert found[1].probability == pytest.approx(0.3679, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "unfinished"),
    [
        ("a", False),
        ("a\\", True),
        ("a\\\\", False),
        ('"""a', True),
        ('"""a\nb"""', False),
        ('say """', False),
        ("", False),
    ],
)
def test_what_asks_for_more_lines(text: str, unfinished: bool) -> None:
    assert is_unfinished(text) is unfinished


def test_quotes_are_no_part_of_the_message() -> None:
    assert message_of('"""\none\ntwo\n"""') == "one\ntwo"
    assert message_of('say """x"""') == 'say """x"""'
    assert message_of("//help") == "/help" and message_of("// one\n// two") == "// one\n// two"
    assert message_of("#define X \\\n 1") == "#define X \\\n 1"


def test_every_command_has_help_in_a_few_words() -> None:
    wanted = "help set show regen undo redo continue branch tree go context tokens stats model format system"
    assert {*f"{wanted} seed save load sessions export clear exit edit".split()} == {*COMMANDS}
    for command in COMMANDS.values():
        assert 0 < len(command.help) <= 22 and len(command.typed) <= 17


@pytest.mark.parametrize(
    ("typed", "nearest"), [("regne", "/regen"), ("con", "/continue"), ("exi", "/exit"), ("hlep", "/help")]
)
def test_nearest_command(typed: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(typed)
    assert f"did you mean {nearest}?" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["/etc/passwd", "//help", "/help\nmore", "help", "", "/usr/bin/x y"])
def test_these_are_messages(text: str) -> None:
    chat: Any = SimpleNamespace()
    assert run_command(chat, text) is False


def test_quotes_in_arguments() -> None:
    assert split('stop="a b" x=\\n') == ["stop=a b", "x=\\n"]
    with pytest.raises(UsageError, match="not closed"):
        split("'a")


def completions(text: str) -> list[str]:
    chat: Any = SimpleNamespace(loaded=None)
    found = CommandCompleter(chat).get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in found]


def test_completion() -> None:
    assert completions("/re") == ["regen ", "redo"]
    assert completions("/format t") == ["transcript", "template"]
    assert completions("/regen temperature=1 top_") == ["top_k=", "top_p="]
    assert completions("/set ignore_eos=") == ["ignore_eos=true", "ignore_eos=false"]
    assert completions("/branch ") == ["2", "3", "4"]
    assert completions("hello /re") == completions("/nonsense x") == completions("/a\n/b") == []
    assert completions("/go ") == []


def test_history_that_fails_is_a_warning() -> None:
    class Broken:
        def load(self) -> list[str]:
            raise OSError("no")

        def append(self, text: str) -> None:
            raise OSError("full")

    warnings: list[str] = []
    history = StoredHistory(Broken(), warnings.append)
    assert list(history.load_history_strings()) == []
    history.append_string("x")
    assert len(warnings) == 2 and history.get_strings() == ["x"]


def test_loader_hands_over_what_came_of_it() -> None:
    told = threading.Event()
    loader = Loader(lambda: 7, told.set)
    assert not loader.done
    assert loader.wait(lambda: False) and loader.result() == 7 and told.wait(5)
    assert not loader.running


def test_loader_hands_over_errors() -> None:
    def fail() -> int:
        raise UsageError("bad")

    loader = Loader(fail)
    loader.start()
    assert loader.wait(lambda: False)
    with pytest.raises(UsageError):
        loader.result()


def test_loader_need_not_be_waited_for() -> None:
    go = threading.Event()
    loader = Loader(go.wait)
    assert loader.wait(lambda: True) is False
    assert loader.running
    go.set()
    assert loader.wait(lambda: False)


def test_a_warning_does_not_stand_in_the_answers_line() -> None:
    screen = Tty()
    view = View(Terminal(io.BytesIO(), screen, screen, environ={"NO_COLOR": "1", "TERM": "dumb"}))
    view.begin()
    view.more("Once upon")
    view.warn("the disk is full")
    view.more(" a time")
    view.end()
    assert screen.getvalue() == b"Once upon\nwarning: the disk is full\n a time\n"
