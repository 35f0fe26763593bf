"""What the documents say is run: help pages, the man page, examples, links, pictures."""

from __future__ import annotations

import html
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from cli import command_paths
from support import REPOSITORY, native_available

from gpt2cli import errors
from gpt2cli.cli.app import COMMANDS as COMMANDS_OF_APP
from gpt2cli.cli.app import command_tree, main
from gpt2cli.cli.default_command import with_command

DOCS = REPOSITORY / "docs"
README, COMMANDS, MANUAL = REPOSITORY / "README.md", DOCS / "commands.md", DOCS / "gpt2cli.1"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
UPDATE = bool(os.environ.get("GPT2CLI_UPDATE"))
MARK = re.compile(r"(<!-- help: [^>]*-->\n)(.*?)(<!-- /help -->)", re.DOTALL)
PLACEHOLDER = "https://gpt2cli.example/"


@pytest.fixture(scope="module")
def tree() -> Any:
    return typer.main.get_command(command_tree())


def called(path: tuple[str, ...]) -> str:
    return " ".join(("gpt2cli", *path))


HELP = """
import contextlib, io, json, sys
from gpt2cli.cli.app import main
pages = []
for path in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as page:
        assert main([*path, "--help"]) == 0
    pages.append(page.getvalue())
print(json.dumps(pages))
"""


def help_pages(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """What ``--help`` prints of each command, by one process, 100 columns wide."""
    environ = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(paths)],
        capture_output=True,
        text=True,
        check=True,
        env=environ,
    )
    pages = json.loads(done.stdout)
    return ["\n".join(line.rstrip() for line in page.strip("\n").splitlines()) for page in pages]


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Help pages and the man page


def test_help_pages_are_current() -> None:
    """Renew them with ``GPT2CLI_UPDATE=1 pytest tests/test_docs.py``."""
    paths = list(command_paths())
    pages = "".join(
        f"\n## {called(path)}\n\n```text\n{page}\n```\n"
        for path, page in zip(paths, help_pages(paths), strict=True)
    )
    text = COMMANDS.read_text("utf-8")
    current = MARK.search(text)
    assert current is not None
    if UPDATE:
        COMMANDS.write_text(MARK.sub(lambda m: m[1] + pages + "\n" + m[3], text), "utf-8")
    else:
        assert current[2] == pages + "\n"


def test_every_command_is_in_the_list_of_commands() -> None:
    """Above the help pages they are listed by what one wants to do."""
    above = COMMANDS.read_text("utf-8").partition("<!-- help")[0]
    linked = set(re.findall(r"\(#(gpt2cli-[\w-]+)\)", above))
    assert linked == {slug(called(path)) for path in command_paths() if len(path) == 1}


def test_the_man_page_is_current() -> None:
    """Renew it with ``GPT2CLI_UPDATE=1 pytest tests/test_docs.py``."""
    page = script("manpage").page()
    if UPDATE:
        MANUAL.write_text(page, "utf-8")
    assert MANUAL.read_text("utf-8") == page


def plain(roff: str) -> str:
    """The words of a man page's source, one space between them."""
    lines = (re.sub(r"^\.[A-Z]+ ?", "", line) for line in roff.splitlines() if not line.startswith('.\\"'))
    text = " ".join(lines).replace(r"\&", "")
    for escape, character in ((r"\-", "-"), (r"\(aq", "'"), (r"\(ga", "`"), (r"\(ti", "~"), (r"\e", "\\")):
        text = text.replace(escape, character)
    return " ".join(text.split())


def manual_sections() -> dict[str, str]:
    """What the man page says of each command, and of the program itself under ``gpt2cli``."""
    first, *parts = MANUAL.read_text("utf-8").split("\n.SS ")
    sections = {"gpt2cli": plain(first)}
    for part in parts:
        name, _, rest = part.partition("\n")
        sections[name.strip('"').replace(r"\-", "-")] = plain(rest)
    return sections


def test_the_man_page_says_what_help_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every sentence of every ``--help``, as it is printed where no line has to be broken."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 2000)
    sections, paths = manual_sections(), list(command_paths())
    assert set(sections) == {called(path) for path in paths}
    for path in paths:
        assert main([*path, "--help"]) == 0
        page = capsys.readouterr().out
        own, _, below = page.partition("─ Commands ─")
        for sentence in said_in(own):
            assert sentence in sections[called(path)], called(path)
        for sentence in said_in(below):
            assert any(sentence in section for section in sections.values()), called(path)
        flags = re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(re.findall("^│ -.*?  ", own, re.MULTILINE)))
        assert flags and set(flags) <= set(re.findall(r"--[a-z-]+", sections[called(path)]))


def said_in(page: str) -> Iterator[str]:
    """The sentences of a help page: paragraphs, and what is said of each option."""
    for line in page.splitlines():
        if not line.startswith(("╭", "╰", " Usage: ")):
            # The last column; the man page puts defaults in another way.
            said = re.split(r"\s{2,}", line.strip("│ "))[-1]
            said = " ".join(re.sub(r"\s*\[(default|required).*", "", said).split())
            if said.strip("─╮╯"):
                yield said


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_man_reads_the_page_without_a_warning() -> None:
    done = subprocess.run(
        ["man", "--warnings", "-l", MANUAL],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "100"},
    )
    assert done.returncode == 0 and done.stderr == ""
    assert "EXIT STATUS" in done.stdout


def test_exit_codes_are_those_of_the_errors() -> None:
    found = {
        error.exit_code
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if hasattr(error, "exit_code")
    }
    assert {int(code) for code in script("manpage").EXIT_STATUS} == {0, *found}
    text = (DOCS / "scripting.md").read_text("utf-8")
    table = text.partition("| exit code |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    assert {int(code) for row in rows for code in row.split(", ")} == {0, *found}


# Examples


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    return [str(block) for block in found]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_python_examples_run(page: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, as a reader types them."""
    names = {"model_directory": tiny_model, "small_model_directory": tiny_model}
    for example in blocks(page, "python"):
        exec(compile(example, page.name, "exec"), names)
        assert capsys.readouterr().out.strip()


def words_of(line: str) -> Iterator[list[str]]:
    """The calls of our program in a line of shell: the words after ``gpt2cli``."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    call: list[str] | None = None
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            if call is not None:
                yield call
            call = None
        elif call is not None:
            call.append(word)
        elif word == "gpt2cli":
            call = []
    if call is not None:
        yield call


def check_call(tree: Any, words: list[str], where: str) -> None:
    """The command exists, and has the options."""
    command, words = tree, with_command(words, COMMANDS_OF_APP)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not getattr(command, "commands", None) or not words or words[0].startswith("-"), where
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    for word in words:
        if re.fullmatch(r"--?[a-z].*", word):
            assert word.partition("=")[0] in known, f"{where}: {word}"


def test_shell_examples_parse(tree: Any) -> None:
    """Every call in a shell example of the documents uses a command and options that exist."""
    count = 0
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                for words in words_of(line):
                    count += 1
                    check_call(tree, words, f"{page.name}: {line}")
    assert count > 60


def test_examples_of_the_help_pages_parse(tree: Any) -> None:
    for path in command_paths():
        command = tree
        for name in path:
            command = command.commands[name]
        for line in (command.epilog or "").splitlines():
            if line.startswith("  ") and "and in" not in line:
                for words in words_of(line):
                    check_call(tree, words, line)


# Form


def test_the_two_commands_are_there() -> None:
    """`.ci/run` takes the second one from the README."""
    text = README.read_text("utf-8")
    assert '```sh\npip install . && gpt2cli generate "Once upon a time"\n```' in text
    assert "```sh\npip install '.[test]' && pytest\n```" in text


def test_the_readme_is_for_people() -> None:
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= 300
    assert text.count("<!-- figures -->") == text.count("<!-- /figures -->") == 1
    linked = set(re.findall(r"\]\((?:docs/)?([\w.]+\.md)\)", text))
    assert {page.name for page in PAGES} - {"README.md"} <= linked


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    without_code = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target, _, anchor in (
        link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", without_code) if "://" not in link
    ):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}#{anchor}"


def test_project_urls_are_still_placeholders() -> None:
    """Whoever publishes the project puts its addresses into pyproject.toml and SECURITY.md, and here."""
    urls = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert set(urls) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(url.startswith(PLACEHOLDER) for url in urls.values())
    assert PLACEHOLDER in (REPOSITORY / "SECURITY.md").read_text("utf-8")


# Pictures


def words_in(svg: str) -> str:
    """What stands in a picture; a speed is another one each time."""
    text = "\n".join(html.unescape(part) for part in re.findall(r"<text[^>]*>(.*?)</text>", svg, re.DOTALL))
    return re.sub(r"[\d.]+ tokens/s", "… tokens/s", text.replace("\xa0", " "))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no ptys")
@pytest.mark.skipif(not native_available(), reason="the native library is not available")
@pytest.mark.parametrize("name", ["chat", "generate", "inspect", "write"])
def test_pictures_are_current(name: str) -> None:
    """Renew them with ``GPT2CLI_UPDATE=1 pytest -m 'slow or not slow' tests/test_docs.py``."""
    file, drawn = DOCS / f"{name}.svg", script("pictures").picture(name)
    if UPDATE and (not file.exists() or words_in(file.read_text("utf-8")) != words_in(drawn)):
        file.write_text(drawn, "utf-8")
    assert words_in(file.read_text("utf-8")) == words_in(drawn)
