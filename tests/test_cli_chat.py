"""`gpt2cli chat` without a terminal, through the program."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from chats import chat_model, conversation
from cli import COMMAND, Outcome, Tty, call, run, start
from hypothesis import given
from hypothesis import strategies as st
from support import REPOSITORY, make_model, series

from gpt2cli.cli.chat_session import _chosen
from gpt2cli.core.engine import Engine
from gpt2cli.errors import Interrupted, UsageError
from gpt2cli.repl.plain import OneLine, run_plain
from gpt2cli.repl.sessions import Session, list_sessions, sessions_dir
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line
from gpt2cli.text.tokenizer import Tokenizer

SAY = ("--seed", "7", "--max-new-tokens", "12", "-q")
LINES = b"Once upon\nand\n\nthe end\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat") / "m")


def chat(model: Path, *arguments: str, stdin: bytes = LINES, **keywords: Any) -> Outcome:
    return call("chat", "-m", model, *arguments, stdin=stdin, **keywords)


def documents(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.mark.parametrize("format", ["story", "transcript", "dialogpt", "template", "raw"])
def test_a_line_in_is_a_line_out(model: Path, format: str) -> None:
    """Answer n is that of line n, whatever the model says; nothing else is on stdout."""
    plain = chat(model, *SAY, "--format", format)
    assert plain.code == 0 and plain.err == ""
    answers = [turn["answer"] for turn in documents(chat(model, *SAY, "--format", format, "--json"))]
    assert len(answers) == 4
    shown = [re.sub(r"[\r\n]+", " ", answer.strip("\r\n")) for answer in answers]
    assert plain.out.split("\n") == [*shown, ""]


@pytest.mark.slow
def test_an_answer_is_one_line(tmp_path: Path) -> None:
    """A model that says almost nothing but line breaks."""
    model = make_model(tmp_path / "m", n_positions=512)
    for seed in range(20):
        flags = ("--seed", str(seed), "--top-k", "0", "--max-new-tokens", "30", "-q")
        outcome = chat(model, *flags, stdin=b"\n\n\nab\n")
        assert outcome.out.count("\n") == 4 and "\r" not in outcome.out


@given(st.lists(st.text("ab \r\n", max_size=4), max_size=8))
def test_one_line_however_it_is_cut(chunks: list[str]) -> None:
    line = OneLine()
    assert "".join(map(line.push, chunks)) == re.sub(r"[\r\n]+", " ", "".join(chunks).strip("\r\n"))


def test_json(model: Path) -> None:
    lines = [
        b"plain words",
        json.dumps({"user": "hot", "temperature": 1.5, "seed": 3, "max_new_tokens": 4}).encode(),
        json.dumps({"user": "ends", "stop": ["a", "b"]}).encode(),
        json.dumps({"user": "as before", "stop": None, "temperature": None}).encode(),
    ]
    turns = documents(chat(model, *SAY, "--json", stdin=b"\n".join(lines)))
    assert [turn["user"] for turn in turns] == ["plain words", "hot", "ends", "as before"]
    assert [turn["seed"] for turn in turns][:3] == [7, 3, 9]
    assert turns[1]["options"] == {"temperature": 1.5, "max_new_tokens": 4}
    assert len(turns[1]["token_ids"]) <= 4
    for turn in turns:
        usage = turn["usage"]
        assert usage["cached_tokens"] + usage["prefilled_tokens"] == usage["prompt_tokens"]
        assert turn["finish_reason"] in ("length", "eos", "stop")
    assert turns[1]["usage"]["cached_tokens"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", 2),
        (b"{}", 2),
        (b'{"user": 5}', 2),
        (b'{"user": "a", "poem": 1}', 2),
        (b'{"user": "a", "ignore_eos": "false"}', 2),
        (b'{"user": "a", "temperature": -1}', 2),
        (b'{"user": "a", "temperature": "x"}', 2),
        (b'{"user": "a", "stop": 5}', 2),
        (b'{"user": "a", "seed": 1e9}', 2),
        (b"{" * 10000, 2),
        (b"x" * 600, 6),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_error_leaves_the_session_alive(model: Path, line: bytes, code: int) -> None:
    outcome = chat(model, *SAY, "--json", stdin=b"one\n" + line + b"\ntwo\n")
    assert outcome.code == code
    first, error, second = documents(outcome)
    assert error["error"]["exit_code"] == code
    assert outcome.err.startswith("error: ") and len(outcome.err.splitlines()) <= 2
    without = documents(chat(model, *SAY, "--json", stdin=b"one\ntwo\n"))
    assert [first["answer"], second["answer"]] == [turn["answer"] for turn in without]


def test_an_error_without_json_is_an_empty_answer(model: Path) -> None:
    outcome = chat(model, *SAY, stdin=b"one\n" + b"x" * 600 + b"\ntwo\n")
    assert outcome.code == 6
    first, error, second, end = outcome.out.split("\n")
    assert error == end == "" and "512" in outcome.err
    assert [first, second, end] == chat(model, *SAY, stdin=b"one\ntwo\n").out.split("\n")


def test_a_full_context_is_said(model: Path) -> None:
    lines = b"".join(b"%s %d\n" % (b"x" * 50, n) for n in range(12))
    outcome = chat(model, "--seed", "7", "--max-new-tokens", "12", stdin=lines)
    assert outcome.code == 0
    assert "the context is full: the oldest" in outcome.err
    turns = documents(chat(model, *SAY, "--json", stdin=lines))
    assert sum(turn["usage"]["dropped_turns"] for turn in turns) > 0


def test_bytes_that_are_no_text(model: Path) -> None:
    outcome = chat(
        model, "--seed", "7", "--max-new-tokens", "3", "--json", stdin=b"\xef\xbb\xbfa\xff\x00\r\nb"
    )
    assert [turn["user"] for turn in documents(outcome)] == ["a\ufffd\ufffd", "b"]
    assert "line 1 has 2 bytes" in outcome.err
    assert chat(model, *SAY, "--strict", stdin=b"a\nb\xff\n").code == 2


def test_control_characters_reach_only_a_pipe(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", n_positions=512)
    flags = ("--top-k", "0", "--max-new-tokens", "100", "-q", "--ignore-eos")
    for seed in range(50):
        raw = chat(model, *flags, "--seed", str(seed), stdin=b"ab\n")
        if "\x1b" in raw.out:
            break
    else:
        pytest.fail("no seed drew ESC")
    flags = (*flags, "--seed", str(seed))
    assert "\x1b" not in chat(model, *flags, "--sanitize", stdin=b"ab\n").out
    assert "\x1b" not in chat(model, *flags, stdin=b"ab\n", tty="out").out
    assert "\x1b" not in chat(model, *flags, "--json", stdin=b"ab\n").out


def test_sessions(model: Path) -> None:
    """Two runs over one session give what one run gives."""
    whole = chat(model, *SAY, stdin=b"one\ntwo\nthree\n").out
    assert list_sessions() == [], "a pipe leaves nothing behind"
    first = chat(model, *SAY, "--save", "mine", stdin=b"one\n").out
    second = call("chat", "--resume", "mine", "-q", stdin=b"two\n").out
    third = call("chat", "--last", "-q", stdin=b"three\n").out
    assert first + second + third == whole
    (info,) = list_sessions()
    assert (info.name, info.title, info.model) == ("mine", "one", str(model))
    _, saved = Session.open("mine")
    assert len(saved.tree) == 3 and saved.seed == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resume", "none"), "no session 'none'"),
        (("--resume",), "which session"),
        (("--resume", "mine", "--last"), "--last"),
        (("mine",), "what is 'mine'"),
        (("--save", "mine"), "already"),
        (("--save", "../x"), "not a name"),
        (("--save", "x", "--last"), "--save"),
        (("--no-save", "--last"), "--no-save"),
        (("--format", "poem"), "poem"),
        (("--greedy", "--temperature", "2"), "--greedy"),
        (("--temperature", "-1"), "temperature"),
        (("--seed", "-1"), "seed"),
    ],
    ids=str,
)
def test_wrong_usage(model: Path, arguments: tuple[str, ...], message: str) -> None:
    chat(model, *SAY, "--save", "mine", stdin=b"one\n")
    outcome = chat(model, *arguments)
    assert outcome.code == 2 and message in outcome.err and outcome.out == ""


def test_a_format_that_the_model_cannot_do(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    outcome = chat(model, "--format", "template")
    assert outcome.code == 2 and "no chat template" in outcome.err
    nameless = make_model(tmp_path / "n", tokenizer=None)
    assert chat(nameless, "--format", "story").code == 5


def test_flags_stand_over_the_session(model: Path) -> None:
    chat(model, *SAY, "--save", "mine", "--system", "Old.", "--top-k", "9", stdin=b"one\n")
    flags = ("--resume", "mine", "--system", "New.", "--top-k", "5", "--format", "raw", "--json", "-q")
    (turn,) = documents(call("chat", *flags, stdin=b"two\n", GPT2CLI_TOP_K="7", GPT2CLI_TOP_P="0.5"))
    assert turn["options"] == {"top_k": 5, "max_new_tokens": 12} and turn["seed"] == 8
    _, saved = Session.open("mine")
    assert (saved.system, saved.format, saved.options["top_k"]) == ("New.", "raw", 5)


def test_a_model_that_is_gone(model: Path, tmp_path: Path) -> None:
    """A session file does not make the program download what it names."""
    other = chat_model(tmp_path / "other")
    chat(other, *SAY, "--save", "mine", stdin=b"one\n")
    os.rename(other, tmp_path / "elsewhere")
    outcome = call("chat", "--resume", "mine", stdin=b"two\n")
    assert outcome.code == 3 and "not on this disk" in outcome.err and "-m NAME" in outcome.err
    assert call("chat", "--resume", "mine", "-m", tmp_path / "elsewhere", "-q", stdin=b"two\n").code == 0


def test_answers_come_line_by_line(model: Path) -> None:
    """Another program can hold a conversation: each answer is there before the next line is sent."""
    process = start("chat", "-m", model, *SAY)
    assert process.stdin is not None and process.stdout is not None
    answers = []
    for words in (b"Once upon\n", b"and\n", b"\n", b"the end\n"):
        process.stdin.write(words)
        line = b""
        while not line.endswith(b"\n"):
            line += process.stdout.read(1)
        answers.append(line)
    process.stdin.close()
    assert process.wait(30) == 0
    assert b"".join(answers).decode() == chat(model, *SAY).out
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def test_an_interrupt_keeps_the_answer(tmp_path: Path) -> None:
    """SIGINT in the middle of an answer: what there is, saved and printed, and exit code 130."""
    model = make_model(tmp_path / "m", n_positions=65536, n_embd=8, n_head=2, n_layer=1, eos_token_id=None)
    flags = ("--save", "mine", "-q", "--max-new-tokens", "30000", "--temperature", "0")
    process = start("chat", "-m", model, *flags)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"ab\n")
    shown = b""
    while len(shown) < 50:
        shown += process.stdout.read(50)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (shown + rest).endswith(b"\n")
    _, saved = Session.open("mine")
    (turn,) = saved.tree
    assert turn.finish_reason == "interrupted" and len(turn.answer_ids) > 15


def test_an_interrupt_while_a_turn_is_tokenised(model: Path) -> None:
    """It was lost: the answer went on to its last token."""

    class Interrupting(Tokenizer):
        def encode(self, text: str, **given: Any) -> list[int]:
            if text.endswith("now"):
                os.kill(os.getpid(), signal.SIGINT)
            return super().encode(text, **given)

    engine = Engine.load(model)
    assert engine.tokenizer is not None
    engine.tokenizer = Interrupting(engine.tokenizer._backend)
    talk = conversation(engine, given={"max_new_tokens": 300, "ignore_eos": True})
    terminal = Terminal(io.BytesIO(), io.BytesIO(), io.BytesIO(), environ=os.environ)
    with terminal.signals, pytest.raises(Interrupted):
        run_plain(terminal, talk, ["now", "never"], as_json=False, sanitize=False)
    assert talk.last is not None and talk.last.completion_tokens <= 1


def test_a_warning_stands_on_a_line_of_its_own(model: Path) -> None:
    """That the session cannot be saved is known before the answer's line has ended, and stood in it."""
    sessions_dir().parent.mkdir(parents=True, exist_ok=True)
    sessions_dir().write_text("a file where the folder should be")
    screen = Tty()
    terminal = Terminal(io.BytesIO(), screen, screen, environ={"NO_COLOR": "1"})
    engine = Engine.load(model)
    talk = conversation(engine, session=Session("mine"), warn=terminal.warn)
    assert run_plain(terminal, talk, ["words"], as_json=False, sanitize=True) == 0
    lines = screen.getvalue().decode().splitlines()
    assert talk.tree.current is not None and lines[0].strip() == one_line(talk.tree.current.answer)
    assert lines[1].startswith("warning: the session cannot be saved")


def test_the_reader_goes_away(model: Path) -> None:
    lines = b"words\n" * 500
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'"{sys.executable}" -m gpt2cli chat -m "{model}" -q | head -1; echo ${{PIPESTATUS[0]}}',
        ],
        input=lines,
        capture_output=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.stdout.endswith(b"141\n") and done.stderr == b""


def test_no_lines_no_answers(model: Path) -> None:
    outcome = chat(model, stdin=b"")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert chat(model, *SAY, stdin=b"no end of line").out.count("\n") == 1


def test_the_builtin_model_tells_a_story() -> None:
    outcome = run("chat", "--seed", "7", "--max-new-tokens", "20", stdin=b"Once upon a time\nSuddenly\n")
    assert outcome.code == 0 and len(outcome.out.splitlines()) == 2
    assert outcome.err == "seed 7\n"


@pytest.mark.slow
def test_two_programs_of_1000_turns_and_twenty_kills(model: Path) -> None:
    """Every turn whose answer was printed is in the file, each once, in order, and resuming goes on."""
    failures: list[Any] = []
    threading.excepthook, previous = failures.append, threading.excepthook
    try:
        threads = [threading.Thread(target=_killed_session, args=(model, name, 10)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = previous
    assert not failures, failures
    answers = []
    for name in ("a", "b"):
        _, saved = Session.open(name)
        assert [turn.user for turn in saved.tree.path()] == [f"turn {n}" for n in range(1000)]
        answers.append([turn.answer for turn in saved.tree.path()])
    assert answers[0] == answers[1], "the same seed and words, however often it was killed"


def _killed_session(model: Path, name: str, kills: int) -> None:
    chance, done = random.Random(name), 0
    while done < 1000:
        which = ("--save", name, "--seed", "7") if not done else ("--resume", name)
        command = [*COMMAND, "chat", "--json", "-m", str(model), "--max-new-tokens", "4", "-q", *which]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            lines = b"".join(b"turn %d\n" % n for n in range(done, 1000))
            writer = threading.Thread(target=_feed, args=(process.stdin, lines))
            writer.start()
            target = done + chance.randint(20, 95) if kills else 10**9
            for line in process.stdout:
                assert json.loads(line)["user"] == f"turn {done}"
                done += 1
                if done == target:
                    time.sleep(chance.random() * 0.01)
                    process.kill()
                    kills -= 1
            writer.join()
        session, saved = Session.open(name)
        session.close()
        assert saved.damaged <= 1 and len(saved.tree) >= done
        # The answer to the last one may not have reached us.
        done = len(saved.tree)
    assert kills == 0


def _feed(stream: Any, data: bytes) -> None:
    try:
        stream.write(data)
        stream.close()
    except OSError:
        stream.close()


LONG = """
import json, sys, time
from chats import conversation
from gpt2cli.core.engine import Engine
from gpt2cli.repl.sessions import Session
engine = Engine.load(sys.argv[1])
chat = conversation(engine, sys.argv[2], system="Stay.", session=Session("long"))
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
took, memory = [], []
for number in range(int(sys.argv[3])):
    started = time.process_time()
    for chunk in chat.answer(f"message number {number}"):
        pass
    took.append(time.process_time() - started)
    memory.append(resident())
    if number % 7 == 3:
        chat.undo()
        for chunk in chat.answer(f"message number {number}"):
            pass
json.dump({"took": took, "memory": memory, "turns": len(chat.tree)}, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "turns"),
    [("template", series(5000, 2500)), ("transcript", series(5000, 2500))],
)
def test_a_long_session_stays_as_it_was(model: Path, format: str, turns: int) -> None:
    """An eight-hour session: memory and the work of a turn do not grow with the turns before."""
    folders = [str(REPOSITORY / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(model), format, str(turns)],
        capture_output=True,
        timeout=600,
        env=environ,
        check=True,
    )
    told = json.loads(done.stdout)
    part = turns // 7
    early, late = told["took"][part : 2 * part], told["took"][-part:]
    grown = told["memory"][-1] - told["memory"][part]
    print(
        f"{format}: {turns} turns; median {statistics.median(early) * 1e3:.2f} ms early, "
        f"{statistics.median(late) * 1e3:.2f} ms late; memory grew {grown / 2**20:.1f} MiB, "
        f"{grown / (turns - part):.0f} bytes a turn"
    )
    # The text itself is kept, about a kilobyte a turn; the work is that of one context.
    assert grown < 4 * 2**20 + 2500 * turns
    assert statistics.median(late) < 2 * statistics.median(early)


def test_a_session_is_chosen_from_a_list(model: Path) -> None:
    """On a terminal ``--resume`` asks; what is in the files does not act on it."""
    for name in ("first", "second"):
        chat(model, *SAY, "--save", name, stdin=b"words of \x1b]0;x\x07" + name.encode() + b"\n")
        os.utime(sessions_dir() / f"{name}.jsonl", (1e9 + (name == "second"),) * 2)
    shown = []
    for answer in (b"2\n", b"\n", b"first\n"):
        streams = [Tty(answer), Tty(), Tty()]
        shown.append(_chosen(Terminal(*streams, environ={"TERM": "xterm"})))
        assert b"\x1b" not in streams[2].getvalue()
    assert shown == ["first", "second", "first"]
    with pytest.raises(UsageError, match="no session was chosen"):
        _chosen(Terminal(Tty(), Tty(), Tty(), environ={"TERM": "xterm"}))
