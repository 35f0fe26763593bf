"""What the README says is run: help pages, the Python example, the two commands' form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer
from support import REPOSITORY

from gpt2cli.cli.app import command_tree

README = REPOSITORY / "README.md"
UPDATE = bool(os.environ.get("GPT2CLI_UPDATE"))
MARK = re.compile(r"(<!-- help: [^>]*-->\n)(.*?)(<!-- /help -->)", re.DOTALL)


def leaf_commands() -> list[tuple[str, ...]]:
    """Every command that does something itself."""
    found: list[tuple[str, ...]] = []

    def walk(command: object, path: tuple[str, ...]) -> None:
        below = getattr(command, "commands", None)
        if below is None:
            found.append(path)
        for name, child in (below or {}).items():
            walk(child, (*path, name))

    walk(typer.main.get_command(command_tree()), ())
    return found


def help_page(path: tuple[str, ...]) -> str:
    environ = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "gpt2cli", *path, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environ,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def test_help_pages_are_current() -> None:
    """Renew them with ``GPT2CLI_UPDATE=1 pytest tests/test_docs.py``."""
    paths = list(leaf_commands())
    with ThreadPoolExecutor() as pool:
        pages = "".join(
            f"<details><summary><code>gpt2cli {' '.join(path)} --help</code></summary>\n\n"
            f"```text\n{page}\n```\n\n</details>\n"
            for path, page in zip(paths, pool.map(help_page, paths), strict=True)
        )
    text = README.read_text("utf-8")
    current = MARK.search(text)
    assert current is not None
    if UPDATE:
        README.write_text(MARK.sub(lambda m: m[1] + pages + m[3], text), "utf-8")
    else:
        assert current[2] == pages


def test_python_example_runs(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {"model_directory": tiny_model})
    lines = capsys.readouterr().out
    assert "7 " in lines and "8 " in lines


def test_shell_examples_parse() -> None:
    """Every ``gpt2cli generate`` line of README and help uses options that exist."""
    options = {
        name
        for parameter in typer.main.get_command(command_tree()).commands["generate"].params
        for name in parameter.opts
    }
    pages = README.read_text("utf-8")
    used = re.findall(r"gpt2cli generate ([^|#\n]*)", pages)
    assert used
    for line in used:
        for flag in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", line):
            assert flag in options or flag in ("--help", "-h"), line


def test_the_two_commands_are_there() -> None:
    text = README.read_text("utf-8")
    assert '```sh\npip install . && gpt2cli generate "Once upon a time"\n```' in text
    assert "```sh\npip install '.[test]' && pytest\n```" in text
