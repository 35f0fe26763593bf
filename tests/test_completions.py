"""``gpt2cli completions``: the scripts, and what real shells make of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from support import REPOSITORY, write_json

from gpt2cli.cli.app import command_tree, main
from gpt2cli.cli.completions import SCRIPTS, read_command
from gpt2cli.cli.shells.command import Command
from gpt2cli.hub.registry import BUILTIN

UPDATE = os.environ.get("GPT2CLI_UPDATE") == "1"
FILES = {
    "bash": "gpt2cli.bash",
    "zsh": "_gpt2cli",
    "fish": "gpt2cli.fish",
    "powershell": "gpt2cli.ps1",
}
CHECKS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-f", "-n"], "fish": ["fish", "--no-execute"]}

# What every shell offers at the end of each line, in the world of `world` below.
CASES = {
    "gpt2cli conf": {"config"},
    "gpt2cli --vers": {"--version"},
    "gpt2cli -- conf": {"config"},
    "gpt2cli nonsense conf": set(),
    "gpt2cli config ": {"list", "get", "set", "unset", "path"},
    "gpt2cli config nonsense ge": set(),
    "gpt2cli config list --js": {"--json"},
    "gpt2cli config get top": {"top_k", "top_p"},
    "gpt2cli config unset temp": {"temperature"},
    "gpt2cli config set temperature ": set(),
    "gpt2cli config set -- thr": {"threads"},
    "gpt2cli completions ": {"bash", "zsh", "fish", "powershell"},
    "gpt2cli generate --mo": {"--model"},
    "gpt2cli generate some words --mo": {"--model"},
    "gpt2cli generate -- --mo": set(),
    "gpt2cli generate ": set(),
    "gpt2cli generate notes": set(),
    "gpt2cli generate config ": set(),
    "gpt2cli generate config set --mo": {"--model"},
    "gpt2cli generate --overflow ": {"error", "truncate", "slide"},
    "gpt2cli generate --overflow=s": {"slide"},
    "gpt2cli generate --prompt ": set(),
    "gpt2cli generate --prompt=no": set(),
    "gpt2cli generate -n 3 --mo": {"--model"},
    "gpt2cli generate -n3 --mo": {"--model"},
    "gpt2cli generate -qn 3 --mo": {"--model"},
    "gpt2cli generate -m ": {"gpt2", "my-stories", "owner/from-hf", "runs/", "it's a dir/"},
    "gpt2cli generate -m my-": {"my-stories"},
    "gpt2cli generate -qm owner/": {"owner/from-hf"},
    "gpt2cli generate --model=gp": {"gpt2"},
    "gpt2cli generate --model=ru": {"runs/"},
    "gpt2cli generate -m runs/": {"runs/one/"},
    "gpt2cli generate -m it": {"it's a dir/"},
    "gpt2cli generate -m notes": set(),
    "gpt2cli generate -f no": {"notes.txt"},
    "gpt2cli generate --file=no": {"notes.txt"},
    "gpt2cli generate -f two": {"two words.txt"},
    "gpt2cli generate -f two\\ w": {"two words.txt"},
    "gpt2cli generate -f 'two w": {"two words.txt"},
    'gpt2cli generate -f "two w': {"two words.txt"},
    "gpt2cli generate x > no": {"notes.txt"},
    "gpt2cli show my-": {"my-stories"},
    "gpt2cli rm gpt2 my-": {"my-stories"},
    "gpt2cli verify --files": {"--files-only"},
    "gpt2cli import ru": {"runs/"},
    "gpt2cli export my-stories ru": {"runs/"},
}


@dataclass
class World:
    """A directory to work in, and the environment of a shell there; our scripts are in ``scripts``."""

    directory: Path
    scripts: Path
    environment: dict[str, str]

    def run(self, command: Sequence[str]) -> str:
        """What the command prints. It must succeed, and say nothing on stderr."""
        ran = subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=30
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store with two models, a Hugging Face cache with one, and a few files."""
    root = tmp_path_factory.mktemp("completions")
    for name in ("openai-community/gpt2", "my-stories"):
        folder = root / "home" / "gpt2cli" / "models" / name.replace("/", "--")
        (folder / "local").mkdir(parents=True)
        write_json(folder / "local.json", {"format": 1, "name": name, "revision": "local", "refs": []})
    snapshot = root / "hub" / "models--owner--from-hf" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    write_json(snapshot / "config.json", {"model_type": "gpt2"})
    (snapshot / "model.safetensors").touch()
    directory = root / "work"
    for name in ("runs/one", "it's a dir"):
        (directory / name).mkdir(parents=True)
    for name in ("notes.txt", "two words.txt"):
        (directory / name).touch()
    write_scripts(root / "scripts", read_command(typer.main.get_command(command_tree())))
    path = [str(Path(sys.executable).parent), *(str(Path(p).parent) for p in map(shutil.which, CHECKS) if p)]
    environment = {
        "PATH": ":".join([*path, "/usr/bin", "/bin"]),
        "HOME": str(root / "home"),
        "GPT2CLI_HOME": str(root / "home" / "gpt2cli"),
        "HF_HUB_CACHE": str(root / "hub"),
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
    }
    return World(directory, root / "scripts", environment)


def write_scripts(directory: Path, command: Command) -> None:
    directory.mkdir()
    for shell, file in FILES.items():
        (directory / file).write_text(SCRIPTS[shell](command), "utf-8")


def need(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


# The command


@pytest.mark.parametrize("shell", FILES)
def test_the_files_in_completions_are_current(shell: str) -> None:
    """Renew them with ``GPT2CLI_UPDATE=1 pytest tests/test_completions.py``."""
    file = REPOSITORY / "completions" / FILES[shell]
    script = SCRIPTS[shell](read_command(typer.main.get_command(command_tree())))
    if UPDATE:
        file.parent.mkdir(exist_ok=True)
        file.write_text(script, "utf-8")
    current = file.is_file() and file.read_text("utf-8") == script
    assert current, f"renew it: gpt2cli completions {shell} > completions/{FILES[shell]}"


@pytest.mark.parametrize("shell", FILES)
def test_the_command_prints_the_script(shell: str, world: World) -> None:
    printed = world.run(["gpt2cli", "completions", shell])
    assert printed == (world.scripts / FILES[shell]).read_text("utf-8")
    assert f"Generated by: gpt2cli completions {shell}\n" in printed[:200]


@pytest.mark.parametrize("arguments", [[], ["tcsh"]])
def test_a_wrong_or_missing_shell_is_a_usage_error(
    arguments: list[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["completions", *arguments]) == 2
    out, err = capfdbinary.readouterr()
    assert out == b""
    assert all(shell.encode() in err for shell in FILES)


def test_help_says_how_to_install(world: World) -> None:
    text = world.run(["gpt2cli", "completions", "--help"])
    for shell in FILES:
        assert f"gpt2cli completions {shell} > " in text


def test_models_lists_what_is_on_disk(world: World) -> None:
    names = world.run(["gpt2cli", "completions", "--models"]).splitlines()
    assert [name for name in names if name != BUILTIN] == ["my-stories", "gpt2", "owner/from-hf"]


def test_models_imports_nothing_slow(world: World) -> None:
    code = (
        "import sys; from gpt2cli.cli.app import main; main(['completions', '--models']);"
        "print([m for m in ('torch', 'transformers', 'prompt_toolkit', 'tokenizers') if m in sys.modules])"
    )
    assert world.run([sys.executable, "-c", code]).splitlines()[-1] == "[]"


# The tree

NASTY = r"""it's "quoted" [b]rackets[/b] a:b $HOME `id` $(id) \n back\slash <|endoftext|> 100% #x; *"""


def nasty_tree() -> Command:
    """A tree as later versions may have it: three levels, a hidden command, every kind of parameter."""
    root, remote, mirrors = typer.Typer(name="gpt2cli"), typer.Typer(help=NASTY), typer.Typer()

    @root.callback()
    def about(verbose: Annotated[int, typer.Option("--verbose", "-v", count=True)] = 0) -> None:
        pass

    @root.command(help=NASTY)
    def train(
        data: Annotated[list[Path], typer.Argument()],
        output: Annotated[Path, typer.Option("--output", file_okay=False, help=NASTY)],
        style: Annotated[Literal["a b", "it's", "$x"], typer.Option("--style", help=NASTY)],
        model: Annotated[str, typer.Option("--model", "-m", metavar="100%:[x]")],
        progress: Annotated[bool, typer.Option("--progress/--no-progress", help=NASTY)] = True,
        secret: Annotated[bool, typer.Option("--secret", hidden=True)] = False,
    ) -> None:
        pass

    @root.command(hidden=True)
    def selftest() -> None:
        pass

    @mirrors.command("add-one")
    def add(model: str, where: Literal["near", "far"], note: str) -> None:
        """Add a mirror. And more about it."""

    @mirrors.command()
    def drop() -> None:
        """Drop a mirror."""

    remote.add_typer(mirrors, name="mirrors")
    root.add_typer(remote, name="remote")
    return read_command(typer.main.get_command(root))


def test_the_tree_is_read() -> None:
    tree = {command.path: command for command in nasty_tree().walk()}
    assert set(tree) == {
        *[(), ("train",), ("remote",), ("remote", "mirrors")],
        *[("remote", "mirrors", "add-one"), ("remote", "mirrors", "drop")],
    }
    train = tree["train",]
    flags = {name: flag for flag in train.flags for name in flag.names}
    assert set(flags) == {"--output", "--style", "--model", "-m", "--progress", "--no-progress", "--help"}
    kinds = {name: flag.value.kind for name, flag in flags.items() if flag.value}
    assert kinds == {"--output": "directory", "--style": "words", "--model": "model", "-m": "model"}
    assert [(a.value.kind, a.repeated) for a in train.arguments] == [("file", True)]
    add = tree["remote", "mirrors", "add-one"]
    assert [a.value.kind for a in add.arguments] == ["model", "words", "text"]
    assert add.help == "Add a mirror"


def test_a_flag_of_two_values_is_refused() -> None:
    """The scripts would take its second value for an argument."""
    pair = typer.Typer()

    @pair.command()
    def run(size: Annotated[tuple[int, int], typer.Option()]) -> None:
        pass

    with pytest.raises(ValueError, match="size"):
        read_command(typer.main.get_command(pair))


@pytest.fixture(scope="module")
def nasty_world(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    scripts = tmp_path_factory.mktemp("nasty") / "scripts"
    write_scripts(scripts, nasty_tree())
    return World(world.directory, scripts, world.environment)


NASTY_CASES = {
    "gpt2cli rem": {"remote"},
    "gpt2cli -v -vv rem": {"remote"},
    "gpt2cli selft": set(),
    "gpt2cli remote mirrors ": {"add-one", "drop"},
    "gpt2cli remote mirrors add-one my": {"my-stories"},
    "gpt2cli remote mirrors add-one x ": {"near", "far"},
    "gpt2cli remote mirrors add-one x far ": set(),
    "gpt2cli remote mirrors add-one x far y ": set(),
    "gpt2cli train no": {"notes.txt"},
    "gpt2cli train x no": {"notes.txt"},
    "gpt2cli train --output ": {"runs/", "it's a dir/"},
    "gpt2cli train --style ": {"a b", "it's", "$x"},
    "gpt2cli train --no": {"--no-progress"},
    "gpt2cli train --sec": set(),
}


@pytest.mark.parametrize("shell", CHECKS)
def test_the_shell_finds_no_error(shell: str, world: World, nasty_world: World) -> None:
    need(shell)
    for scripts in (world.scripts, nasty_world.scripts):
        assert world.run([*CHECKS[shell], str(scripts / FILES[shell])]) == ""


def test_powershell_quotes() -> None:
    script = SCRIPTS["powershell"](nasty_tree())
    assert script.isascii()
    assert f"Name = '--output'; Help = '{NASTY.replace(chr(39), chr(39) * 2)}'" in script


# bash

BASH = r"""
set -u
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDS=("${@:3}") COMP_CWORD=$(($# - 3))
_gpt2cli
printf '%s\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"}
"""
# A word of readline: it splits at the characters of COMP_WORDBREAKS that are not quoted.
BASH_WORD = re.compile(r"""(?:"[^"]*"?|'[^']*'?|\\.|[^\s=:<>|&;"'\\])+|[=:]+|[<>|&;]+""")


def bash(world: World, line: str) -> set[str]:
    words = BASH_WORD.findall(line) + [""] * line.endswith(" ")
    out = world.run(["bash", "-c", BASH, "bash", str(world.scripts / FILES["bash"]), line, *words])
    return set(filter(None, out.split("\n")))


def assert_offered(offered: set[str], expected: set[str]) -> None:
    """A later version has the built-in model, too; and bash may leave the slash to readline."""
    assert {name.rstrip("/") for name in offered - {BUILTIN}} == {name.rstrip("/") for name in expected}


@pytest.mark.parametrize("line", CASES)
def test_bash(line: str, world: World) -> None:
    need("bash")
    assert_offered(bash(world, line), CASES[line])


@pytest.mark.parametrize("line", NASTY_CASES)
def test_bash_with_a_later_tree(line: str, nasty_world: World) -> None:
    need("bash")
    assert_offered(bash(nasty_world, line), NASTY_CASES[line])


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_only_the_names_of_models_start_python(shell: str, world: World, tmp_path: Path) -> None:
    need(shell)
    log = tmp_path / "log"
    fake = tmp_path / "gpt2cli"
    fake.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n')
    fake.chmod(0o755)
    path = f"{tmp_path}:{world.environment['PATH']}"
    watched = World(world.directory, world.scripts, {**world.environment, "PATH": path})
    complete = {"bash": bash, "fish": fish}[shell]
    for line in ("gpt2cli ", "gpt2cli generate -", "gpt2cli generate -f ", "gpt2cli config set "):
        complete(watched, line)
    assert not log.exists()
    complete(watched, "gpt2cli generate -m ")
    assert log.read_text() == "completions --models\n"


# fish


def fish_lines(world: World, line: str) -> list[str]:
    code = "source $argv[1]; complete -C $argv[2]"
    return world.run(["fish", "-c", code, str(world.scripts / FILES["fish"]), line]).splitlines()


def fish(world: World, line: str) -> set[str]:
    offered = {entry.split("\t")[0] for entry in fish_lines(world, line)}
    return {re.sub("^--[^=]*=", "", word) for word in offered}


@pytest.mark.parametrize("line", CASES)
def test_fish(line: str, world: World) -> None:
    need("fish")
    assert_offered(fish(world, line), CASES[line])


@pytest.mark.parametrize("line", NASTY_CASES)
def test_fish_with_a_later_tree(line: str, nasty_world: World) -> None:
    need("fish")
    assert_offered(fish(nasty_world, line), NASTY_CASES[line])


def test_fish_shows_what_a_flag_means(world: World, nasty_world: World) -> None:
    need("fish")
    assert fish_lines(world, "gpt2cli generate --gree") == [
        "--greedy\tAlways take the most likely token (the same as --temperature 0)"
    ]
    assert fish_lines(nasty_world, "gpt2cli train --out") == [f"--output\t{NASTY}"]
    assert f"train\t{NASTY}" in fish_lines(nasty_world, "gpt2cli ")


# On a terminal


class Typist:
    """A shell on a terminal of its own, and what its screen shows."""

    def __init__(self, world: World, command: list[str], *setup: str) -> None:
        pexpect, pyte = pytest.importorskip("pexpect"), pytest.importorskip("pyte")
        rows, columns = 60, 200
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._shell: Any = pexpect.spawn(
            command[0], command[1:], cwd=world.directory, env=world.environment, dimensions=(rows, columns)
        )
        self._timeout = pexpect.TIMEOUT
        for line in (*setup, "PS1='> '; echo rea''dy"):
            self._shell.send(f"{line}\n")
        self.wait(lambda: "ready" in self.lines() and self.lines()[-1] == ">")

    def close(self) -> None:
        self._shell.close(force=True)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display if line.strip()]

    def wait(self, shown: Callable[[], bool]) -> None:
        end = time.monotonic() + 15
        while not shown():
            assert time.monotonic() < end, "\n".join(self.lines())
            try:
                self._stream.feed(self._shell.read_nonblocking(65536, 0.05))
            except self._timeout:
                continue

    def tab(self, line: str, key: str = "\t") -> str:
        """The line after a Tab at its end. The shell reads the mark that follows when it is done."""
        self._clear()
        self._shell.send(f"{line}{key}Z")
        self.wait(lambda: any(shown.startswith("> ") and shown.endswith("Z") for shown in self.lines()))
        return next(s for s in self.lines() if s.startswith("> ")).removeprefix("> ").removesuffix("Z")

    def tab_shows(self, line: str, *texts: str) -> None:
        """Wait for all the texts on the screen after a Tab at the end of the line."""
        self._clear()
        self._shell.send(f"{line}\t")
        self.wait(lambda: all(text in "\n".join(self.lines()[1:]) for text in texts))

    def _clear(self) -> None:
        self._shell.send("\x15\x0c")
        self.wait(lambda: self.lines() == [">"])


# Python 3.12 warns of a fork where torch has threads; the child only executes a shell.
on_a_terminal = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def bash_typist(world: World) -> Iterator[Typist]:
    need("bash")
    source = f"set -u; source {world.scripts / FILES['bash']}"
    typist = Typist(world, ["bash", "--norc", "--noprofile", "-i"], source)
    yield typist
    typist.close()


@on_a_terminal
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("gpt2cli conf", "gpt2cli config "),
        ("echo x | gpt2cli conf", "echo x | gpt2cli config "),
        ("gpt2cli generate notes", "gpt2cli generate notes"),
        ("gpt2cli generate --model=gp", "gpt2cli generate --model=gpt2 "),
        ("gpt2cli generate -m owner/", "gpt2cli generate -m owner/from-hf "),
        ("gpt2cli generate --model=ru", "gpt2cli generate --model=runs/"),
        ("gpt2cli generate -m it", "gpt2cli generate -m it\\'s\\ a\\ dir/"),
        ('gpt2cli generate -m "ru', 'gpt2cli generate -m "runs/'),
        ("gpt2cli generate --file=two", "gpt2cli generate --file=two\\ words.txt "),
        ("gpt2cli generate --file='two", "gpt2cli generate --file='two words.txt' "),
        ("gpt2cli generate x >no", "gpt2cli generate x >notes.txt "),
    ],
)
def test_bash_on_a_terminal(typed: str, line: str, bash_typist: Typist) -> None:
    assert bash_typist.tab(typed) == line


def zsh_typist(world: World, *setup: str) -> Typist:
    need("zsh")
    # ^T inserts the first of several matches, where Tab would list them.
    keys = "zstyle ':completion:*' menu no; bindkey -e; bindkey '^T' menu-complete"
    return Typist(world, ["zsh", "-f", "-i"], keys, *setup)


@pytest.fixture(scope="module")
def autoloaded(world: World) -> Iterator[Typist]:
    """zsh with our file in a directory of $fpath."""
    setup = f"fpath=({world.scripts} $fpath); autoload -U compinit; compinit -u -D"
    typist = zsh_typist(world, setup)
    yield typist
    typist.close()


@on_a_terminal
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("gpt2cli conf", "gpt2cli config "),
        ("gpt2cli -- conf", "gpt2cli -- config "),
        ("gpt2cli config unse", "gpt2cli config unset "),
        ("gpt2cli config set temp", "gpt2cli config set temperature "),
        ("gpt2cli generate --gree", "gpt2cli generate --greedy "),
        ("gpt2cli generate words --gree", "gpt2cli generate words --greedy "),
        ("gpt2cli generate --overflow s", "gpt2cli generate --overflow slide "),
        ("gpt2cli generate --overflow=s", "gpt2cli generate --overflow=slide "),
        ("gpt2cli generate --model=gp", "gpt2cli generate --model=gpt2 "),
        ("gpt2cli generate -qm owner/", "gpt2cli generate -qm owner/from-hf "),
        ("gpt2cli generate -m it", "gpt2cli generate -m it\\'s\\ a\\ dir/"),
        ("gpt2cli generate -f two", "gpt2cli generate -f two\\ words.txt "),
        ("gpt2cli generate -f 'two", "gpt2cli generate -f 'two words.txt' "),
        ("gpt2cli generate x > no", "gpt2cli generate x > notes.txt "),
    ],
)
def test_zsh_on_a_terminal(typed: str, line: str, autoloaded: Typist) -> None:
    assert autoloaded.tab(typed) == line


@on_a_terminal
@pytest.mark.parametrize(
    "typed",
    [
        "gpt2cli generate ",
        "gpt2cli generate notes",
        "gpt2cli generate config ",
        "gpt2cli generate -- --mo",
        "gpt2cli generate --prompt ",
        "gpt2cli generate -m notes",
        "gpt2cli config nonsense ",
        "gpt2cli config set temperature ",
    ],
)
def test_zsh_offers_nothing(typed: str, autoloaded: Typist) -> None:
    assert autoloaded.tab(typed, key="\x14") == typed


@on_a_terminal
def test_zsh_lists_with_descriptions(autoloaded: Typist) -> None:
    autoloaded.tab_shows("gpt2cli ", "generate ", "-- List, get, set and unset settings")
    autoloaded.tab_shows("gpt2cli config ", "unset  -- Remove one value from config.toml")
    autoloaded.tab_shows("gpt2cli generate --s", "-- Read <|endoftext|> in the prompt as the special token")
    autoloaded.tab_shows("gpt2cli generate -m ", "gpt2", "my-stories", "owner/from-hf", "runs/")


@on_a_terminal
def test_zsh_with_a_later_tree(nasty_world: World) -> None:
    script = nasty_world.scripts / FILES["zsh"]
    typist = zsh_typist(nasty_world, f"autoload -U compinit; compinit -u -D; source <(cat {script})")
    try:
        typist.tab_shows("gpt2cli ", f"remote  train  -- {NASTY}")
        typist.tab_shows("gpt2cli train --", f"-- {NASTY}")
        assert typist.tab("gpt2cli remote mirrors add-one x f") == "gpt2cli remote mirrors add-one x far "
        assert typist.tab("gpt2cli train --style i") == "gpt2cli train --style it\\'s "
        assert typist.tab("gpt2cli train --output=ru") == "gpt2cli train --output=runs/"
        assert typist.tab("gpt2cli train x y no") == "gpt2cli train x y notes.txt "
    finally:
        typist.close()


def test_zsh_says_that_compinit_is_missing(world: World) -> None:
    need("zsh")
    script = f"source {world.scripts / FILES['zsh']}"
    ran = subprocess.run(["zsh", "-f", "-c", script], env=world.environment, capture_output=True, text=True)
    assert "compinit" in ran.stderr
