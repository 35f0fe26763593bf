"""`gpt2cli chat` as a person sees it: the real program in a real terminal, with the built-in model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chat_screen import (
    ALT_ENTER,
    CTRL_C,
    CTRL_D,
    ENTER,
    ESCAPE,
    PASTE,
    PASTE_END,
    PATIENCE_S,
    TAB,
    ChatScreen,
    chat,
)
from support import make_model, some_slow

pexpect = pytest.importorskip("pexpect")

SHORT = ("--seed", "42", "--max-new-tokens", "8")
UP, DOWN, RIGHT, CTRL_R, CTRL_U = "\x1b[A", "\x1b[B", "\x1b[C", "\x12", "\x15"


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat-home")


@pytest.fixture(scope="module")
def session(shared_home: Path) -> Iterator[ChatScreen]:
    """One session that several tests type into; each begins with /clear."""
    with chat(*SHORT, GPT2CLI_HOME=str(shared_home)) as screen:
        yield screen


@pytest.fixture
def fresh(session: ChatScreen) -> ChatScreen:
    """The shared session at the beginning of a text, with its options as at the start."""
    session.ask("/clear")
    session.ask("/format story")
    session.ask("/system -")
    session.ask("/seed 42")
    return session


def answer_to(shown: str) -> str:
    """What stands between the line that was typed and the next prompt."""
    lines = shown.split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("> "))
    last = next(i for i in reversed(range(len(lines))) if lines[i].startswith(">"))
    return "\n".join(lines[first + 1 : last])


def ask(screen: ChatScreen, text: str) -> str:
    return answer_to(screen.ask(text))


def test_a_message_is_answered_and_counted(fresh: ChatScreen) -> None:
    answer = ask(fresh, "Once upon a time")
    assert len(answer.split()) >= 3
    assert re.search(r"story · seed 42 · \d+/512 tokens · \d+\.\d tokens/s", fresh.bar)


def test_help_fits_a_screen(fresh: ChatScreen) -> None:
    """All commands, the keys, the prompt and the bar stand on 24 lines of 80."""
    shown = ask(fresh, "/help")
    names = "help set show regen undo redo continue branch tree go context tokens stats model format system"
    for name in (names + " seed save load sessions export clear exit edit").split():
        assert f"/{name} " in shown.replace("\n", " \n")
    assert fresh.lines[0].startswith("tiny") or "/help" in fresh.text
    assert any("/help [COMMAND]" in line for line in fresh.lines)
    assert "512" in fresh.bar


def test_help_of_one_command(fresh: ChatScreen) -> None:
    assert "temperature=1.2" in ask(fresh, "/help regen")
    assert "did you mean /regen?" in ask(fresh, "/help regne")


def test_unknown_command_names_the_nearest(fresh: ChatScreen) -> None:
    shown = ask(fresh, "/tempreature")
    assert "error: there is no command /tempreature" in shown
    assert "hint: did you mean /undo?" in ask(fresh, "/udno")
    assert "hint: did you mean /continue?" in ask(fresh, "/cont")


def test_undo_and_the_same_seed_give_the_same_answer(fresh: ChatScreen) -> None:
    """And /stats says what was prefilled: only what is new."""
    first = ask(fresh, "Once upon a time")
    second = ask(fresh, "Then a dog came")
    stats = ask(fresh, "/stats")
    prompt, kept, new = (int(n) for n in re.findall(r"(?:prompt|kept|prefilled) +(\d+) tokens", stats))
    assert prompt == kept + new and 0 < new <= 8 < prompt
    assert "undone" in ask(fresh, "/undo")
    assert ask(fresh, "Then a dog came") == second
    ask(fresh, "/undo")
    ask(fresh, "/undo")
    assert ask(fresh, "Once upon a time") == first


def test_redo_and_go_and_tree(fresh: ChatScreen) -> None:
    first = ask(fresh, "Once upon a time")
    ask(fresh, "/undo")
    assert first.split("\n")[0] in ask(fresh, "/redo")
    assert "error: there is no turn to come back to" in ask(fresh, "/redo")
    shown = ask(fresh, "/tree")
    current = next(line for line in shown.split("\n") if re.search(r"\d+\* ", line))
    number = re.search(r"(\d+)\*", current)
    assert number is not None and "Once upon a time →" in current
    ask(fresh, "/clear")
    assert first.split("\n")[0] in ask(fresh, f"/go {number[1]}")
    assert "error: there is no turn 99999" in ask(fresh, "/go 99999")
    assert "error: /go takes the number" in ask(fresh, "/go back")


def test_regen_and_continue(fresh: ChatScreen) -> None:
    first = ask(fresh, "Once upon a time")
    assert ask(fresh, "/regen temperature=0") != "" and "error" not in fresh.text.rsplit("/regen", 1)[-1]
    again = ask(fresh, "/regen seed=42")
    assert again == first
    assert "error: " in ask(fresh, "/regen temperature=-1")
    assert "error: 'hot'" in ask(fresh, "/regen hot")
    more = ask(fresh, "/continue")
    assert more and more != first
    context = ask(fresh, "/context")
    assert "".join((first + more).split()) in "".join(context.split())


@pytest.mark.slow
def test_branch_side_by_side(fresh: ChatScreen) -> None:
    ask(fresh, "Once upon a time")
    fresh.send("/branch 2" + ENTER)
    fresh.wait("take which? [1-2, Enter: none]")
    heads = next(line for line in reversed(fresh.lines) if "1 · seed" in line)
    assert "2 · seed" in heads, "side by side at 80 columns"
    fresh.send("2" + ENTER)
    fresh.wait("taken")
    fresh.settle()
    assert "under 5%" in ask(fresh, "/tokens")
    assert "error: /branch" in ask(fresh, "/branch 1")
    prompts = fresh.prompts
    fresh.send("/branch 2" + ENTER)
    fresh.wait(lambda: fresh.prompts > prompts)
    fresh.send(CTRL_C)
    fresh.wait("none taken; all are in the tree")
    fresh.settle()


def test_tokens_in_colour_and_in_a_list(fresh: ChatScreen) -> None:
    answer = ask(fresh, "Once upon a time")
    before = len(fresh.raw)
    assert answer.split("\n")[0] in ask(fresh, "/tokens")
    assert re.search(rb"\x1b\[(32|33|35|1;31)m", fresh.raw[before:])
    listed = ask(fresh, "/tokens list").split("\n")
    assert len(listed) == 8 and all(re.match(r" *\d+\.\d\d% ", line) for line in listed)
    ask(fresh, "/clear")
    assert "error: there is no answer yet" in ask(fresh, "/tokens")


def test_context_is_what_the_model_sees(fresh: ChatScreen) -> None:
    ask(fresh, "/system A story.")
    ask(fresh, "Once upon a time")
    context = ask(fresh, "/context")
    assert "A story. Once upon a time" in context and "of 512 tokens, format story" in context
    ids = ask(fresh, "/context ids")
    told = re.search(r"(\d+) of 512 tokens", ids)
    assert told is not None
    numbers = [int(n) for line in ids.split("\n")[1:-1] for n in line.split()]
    assert len(numbers) == int(told[1])
    assert ask(fresh, "/system") == "A story."


@pytest.mark.slow
def test_formats(fresh: ChatScreen) -> None:
    ask(fresh, "/format transcript")
    assert "transcript" in fresh.bar
    ask(fresh, "Hello")
    assert "User: Hello\nAssistant:" in ask(fresh, "/context")
    ask(fresh, "/format raw")
    assert "raw" in fresh.bar
    ask(fresh, "/format dialogpt")
    assert "<|endoftext|>" in ask(fresh, "/context")
    assert "error: format template: no chat template" in ask(fresh, "/format template")
    assert "hint: formats: story" in ask(fresh, "/format nonsense")
    assert "dialogpt; there are" in ask(fresh, "/format")


def test_options_are_set_and_shown(fresh: ChatScreen) -> None:
    ask(fresh, "/set temperature=0.5")
    assert re.search(r"temperature +0\.5 \(set\)", ask(fresh, "/show"))
    ask(fresh, "/set top_k 7")
    assert re.search(r"top_k +7 \(set\)", ask(fresh, "/show"))
    for name in ("temperature", "top_k"):
        ask(fresh, f"/set {name}=default")
    assert "(set)" not in ask(fresh, "/show").replace("max_new_tokens        8 (set)", "")
    assert "allowed" in ask(fresh, "/set top_p=7")
    assert "'bogus' is not an option" in ask(fresh, "/set bogus=1")
    assert "error: /set takes NAME=VALUE" in ask(fresh, "/set")
    assert "seed 7" in fresh.ask("/seed 7").replace("\n", " ") or "seed 7" in fresh.bar
    assert "error: seed" in ask(fresh, "/seed minus")


def test_model_is_changed_or_stays(fresh: ChatScreen, tiny_model: Path) -> None:
    assert "6 layers" in ask(fresh, "/model")
    shown = ask(fresh, "/model no-such-model")
    assert "error: no-such-model" in shown
    assert "goes on" in ask(fresh, f"/model {tiny_model}")
    assert f"{tiny_model.name} · " in fresh.bar and "/64" in fresh.bar
    assert "tiny goes on" in ask(fresh, "/model tiny")


def test_sessions_are_saved_loaded_and_exported(fresh: ChatScreen, shared_home: Path, tmp_path: Path) -> None:
    answer = ask(fresh, "Once upon a time")
    assert "saved as my-story" in ask(fresh, "/save my-story")
    assert "my-story" in ask(fresh, "/sessions")
    for name in ("a.md", "a.json", "a.txt"):
        assert "is written" in " ".join(ask(fresh, f"/export {tmp_path / name}").split())
        assert answer.split("\n")[0] in (tmp_path / name).read_text()
    json.loads((tmp_path / "a.json").read_text())
    fresh.send(f"/export {tmp_path / 'a.txt'}" + ENTER)
    fresh.wait("replace /")
    fresh.send("n" + ENTER)
    fresh.wait("nothing is written")
    fresh.settle()
    assert "error: there is no session" in ask(fresh, "/load no-such")
    assert "error: my-story is the session you are in" in ask(fresh, "/load my-story")
    assert "error: " in ask(fresh, "/export /no/such/folder/a.md")
    assert "error: a quote is not closed" in ask(fresh, "/export 'a")


def test_several_lines_are_one_message(fresh: ChatScreen) -> None:
    """Alt+Enter, a backslash, three quotes."""
    ask(fresh, "/format raw")
    for keys in (
        f"one{ALT_ENTER}two{ENTER}",
        f"one\\{ENTER}two{ENTER}",
        f'"""one{ENTER}two"""{ENTER}',
    ):
        ask(fresh, "/clear")
        prompts = fresh.prompts
        fresh.send(keys)
        fresh.wait(lambda before=prompts: fresh.prompts > before)  # type: ignore[misc]
        fresh.settle()
        assert ask(fresh, "/context").split("\n")[1:3][0] == "one", keys


def test_a_paste_is_one_message_and_no_command(fresh: ChatScreen) -> None:
    ask(fresh, "/format raw")
    prompts = fresh.prompts
    fresh.send(f"{PASTE}/help\rtwo\x1b]52;c;AAAA\x07{PASTE_END}{ENTER}")
    fresh.wait(lambda: fresh.prompts > prompts)
    fresh.settle()
    context = ask(fresh, "/context").split("\n")
    assert context[1:3][0] == "/help" and context[2].startswith("two]52;c;AAAA")


def test_slash_texts_can_be_sent(fresh: ChatScreen) -> None:
    ask(fresh, "/format raw")
    ask(fresh, "//etc/passwd is")
    assert "/etc/passwd is" in ask(fresh, "/context")


def test_menus_for_commands_and_arguments(fresh: ChatScreen) -> None:
    """What is offered while a command is typed; Tab takes the first."""
    for typed, offered in (
        ("/re", "draw the answer again"),
        ("/help con", "continue"),
        ("/set temp", "temperature="),
        ("/format tr", "User: and Assistant:"),
        ("/model ti", "tiny"),
        ("/load ", "Once upon a time"),
        ("/export /usr/li", "/usr/lib/"),
        ("/set editing_mode=", "editing_mode=vi"),
        ("/set draft=", "draft=lookup"),
    ):
        fresh.send(typed)
        fresh.wait(offered)
        fresh.send(CTRL_U)
        fresh.settle()
    fresh.send("/unde")
    fresh.settle()
    fresh.send("\x7f" + TAB)
    fresh.wait("> /undo")
    fresh.send(CTRL_U)
    fresh.settle()


@pytest.mark.slow
def test_history_search_and_suggestion(fresh: ChatScreen) -> None:
    ask(fresh, "The quick brown fox")
    ask(fresh, "/clear")
    fresh.send("The qu")
    # Not the line of the turn above, which reads the same.
    fresh.wait(lambda: fresh.lines[fresh.screen.cursor.y].startswith("> The quick brown fox"))
    fresh.send(RIGHT + " x")
    fresh.wait("> The quick brown fox x")
    fresh.send(CTRL_U)
    fresh.settle()
    fresh.send(UP)
    fresh.wait("> /clear")
    fresh.send(UP)
    fresh.wait(lambda: fresh.lines[fresh.screen.cursor.y].startswith("> The quick brown fox"))
    fresh.send(DOWN + DOWN + CTRL_U)
    fresh.send(CTRL_R + "brown")
    fresh.wait("> The quick brown fox")
    fresh.send(ENTER + CTRL_U)
    fresh.settle()


def test_drafts_are_a_setting_of_the_session(fresh: ChatScreen) -> None:
    ask(fresh, "/set draft=lookup")
    assert re.search(r"draft +lookup", ask(fresh, "/show"))
    ask(fresh, "/set draft=tiny")
    ask(fresh, "Once upon a time")
    assert re.search(r"steps +\d+; of \d+ tokens guessed ahead \d+ were right", ask(fresh, "/stats"))
    assert "not on this disk" in ask(fresh, "/set draft=no-such-model")
    assert re.search(r"draft +tiny", ask(fresh, "/show"))
    assert "draft is auto again" in ask(fresh, "/model tiny")


@pytest.mark.slow
def test_vi_keys(fresh: ChatScreen) -> None:
    ask(fresh, "/set editing_mode=vi")
    fresh.send("abc def")
    fresh.send(ESCAPE)
    fresh.settle(0.5)
    fresh.send("0dw")
    fresh.wait(lambda: "> def" in fresh.lines[fresh.screen.cursor.y])
    fresh.send("cc/set editing_mode=emacs" + ENTER)
    fresh.settle()
    assert re.search(r"editing_mode +emacs", ask(fresh, "/show"))


def test_ctrl_c_at_the_prompt(fresh: ChatScreen) -> None:
    """Clears what is typed; on an empty prompt it says how to leave."""
    fresh.send("half a sentence" + CTRL_C)
    fresh.settle()
    assert fresh.lines[fresh.screen.cursor.y].strip() == ">"
    fresh.send(CTRL_C)
    fresh.wait("Ctrl-D or /exit leaves")
    fresh.settle()


def test_text_cannot_leave_the_context(fresh: ChatScreen) -> None:
    """A message larger than the context is an error, and the session goes on."""
    prompts = fresh.prompts
    fresh.send(PASTE + "word " * 2000 + PASTE_END + ENTER)
    fresh.wait(lambda: fresh.prompts > prompts)
    fresh.settle()
    assert "error: the message has" in fresh.text
    assert ask(fresh, "Once upon a time")


def test_prompt_is_usable_while_the_model_loads(tmp_path: Path) -> None:
    """Typing, /help and leaving need no model."""
    with chat(*SHORT, ready=False) as screen:
        screen.send("typed at once")
        screen.wait("> typed at once")
        assert "loading" in screen.bar or "512" in screen.bar
        screen.send(CTRL_U + "/help" + ENTER)
        screen.wait("/export FILE")
        assert screen.leave() == 0
        assert "Traceback" not in screen.text


@pytest.mark.parametrize("keys", some_slow(["/exit\r", CTRL_D, "/quit\r"], 1))
def test_leaving(keys: str) -> None:
    with chat(*SHORT, ready=False) as screen:
        assert screen.leave(keys) == 0


@pytest.mark.slow
def test_editor(tmp_path: Path) -> None:
    """/edit hands over the terminal, and what comes back can be sent."""
    editor = tmp_path / "editor.sh"
    editor.write_text(
        "#!/bin/sh\nstty -a < /dev/tty > " + str(tmp_path / "stty") + "\necho 'Edited text' > \"$1\"\n"
    )
    editor.chmod(0o755)
    with chat(*SHORT, EDITOR=str(editor), VISUAL="") as screen:
        screen.ask("/edit first")
        screen.wait("> Edited text")
        modes = (tmp_path / "stty").read_text()
        assert " echo " in modes and " icanon" in modes
        screen.send(ENTER)
        screen.wait("tokens/s")
        prompts = screen.prompts
        screen.send("abc\x18\x05")
        screen.wait(lambda: screen.prompts > prompts + 1)
        assert screen.text.count("> Edited text") == 2
    with chat(*SHORT, ready=False, EDITOR="no-such-editor", VISUAL="") as screen:
        assert "error: cannot run the editor" in screen.ask("/edit")


def test_ctrl_c_stops_the_answer_and_keeps_it() -> None:
    with chat("--seed", "42", "--max-new-tokens", "500", "--ignore-eos") as screen:
        screen.send("Once upon a time" + ENTER)
        screen.wait(lambda: len(screen.text.split()) > 60)
        screen.send(CTRL_C + "typed ahead")
        screen.wait("stopped; /continue goes on")
        screen.wait(lambda: "> typed ahead" in screen.lines[screen.screen.cursor.y])
        screen.send(CTRL_U)
        shown = ask(screen, "/context")
        assert "Once upon a time" in shown and len(shown.split()) > 30


@pytest.mark.slow
def test_ctrl_c_while_the_model_loads() -> None:
    """Nobody has to wait: the message comes back to the prompt, and can be sent again."""
    with chat(*SHORT, ready=False) as screen:
        screen.send("Once upon" + ENTER)
        screen.wait("Ctrl-C: do not wait")
        screen.send(CTRL_C)
        screen.wait("tiny is still loading")
        screen.wait(lambda: "> Once upon" in screen.lines[screen.screen.cursor.y])
        screen.send(" a time" + ENTER)
        screen.wait("tokens/s")
        assert "> Once upon a time" in screen.text


@pytest.mark.slow
def test_suspending() -> None:
    """Ctrl-Z gives the terminal to the shell, fg brings the prompt back."""
    with shell() as screen:
        screen.send(f"{ChatScreen.command()} --seed 1 --max-new-tokens 20 --no-save -q\n")
        screen.wait("0/512")
        screen.send("\x1a")
        screen.wait("Stopped")
        screen.settle()
        screen.send("stty -a\n")
        screen.wait(" icanon")
        assert re.search(r" echo ", screen.text)
        screen.send("fg\n")
        screen.settle(1.0)
        screen.send("Once upon a time" + ENTER)
        screen.wait("tokens/s")
        screen.send(CTRL_D)
        screen.settle(1.0)
        screen.send("echo back again\n")
        screen.wait("\nback again")


@contextmanager
def shell() -> Iterator[ChatScreen]:
    screen = ChatScreen("/bin/bash", "--norc", "-i")
    try:
        yield screen
    finally:
        screen.child.close(force=True)


@pytest.mark.slow
def test_resizing_while_it_streams() -> None:
    """The terminal changes its width in the middle of an answer; the text is whole, the bar fits."""
    with chat("--seed", "42", "--max-new-tokens", "200", "--ignore-eos", columns=100) as screen:
        screen.send("Once upon a time" + ENTER)
        for columns in (40, 20, 120, 60):
            more = len(screen.raw) + 40
            screen.wait(lambda more=more: len(screen.raw) > more)  # type: ignore[misc]
            screen.resize(columns, 24)
        screen.wait(lambda: "/512" in screen.bar)
        screen.settle()
        assert len(screen.bar) <= 60
        raw = screen.raw.decode()
        streamed = raw[raw.index("\x1b[?2004h", raw.rindex("Once upon a time") - 3000) :]
        assert "\x1b[?1049" not in streamed


@pytest.mark.parametrize("columns", some_slow([20, 80, 33, 120, 300], 1))
def test_every_width(columns: int) -> None:
    """The bar takes one line, whatever the width; help can be read."""
    with chat(*SHORT, columns=columns, rows=60) as screen:
        screen.ask("Once upon a time")
        rows = [line for line in screen.lines if "/512" in line]
        assert len(rows) == 1 and len(rows[0]) <= columns
        assert screen.lines[-1] == rows[0] or columns > 20
        for name in ("/help", "/show", "/stats", "/tree", "/sessions", "/tokens", "/context"):
            assert "error" not in screen.ask(name)


@contextmanager
def dumb_chat() -> Iterator[ChatScreen]:
    """A session on a dumb terminal, where no prompt announces itself."""
    screen = ChatScreen(*SHORT, TERM="dumb")
    try:
        screen.wait(lambda: screen.raw.endswith(b"> "))
        yield screen
    finally:
        screen.child.close(force=True)


def test_dumb_terminal() -> None:
    """Lines in, lines out, not one escape code."""
    with_quotes = '"""one\ntwo"""'
    with dumb_chat() as screen:
        screen.send("Once upon a time\n")
        screen.wait(lambda: screen.raw.count(b"> ") == 2)
        screen.send(with_quotes + "\n")
        screen.wait(lambda: screen.raw.count(b"\r\n> ") >= 2)
        screen.send("/tokens\n")
        screen.wait("in tenths")
        screen.send("/context\n")
        screen.wait("two")
        screen.send("/exit\n")
        assert screen.end() == 0
        assert b"\x1b" not in screen.raw


@pytest.mark.slow
def test_no_color() -> None:
    """No colour is set, at the prompt or in answers; /tokens is readable all the same."""
    with chat(*SHORT, NO_COLOR="1") as screen:
        screen.ask("Once upon a time")
        assert "in tenths" in screen.ask("/tokens")
        screen.ask("/bogus")
        screen.send("/re")
        screen.wait("draw the answer again")
        assert not re.search(rb"\x1b\[[0-9;]*\b(3[0-7]|4[0-7]|9[0-7]|[34]8;[0-9;]*)m", screen.raw)


def tmux(*arguments: str) -> str:
    command = ["tmux", "-L", f"gpt2cli-test-{os.getpid()}", "-f", "/dev/null", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux here")
def test_in_tmux() -> None:
    """A terminal between the terminal and us: the bar, Ctrl-C, a resize, the way out."""

    def wait(what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while what not in tmux("capture-pane", "-p"):
            assert time.monotonic() < end, tmux("capture-pane", "-p")
            time.sleep(0.1)

    line = f"{ChatScreen.command()} --seed 3 --max-new-tokens 400 --ignore-eos --no-save"
    tmux("new-session", "-d", "-x", "80", "-y", "24", f"{line}; echo code $?; sleep 60")
    try:
        wait("seed 3 · 0/512")
        tmux("send-keys", "Once upon a time", "Enter")
        wait("there was")
        tmux("send-keys", "C-c")
        wait("stopped; /continue")
        tmux("resize-window", "-x", "30", "-y", "20")
        tmux("send-keys", "/tre")
        wait("draw all turns")
        tmux("send-keys", "C-u")
        tmux("send-keys", "C-d")
        wait("code 0")
    finally:
        tmux("kill-server")


ENDINGS = [
    (signal.SIGTERM, "answer"),
    (signal.SIGHUP, "prompt"),
    (signal.SIGQUIT, "loading"),
    (signal.SIGTERM, "prompt"),
    (signal.SIGTERM, "loading"),
    (signal.SIGHUP, "answer"),
    (signal.SIGHUP, "loading"),
    (signal.SIGQUIT, "prompt"),
    (signal.SIGQUIT, "answer"),
]


@pytest.mark.parametrize("ending", some_slow(ENDINGS, 1))
def test_signals_to_end(ending: tuple[signal.Signals, str]) -> None:
    """The exit code is 143, and nothing of the session stays on."""
    number, when = ending
    flags = ("--seed", "42", "--max-new-tokens", "500", "--ignore-eos")
    with chat(*flags, ready=when != "loading") as screen:
        if when == "answer":
            screen.send("Once upon a time" + ENTER)
            screen.wait(lambda: len(screen.text.split()) > 60)
        screen.kill(number)
        assert screen.end() == 143
        assert "Traceback" not in screen.text
        assert screen.raw.rfind(b"\x1b[?2004l") > screen.raw.rfind(b"\x1b[?2004h")
        assert screen.raw.rfind(b"\x1b[?25h") > screen.raw.rfind(b"\x1b[?25l")


@pytest.mark.slow
def test_interrupt_from_outside_does_not_leave() -> None:
    with chat(*SHORT) as screen:
        screen.kill(signal.SIGINT)
        screen.wait("Ctrl-D or /exit leaves")
        assert ask(screen, "Once upon a time")


def test_a_model_that_cannot_be_loaded_ends_it_with_its_code(tmp_path: Path) -> None:
    """Weights that are damaged are found only while the user types."""
    model = make_model(tmp_path / "m")
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-400:] = b"\xff" * 400
    file.write_bytes(bytes(data))
    screen = ChatScreen("-m", str(model))
    assert screen.end() == 5
    assert "error: " in screen.text and "Traceback" not in screen.text


@pytest.mark.slow
def test_attributes_of_the_terminal_are_restored(tmp_path: Path) -> None:
    """``stty -a`` says the same before and after: left, interrupted, terminated."""
    script = tmp_path / "around.sh"
    script.write_text(
        f"stty -a > {tmp_path}/before\n{ChatScreen.command()} --seed 1 --max-new-tokens 400 --ignore-eos\n"
        f"echo code $?\nstty -a > {tmp_path}/after\n"
    )
    for keys, number in ((CTRL_D, None), ("", signal.SIGTERM)):
        screen = ChatScreen("/bin/bash", str(script))
        screen.wait(lambda s=screen: s.prompts > 0)  # type: ignore[misc]
        screen.send("Once" + ENTER)
        screen.wait(lambda s=screen: len(s.text.split()) > 60)  # type: ignore[misc]
        screen.send(CTRL_C)
        screen.wait("stopped")
        if number is None:
            screen.send(keys)
        else:
            screen.kill_below(number)
        screen.wait("code " + ("0" if number is None else "143"))
        screen.end()
        assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
        time.sleep(0.1)
