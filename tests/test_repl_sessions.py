"""Session and history files: what is written is there, whatever happens."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from chats import chat_model, conversation, say
from hypothesis import given
from hypothesis import strategies as st
from support import REPOSITORY

from gpt2cli import paths
from gpt2cli.core.engine import Engine
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.options import GenerateOptions
from gpt2cli.repl import history as history_module
from gpt2cli.repl.export import export, kind_of_file
from gpt2cli.repl.formats import FORMATS
from gpt2cli.repl.history import History
from gpt2cli.repl.jsonl_log import locked
from gpt2cli.repl.sessions import Session, last_session, list_sessions, parse_session, sessions_dir


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(chat_model(tmp_path_factory.mktemp("chat") / "m", n_positions=128))


def events(name: str) -> list[dict[str, Any]]:
    lines = (sessions_dir() / f"{name}.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def resumed(engine: Engine, name: str, **keywords: Any) -> Any:
    session, saved = Session.open(name)
    keywords = {"system": saved.system, "given": saved.options, "seed": saved.seed, **keywords}
    return conversation(engine, saved.format, session=session, saved=saved, **keywords)


def busy(chat: Any) -> None:
    """Use everything that leaves a trace."""
    for number in range(6):
        say(chat, f"turn {number}")
    chat.set_option("top_k", "5")
    list(chat.regenerate(temperature=1.3))
    chat.undo()
    chat.undo()
    chat.redo()
    list(chat.branch(3))
    chat.take(1)
    list(chat.continue_answer())
    say(chat, "ends\u2028 \ud800 \x1b[31m", stop=("a", "b"))
    chat.set_seed(99)
    say(chat, "more")
    chat.go(3)
    say(chat, "another way")


@pytest.mark.parametrize("format", FORMATS)
def test_a_resumed_session_is_the_one_that_was_left(engine: Engine, format: str) -> None:
    chat = conversation(engine, format, session=Session("mine"), system="Stay.")
    busy(chat)
    tree, context = list(chat.tree), chat.context("next").ids
    chat.close()
    again = resumed(engine, "mine")
    assert list(again.tree) == tree
    assert again.tree.current.id == chat.tree.current.id
    assert again.context("next").ids == context
    assert (again.seed, again.options, again.format.name, again.system) == (99, chat.options, format, "Stay.")
    answer = say(chat, "next").answer
    assert say(again, "next").answer == answer
    again.close()


@pytest.mark.parametrize("format", FORMATS)
def test_a_session_can_be_drawn_again_from_its_file(engine: Engine, format: str) -> None:
    """Text, seeds and options are enough: every turn comes out the same."""
    chat = conversation(engine, format, session=Session("mine"), system="Stay.")
    busy(chat)
    chat.close()
    again = resumed(Engine.load(engine.checkpoint.directory), "mine")
    drawn = 0
    for turn in list(again.tree):
        before = None if turn.parent is None else again.tree[turn.parent]
        options = GenerateOptions(
            **{**turn.options, "stop": tuple(turn.options.get("stop", ())), "seed": turn.seed}
        )
        if turn.continues is not None:
            continue
        context = again._contexts.fit(again.tree, before, turn.user, options.max_new_tokens or 0)
        text = again.engine.generate(context.ids, options).text
        assert (text.strip() if again.format.strips else text) == turn.answer
        drawn += 1
    assert drawn >= 12
    again.close()


def test_files_are_the_owners_alone_and_safe_to_show(engine: Engine) -> None:
    os.umask(0)
    chat = conversation(engine, session=Session("mine"))
    say(chat, "\x1b]52;c;AAAA\x07 \u202e \x9b31m")
    History().append("\x1b[31m \u202e")
    for path in (chat.session.path, History().path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes().isascii()
        assert not any(byte < 32 and byte != 10 for byte in path.read_bytes())
    assert stat.S_IMODE(sessions_dir().stat().st_mode) == 0o700
    chat.close()


def test_nothing_is_written_before_the_first_turn(engine: Engine) -> None:
    chat = conversation(engine, session=Session())
    chat.set_option("top_k", "3")
    chat.set_system("Hm.")
    chat.undo()
    assert list_sessions() == [] and chat.session.name is None
    say(chat, "one")
    assert events(chat.session.name)[0]["system"] == "Hm."
    chat.close()


def test_names(engine: Engine) -> None:
    chat = conversation(engine, session=Session())
    say(chat, "first words")
    given = chat.session.name
    chat.save("story")
    assert [info.name for info in list_sessions()] == ["story"] and given != "story"
    say(chat, "one")
    other = conversation(engine)
    say(other, "two")
    for name in ("story", "../x", "", ".x", "a/b", "x" * 65, "a\nb"):
        with pytest.raises(UsageError):
            other.save(name)
    other.save("other")
    say(other, "three")
    assert {info.name: info.title for info in list_sessions()} == {"story": "first words", "other": "two"}
    with pytest.raises(UsageError):
        other.save("story")
    with pytest.raises(UsageError):
        Session("story")
    os.utime(sessions_dir() / "story.jsonl", (time.time() + 10,) * 2)
    assert last_session() == "story"
    chat.close()
    other.load("story")
    assert [turn.user for turn in other.tree] == ["first words", "one"]
    with pytest.raises(UsageError):
        other.load("story")
    with pytest.raises(UsageError):
        other.load("none")
    assert len(events("other")) == 4
    assert say(other, "four").parent == 2
    other.close()


def test_two_programs_never_share_a_file(engine: Engine) -> None:
    chat = conversation(engine, session=Session("mine"))
    say(chat, "one")
    with pytest.raises(UsageError, match="open in another"):
        Session.open("mine")
    chat.save("renamed")
    with pytest.raises(UsageError, match="open in another"):
        Session.open("renamed")
    chat.close()
    session, saved = Session.open("renamed")
    assert len(saved.tree) == 1
    session.close()


def test_changes_at_resuming_are_noted(engine: Engine) -> None:
    chat = conversation(engine, session=Session("mine"))
    say(chat, "one")
    chat.close()
    said: list[str] = []
    again = resumed(
        engine, "mine", model="other", system="New.", given={"top_k": 2}, seed=5, warn=said.append
    )
    again.close()
    assert len(said) == 1 and "other" in said[0]
    assert [event["event"] for event in events("mine")[2:]] == ["model", "system", "options", "seed"]
    _, saved = Session.open("mine")
    assert (saved.model, saved.system, saved.options, saved.seed) == ("other", "New.", {"top_k": 2}, 5)


HEADER = {
    "event": "session",
    "version": 1,
    "model": "m",
    "revision": None,
    "format": "raw",
    "system": "",
    "options": {},
    "seed": 1,
}
TURN = {
    "event": "turn",
    "id": 1,
    "parent": None,
    "user": "u",
    "answer": "a",
    "ids": [1],
    "seed": 1,
    "draw": 0,
    "options": {},
    "finish": "length",
    "first": 1,
    "continues": None,
}


def file_of(*lines: Any) -> bytes:
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


@pytest.mark.parametrize(
    "damage",
    [
        b'{"event":"turn","id":2,"par',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"5",
        {**TURN, "id": 2, "user": 5},
        {**TURN, "id": 2, "ids": ["x"]},
        {**TURN, "id": 2, "ids": [2**40]},
        {**TURN, "id": 2, "ids": None},
        {**TURN, "id": 2, "seed": -1},
        {**TURN, "id": 2, "options": {"temperature": -1}},
        {**TURN, "id": 2, "options": {"poem": 1}},
        {**TURN, "id": True},
        {**TURN},
        {"event": "turn"},
        {"event": "move", "to": 77},
        {"event": "move"},
        {"event": "options", "options": {"top_k": "x"}},
        {"event": "format", "format": "poem"},
        {"event": "format", "format": []},
        {"event": "model", "model": 3, "format": "raw"},
        {"event": "unheard-of"},
        {"event": ["turn"]},
    ],
    ids=str,
)
def test_damaged_lines_are_skipped(damage: Any) -> None:
    saved = parse_session(file_of(HEADER, TURN, damage, {**TURN, "id": 3, "parent": 1}), "x")
    assert saved.damaged == 1
    assert [turn.id for turn in saved.tree.path()] == [1, 3]
    assert (saved.format, saved.options, saved.seed) == ("raw", {}, 1)


def test_a_turn_whose_parent_is_lost_stands_under_the_one_before() -> None:
    lines = [HEADER, TURN, b"{lost", {**TURN, "id": 3, "parent": 2}, {**TURN, "id": 4, "parent": 3}]
    saved = parse_session(file_of(*lines), "x")
    assert saved.damaged == 2 and [turn.id for turn in saved.tree.path()] == [1, 3, 4]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a session"),
        (b"\n\n", "not a session"),
        (b"{}", "not a session"),
        (file_of(TURN), "not a session"),
        (file_of({**HEADER, "version": 2}), "newer"),
        (file_of({**HEADER, "version": "1"}), "newer"),
    ],
)
def test_what_is_no_session_is_refused(data: bytes, message: str) -> None:
    sessions_dir().mkdir(parents=True)
    (sessions_dir() / "x.jsonl").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        Session.open("x")
    (sessions_dir() / "y.jsonl").mkdir()
    with pytest.raises(UsageError):
        Session.open("y")
    if message == "not a session":
        assert list_sessions() == []


@given(st.data())
def test_no_bytes_break_the_reader(data: st.DataObject) -> None:
    """Whatever is done to a file, it is read or refused."""
    whole = bytearray(file_of(HEADER, TURN, {**TURN, "id": 2, "parent": 1}, {"event": "move", "to": 1}))
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        saved = parse_session(bytes(whole), "x")
    except UsageError:
        return
    assert len(saved.tree) <= 4


def test_a_full_disk_warns_once_and_the_chat_goes_on(engine: Engine) -> None:
    said: list[str] = []
    chat = conversation(engine, session=Session("mine"), warn=said.append)
    say(chat, "one")
    size = chat.session.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # The kernel takes 30 bytes more, and then nothing.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, before[1]))
        for number in range(3):
            say(chat, f"lost {number}")
        typed = History(warn=said.append)
        typed.append("x" * 3000)
        typed.append("y" * 3000)
        assert chat.session.path.stat().st_size == size, "nothing torn is left behind"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(said) == 2 and "cannot be saved" in said[0] and "not kept" in said[1]
    say(chat, "later")
    assert [event.get("user") for event in events("mine")[1:]] == [
        "one",
        "lost 0",
        "lost 1",
        "lost 2",
        "later",
    ]
    chat.close()


def test_a_state_directory_that_cannot_be_written(engine: Engine) -> None:
    """Tests may run as root: a file stands where the folder should be."""
    paths.state_dir().parent.mkdir(parents=True)
    paths.state_dir().write_text("")
    said: list[str] = []
    chat = conversation(engine, session=Session(), warn=said.append)
    say(chat, "one")
    say(chat, "two")
    History(warn=said.append).append("x")
    assert len(said) == 2
    assert list_sessions() == [] and History().load() == []
    chat.close()


def test_a_session_has_a_size_limit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2cli.repl.sessions.MAX_BYTES", 2000)
    said: list[str] = []
    chat = conversation(engine, session=Session("mine"), warn=said.append)
    for number in range(20):
        say(chat, f"turn {number}")
    assert len(said) == 1 and "grown" in said[0]
    assert chat.session.path.stat().st_size <= 2000
    chat.close()


def test_history(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = History()
    assert typed.load() == []
    for text in ("one", "two\nlines", "", "  ", "ü\ud800", "x" * (history_module.MAX_ENTRY + 1)):
        typed.append(text)
    assert History().load() == ["one", "two\nlines", "ü\ud800"]
    with typed.path.open("ab") as file:
        file.write(b'{"no": "text"}\n5\n"torn')
    typed.append("after")
    assert typed.load() == ["one", "two\nlines", "ü\ud800", "after"]
    monkeypatch.setattr(history_module, "MAX_BYTES", 3000)
    for number in range(2000):
        typed.append(f"entry {number}")
        assert typed.path.stat().st_size <= 3000
    kept = typed.load()
    assert kept == [f"entry {number}" for number in range(2000 - len(kept), 2000)] and len(kept) > 50
    assert stat.S_IMODE(typed.path.stat().st_mode) == 0o600
    assert [path.name for path in typed.path.parent.iterdir()] == ["history.jsonl"]


def test_a_history_that_is_shortened_under_others(tmp_path: Path) -> None:
    """While one process puts a shorter file in its place, the others must not write to the old one."""
    code = (
        "import sys; from gpt2cli.repl import history; history.MAX_BYTES = 20000;"
        "typed = history.History();"
        "[typed.append(f'{sys.argv[1]} {n}') for n in range(1500)]"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abc"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    kept = History().load()
    assert len(kept) > 400
    for name in "abc":
        numbers = [int(text.split()[1]) for text in kept if text.startswith(name)]
        assert numbers == list(range(1500 - len(numbers), 1500)), "the newest, and none is missing"


WRITER = """
import sys, time
from gpt2cli.repl.history import History
from gpt2cli.repl.jsonl_log import locked
from gpt2cli.repl.sessions import Session, turn_event
from gpt2cli.repl.tree import Tree, Turn
name, last = sys.argv[1], int(sys.argv[2])
try:
    session, saved = Session.open(name)
    tree = saved.tree
except Exception as error:
    if "there is no session" not in str(error):
        raise
    session, tree = Session(name), Tree()
typed = History()
while len(tree) < last:
    number = len(tree)
    text = f"{name} {number} " + "ü" * (number % 300)
    typed.append(text)
    time.sleep(0.0005)
    print("typed", number, flush=True)
    parent = tree.current.id if tree.current else None
    turn = Turn(id=number + 1, parent=parent, user=text, answer="a" * (number % 500),
                answer_ids=range(number % 500), seed=number)
    session.write({"model": "m", "revision": None, "format": "raw", "system": "", "options": {}, "seed": 1},
                  turn_event(tree.add(turn)))
    assert session.error is None, session.error
    print("turn", number, flush=True)
"""


@pytest.mark.slow
def test_two_sessions_at_once_and_twenty_kills() -> None:
    """1,000 turns each, kill -9 at any moment: what was done is there, and nothing is torn or twice."""
    typed: dict[str, set[int]] = {"left": set(), "right": set()}
    torn = [0]

    def run(name: str, chance: random.Random) -> None:
        kills, turns = 10, -1
        while turns < 999:
            last = min(1000, turns + 60) if kills else 1000
            command = [sys.executable, "-c", WRITER, name, str(last)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
                target = turns + chance.randint(5, 40)
                assert process.stdout is not None
                for line in process.stdout:
                    kind, _, number = line.partition(" ")
                    if not number.endswith("\n"):
                        continue  # The kill tore it.
                    if kind == "typed":
                        typed[name].add(int(number))
                    else:
                        turns = int(number)
                    if kills and turns >= target:
                        time.sleep(chance.random() * 0.002)
                        process.kill()
                        target = 10**9
            assert process.returncode in (0, -signal.SIGKILL)
            kills -= process.returncode != 0
            session, saved = Session.open(name)
            session.close()
            torn[0] += saved.damaged
            path = saved.tree.path()
            # Every turn that was done is there when the next process starts.
            assert len(path) == len(saved.tree) >= turns + 1
            assert [turn.user.split()[1] for turn in path] == [str(n) for n in range(len(path))]
        assert kills == 0

    threads = [threading.Thread(target=run, args=(name, random.Random(name))) for name in typed]
    failures: list[Any] = []
    threading.excepthook, previous = failures.append, threading.excepthook
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = previous
    assert not failures, failures
    kept = History().load()
    for name in typed:
        assert {int(text.split()[1]) for text in kept if text.startswith(name)} >= typed[name]
        _, saved = Session.open(name)
        assert len(saved.tree) == 1000
    assert torn[0] <= 20, "at most the line that was being written"


def test_export(engine: Engine) -> None:
    chat = conversation(engine, "transcript", session=Session("mine"), system="A *talk*.")
    say(chat, "# Hello\n> you_")
    say(chat, "two")
    list(chat.regenerate())
    document = json.loads(export(chat, "json"))
    assert document["path"] == [1, 3] and [turn["id"] for turn in document["turns"]] == [1, 2, 3]
    assert document["seed"] == 7 and document["options"] == {"max_new_tokens": 8}
    text = export(chat, "text")
    first, _, other = list(chat.tree)
    said = ["A *talk*.", "User: # Hello\n> you_", f"Assistant: {first.answer}", "User: two"]
    assert text == "\n\n".join([*said, f"Assistant: {other.answer}"]) + "\n"
    markdown = export(chat, "markdown")
    assert "# mine" in markdown and "A \\*talk\\*." in markdown and "> \\# Hello\n> \\> you\\_" in markdown
    chat.set_format("story")
    story = f"A *talk*. # Hello\n> you_{first.answer} two{other.answer}\n"
    assert export(chat, "text") == story
    with pytest.raises(UsageError):
        export(chat, "pdf")
    assert [kind_of_file(n) for n in ("a.md", "a.json", "a.txt", "a")] == ["markdown", "json", "text", "text"]
    chat.close()


def test_reading_what_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2cli.repl.sessions.MAX_BYTES", 100)
    sessions_dir().mkdir(parents=True)
    (sessions_dir() / "x.jsonl").write_bytes(file_of(HEADER, *[TURN] * 5))
    with pytest.raises(Gpt2cliError, match="larger"):
        Session.open("x")


def test_what_the_block_raises_leaves_the_lock(tmp_path: Path) -> None:
    """A FileNotFoundError of the block was taken for one of the lock, and the block entered twice."""
    path, entered = tmp_path / "history", []
    with pytest.raises(FileNotFoundError, match="of the block"), locked(path) as descriptor:
        entered.append(descriptor)
        raise FileNotFoundError("of the block")
    assert len(entered) == 1
    with pytest.raises(OSError):
        os.fstat(entered[0])
    with locked(path):
        pass
