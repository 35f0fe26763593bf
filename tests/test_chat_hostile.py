"""What may reach the terminal of a chat: nothing but text, whoever wrote it."""

from __future__ import annotations

import json
import re
import statistics
import termios
import threading
import time
from pathlib import Path

import pytest
from chat_screen import CTRL_C, ENTER, PASTE, PASTE_END, ChatScreen, chat
from cli import run
from support import make_model, series

HOSTILE = "a\x1b]52;c;SGk=\x07b\x1b[?1049hc\x1b[6nd\x9b31me\x90f\u202eg\u2066h\x1b]0;title\x07i\x08j"
FORBIDDEN = ("\x1b]", "\x07", "\x1b[?1049", "\x9b", "\x90", "\u202e", "\u2066", "\x1bP", "title\x07")
SHORT = ("--seed", "42", "--max-new-tokens", "8")
UP, CTRL_R, CTRL_U = "\x1b[A", "\x12", "\x15"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPT2CLI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def check(screen: ChatScreen) -> None:
    written = screen.raw.decode("utf-8", "replace")
    for forbidden in FORBIDDEN:
        assert forbidden not in written, (forbidden, screen.text)
    # The program asks where the cursor is once a prompt; a text that asks would be one more.
    assert written.count("\x1b[6n") <= screen.prompts + 1


def test_history_file(home: Path) -> None:
    """Lines of the history, shown by the arrow, by the search and as a suggestion."""
    (home / "state").mkdir(parents=True)
    lines = [json.dumps(f"{word} {HOSTILE}") for word in ("first", "second")]
    (home / "state" / "history.jsonl").write_text("\n".join(lines) + "\nno json \x1b]0;x\x07\n")
    with chat(*SHORT, ready=False) as screen:
        screen.send(CTRL_R + "firs")
        screen.wait("> first a]52")
        screen.send(CTRL_C + CTRL_U + UP)
        screen.wait("> second a]52")
        screen.send(UP)
        screen.wait("> first a]52")
        screen.send(CTRL_U + "seco")
        screen.wait("> second a]52")
        check(screen)


@pytest.mark.slow
def test_session_file(home: Path) -> None:
    """Everything that a session's file can bring to the screen."""
    saved = run("chat", "--save", "evil", *SHORT, stdin=b"Once upon a time\nThen\n")
    assert saved.code == 0, saved.err
    file = home / "state" / "sessions" / "evil.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()]
    for event in events:
        for key in ("user", "answer", "system"):
            if key in event:
                event[key] = HOSTILE
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    with chat("--resume", "evil") as screen:
        for line in ("/tree", "/context", "/go 1", "/sessions", "/system", "/branch 2", "/tokens", "/stats"):
            screen.send(line + ENTER)
            screen.settle(0.5)
            if line.startswith("/branch"):
                screen.wait("take which?")
                screen.send("1" + ENTER)
                screen.settle(0.5)
        screen.send("/load ")
        screen.settle(0.5)
        assert "a]52;c;SGk=b" in screen.text
        check(screen)


@pytest.mark.slow
@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_model_output(tmp_path: Path, terminal: str) -> None:
    """A model that draws from all bytes alike writes ESC and BEL by itself."""
    model = make_model(tmp_path / "m", n_positions=2048)
    flags = ("-m", model, "--temperature", "50", "--top-k", "0", "--seed", "3", "--max-new-tokens", "1500")
    piped = run("chat", *flags, "--ignore-eos", "--json", stdin=b"ab\n")
    answer = json.loads(piped.out)["answer"]
    assert "\x1b" in answer and "\x07" in answer
    screen = ChatScreen(*flags, "--ignore-eos", "--no-save", TERM=terminal, NO_COLOR="1")
    screen.wait(lambda: screen.raw.endswith(b"> ") or screen.prompts > 0)
    screen.settle()
    before = len(screen.raw)
    screen.send("ab" + ("\n" if terminal == "dumb" else ENTER))
    screen.wait(lambda: len(screen.raw) > before + 1000)
    screen.settle(1.0)
    shown = screen.raw[before:].decode("utf-8", "ignore")
    if terminal == "xterm":
        # What the prompt itself does before and after the answer.
        known = r"\x1b\[[0-9;]*[mABCDJKHn]|\x1b\[\?(?:2004|25|12|7|1)[hl]|>\x08"
        shown = re.sub(known, "", shown)
    left = {char for char in shown if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0} - {"\n", "\r", "\t"}
    assert left == set()
    screen.child.close(force=True)


@pytest.mark.slow
def test_model_name(tmp_path: Path) -> None:
    """A directory may be called anything."""
    model = make_model(tmp_path / "evil\x1b]0;x\x07\u202e")
    with chat("-m", model, "--no-save", *SHORT) as screen:
        screen.ask("/model")
        screen.ask(f"/model {tmp_path}/no\x1b]0;x\x07")
        assert "evil]0;x" in screen.text
        check(screen)


def test_a_paste_of_5000_lines_is_one_message(home: Path) -> None:
    """It arrives at once, and the history has one entry more. (Issue: under 2 s; measured, not asserted.)"""
    lines = [f"line {number} of a long text that was pasted" for number in range(5000)]
    pasted = "\r".join(lines)
    with chat(*SHORT) as screen:
        started = time.monotonic()
        keys = threading.Thread(target=screen.send, args=(PASTE + pasted + PASTE_END,))
        keys.start()
        screen.wait("line 4999 of")
        arrived = time.monotonic() - started
        keys.join()
        prompts = screen.prompts
        screen.send(ENTER)
        screen.wait(lambda: screen.prompts > prompts)
        screen.settle()
        sent = time.monotonic() - started
        print(f"a paste of {len(pasted)} characters: shown after {arrived:.2f} s, done after {sent:.2f} s")
        assert screen.text.count("error: ") == 1 and "context" in screen.text
        screen.leave()
    entries = (home / "state" / "history.jsonl").read_text().splitlines()
    assert [json.loads(entry) for entry in entries] == ["\n".join(lines)]


def _answer(screen: ChatScreen) -> str:
    """The line below what was said; nothing before it was said."""
    _, said, below = screen.text.rpartition("> Once upon a time\n")
    return below.partition("\n")[0] if said else ""


def _interrupted(times: int) -> list[float]:
    """Seconds from Ctrl-C in the middle of an answer to the prompt, so many times."""
    found = []
    # One thread and little text, so that the answer has not ended when a busy machine gets to Ctrl-C.
    slow = ("--precision", "fp32", "--threads", "1", "--draft", "off", "--max-new-tokens", "500")
    with chat("--seed", "42", *slow, "--ignore-eos", "--no-save") as screen:
        modes = termios.tcgetattr(screen.child.child_fd)
        for _ in range(times):
            prompts = screen.prompts
            screen.send("Once upon a time" + ENTER)
            screen.wait(lambda: len(_answer(screen)) > 8)
            started = time.monotonic()
            screen.send(CTRL_C)
            screen.wait(lambda prompts=prompts: screen.prompts > prompts)  # type: ignore[misc]
            found.append(time.monotonic() - started)
            screen.settle(0.05)
            assert "stopped; /continue goes on" in screen.text
            assert termios.tcgetattr(screen.child.child_fd) == modes
            screen.ask("/clear")
            screen.ask("\x0c")
        assert screen.leave() == 0
    print(
        f"from Ctrl-C to the prompt, {times} times: median {statistics.median(found) * 1e3:.0f} ms, "
        f"most {max(found) * 1e3:.0f} ms"
    )
    return found


@pytest.mark.slow
def test_ctrl_c_comes_back_to_the_prompt() -> None:
    """Within 300 ms, every time: that is printed. The bound is for a busy machine."""
    assert max(_interrupted(series(100, 12))) < 10


def test_first_key_is_shown_while_the_model_loads() -> None:
    """Issue: within 0.5 s of the start. Measured and printed."""
    started = time.monotonic()
    screen = ChatScreen(*SHORT, "--no-save")
    screen.send("x")
    screen.wait(lambda: screen.prompts > 0 and "> x" in screen.text)
    shown = time.monotonic() - started
    screen.wait(lambda: "/512" in screen.bar)
    loaded = time.monotonic() - started
    print(f"the first key was shown after {shown:.2f} s, the model was there after {loaded:.2f} s")
    assert shown < loaded
    screen.child.close(force=True)
