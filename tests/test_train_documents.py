"""Documents from files, whatever their form: nothing lost, nothing that is no text let through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2cli.errors import UsageError
from gpt2cli.train import documents
from gpt2cli.train.documents import DocumentPiece, Source, document_key, find_sources, read_pieces, survey

SEPARATOR = "<|endoftext|>"
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def source_of(path: Path) -> Source:
    return find_sources([path])[0]


def pieces_of(path: Path, *, field: str = "text", separator: str = SEPARATOR) -> list[DocumentPiece]:
    return list(read_pieces(source_of(path), field=field, separator=separator))


def joined(pieces: list[DocumentPiece]) -> list[str]:
    """The documents that ``pieces`` are parts of."""
    found: list[str] = []
    for piece in pieces:
        if piece.starts:
            found.append("")
        found[-1] += piece.text
    return found


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(path: Path, content: str | bytes, *, separator: str = SEPARATOR) -> list[str]:
    return joined(pieces_of(write(path, content), separator=separator))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and pieces of a few characters, so that every boundary is met."""
    monkeypatch.setattr(documents, "PIECE_CHARS", 8)
    monkeypatch.setattr(documents, "KEY_CHARS", 16)


def test_documents_between_separators(tmp_path: Path) -> None:
    """Blank ones are none; line ends around a document belong to the file, not to the text."""
    content = f"\n\none\n  two\n{SEPARATOR}\n \n{SEPARATOR}three{SEPARATOR}"
    assert texts(tmp_path / "a.txt", content) == ["one\n  two", "three"]


def test_without_a_separator_a_file_is_one_document(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.txt", f"a{SEPARATOR}b\n", separator="") == [f"a{SEPARATOR}b"]


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, newline: str) -> None:
    """A file from Windows has the tokens of one from Linux."""
    content = ("\ufeff" + f"one\ntwo\n{SEPARATOR}\nthree\n".replace("\n", newline)).encode()
    assert texts(tmp_path / "a.txt", content) == ["one\ntwo", "three"]


def test_jsonl_with_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    content = '\ufeff{"text": "one\\r\\n"}\r\n\r\n{"text": "two"}'.encode()
    assert texts(tmp_path / "a.jsonl", content) == ["one\r\n", "two"]


@pytest.mark.parametrize("before", range(2 * documents.PIECE_CHARS - 14, 2 * documents.PIECE_CHARS + 2))
def test_separator_across_blocks(tmp_path: Path, before: int) -> None:
    """A separator that lies across the end of a block was missed, and two documents became one."""
    first = ("ab c\n" * (before // 5 + 1))[:before].rstrip("\n")
    assert texts(tmp_path / "a.txt", first + SEPARATOR + "second") == [first, "second"]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("separator", ["<>", " | ", "-\n\n-", "\n\n\n\n", "a b", "x" * 40])
def test_separators_of_white_space_across_cuts(tmp_path: Path, separator: str) -> None:
    """Long documents are cut at line ends and words: never within a separator."""
    for length in range(60):
        first = ("wordwor" * 10)[:length] + "w"
        assert texts(tmp_path / "a.txt", first + separator + "end", separator=separator) == [first, "end"]


def test_long_documents_are_cut_at_line_ends(tmp_path: Path) -> None:
    """A book of any length is held in pieces, each beginning with the line end it was cut at."""
    document = "\n".join(f"line {n} of a long book." for n in range(250_000))
    pieces = pieces_of(write(tmp_path / "a.txt", document))
    assert "".join(piece.text for piece in pieces) == document
    assert [piece.starts for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert len(pieces) > 3
    assert all(piece.text.startswith("\n") for piece in pieces[1:])
    assert all(len(piece.text) < 3 * documents.PIECE_CHARS for piece in pieces)
    lines = pieces_of(write(tmp_path / "a.jsonl", json.dumps({"text": document})))
    assert "".join(piece.text for piece in lines) == document
    assert all(piece.text.startswith("\n") for piece in lines[1:])


def test_a_long_line_without_spaces(tmp_path: Path) -> None:
    document = "é" * (5 * documents.PIECE_CHARS + 3)
    assert texts(tmp_path / "a.txt", document) == [document]


def brute_force(content: str, separator: str) -> list[str]:
    """What the documents of a text are by definition."""
    content = content.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    parts = content.split(separator) if separator else [content]
    return [part.strip() for part in parts if part.strip()]


@pytest.mark.usefixtures("small_pieces")
@same_folder
@given(
    content=st.text(st.sampled_from("ab|é \n\r"), max_size=120),
    separator=st.sampled_from(["", "|", "||", "a|b", "|\n", "|\n\n|", " |"]),
)
def test_pieces_make_up_the_documents(tmp_path: Path, content: str, separator: str) -> None:
    """Apart from white space around a document."""
    pieces = pieces_of(write(tmp_path / "a.txt", "|" + content), separator=separator)
    assert [text.strip() for text in joined(pieces)] == brute_force("|" + content, separator)
    assert all(len(piece.text) <= 3 * 8 + len(separator) for piece in pieces)


@pytest.mark.usefixtures("small_pieces")
@same_folder
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_json_lines_are_exact(tmp_path: Path, found: list[str]) -> None:
    """Any text that JSON can hold, white space included."""
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": text}) for text in found))
    assert joined(pieces_of(path)) == [text for text in found if text.strip()]


def test_lone_surrogates(tmp_path: Path) -> None:
    """JSON can write them, UTF-8 cannot: the tokenizer would refuse the whole text."""
    path = write(tmp_path / "a.jsonl", r'{"text": "a\ud800b"}' + "\n" + r'{"text": "\ud83d\ude00"}')
    assert joined(pieces_of(path)) == ["a?b", "😀"]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("{", "line 3: not valid JSON", None),
        ("[" * 100_000, "line 3: not valid JSON", None),
        ('["text"]', "line 3: is not a JSON object", None),
        (
            '{"body": "a", "id": 1}',
            "line 3: has no field 'text'",
            "its fields: body, id; name one with --field",
        ),
        ("{}", "line 3: has no field 'text'", None),
        ('{"text": 3}', "line 3: the field 'text' is not a text", None),
        ('{"text": null}', "line 3: the field 'text' is not a text", None),
        ('{"text": "a\0"}', "binary, not text", None),
    ],
)
def test_damaged_json_lines(tmp_path: Path, line: str, message: str, hint: str | None) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n\n' + line + "\n")
    with pytest.raises(UsageError, match=message) as caught:
        pieces_of(path)
    assert caught.value.hint == hint
    assert "\n" not in str(caught.value)


def test_another_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", '{"text": 1, "body": "b"}\n')
    assert joined(pieces_of(path, field="body")) == ["b"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x89PNG\r\n", "not UTF-8"), (b"ab\xff", "not UTF-8"), ("ab".encode("utf-16"), "not UTF-8")],
)
def test_what_is_no_utf8(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        pieces_of(write(tmp_path / name, content))
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"\x7fELF\0\0", b"a" * 3_000_000 + b"\0"])
def test_binary(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="binary, not text"):
        pieces_of(write(tmp_path / "a.txt", content))


def test_empty_absent_and_irregular_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the file is empty"):
        find_sources([write(tmp_path / "a.txt", "")])
    with pytest.raises(UsageError, match=r"cannot read .*: No such file"):
        find_sources([tmp_path / "absent.txt"])
    with pytest.raises(UsageError, match="not a regular file"):
        find_sources([Path("/dev/null")])


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    source = source_of(write(tmp_path / "a.txt", "a"))
    source.path.unlink()
    with pytest.raises(UsageError, match="cannot read"):
        list(read_pieces(source, field="text", separator=""))


def test_folders(tmp_path: Path) -> None:
    """In the order of names, with text only; hidden files and folders are nobody's data."""
    for name in ("b.txt", "a/c.MD", "a/b.jsonl", ".hidden.txt", ".git/x.txt", "a/.cache/y.txt", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, "x")
    (tmp_path / "folder.txt").mkdir()
    found = find_sources([tmp_path, tmp_path / "c.png"])
    assert [source.name for source in found] == ["a/b.jsonl", "a/c.MD", "b.txt", "c.png"]
    assert {source.size for source in found} == {1}
    assert len({source.sha256 for source in found}) == 1


def test_a_hidden_folder_that_is_named(tmp_path: Path) -> None:
    """Only what is hidden below the folder that was given is left out."""
    folder = tmp_path / ".data"
    folder.mkdir()
    write(folder / "a.txt", "x")
    assert [source.name for source in find_sources([folder])] == ["a.txt"]


def test_a_folder_without_text(tmp_path: Path) -> None:
    write(tmp_path / "a.png", "x")
    with pytest.raises(UsageError, match="no text in this folder") as caught:
        find_sources([tmp_path])
    assert ".jsonl" in (caught.value.hint or "")


def test_survey_counts_bytes() -> None:
    found = survey([DocumentPiece("é", True), DocumentPiece(" b", False), DocumentPiece("c", True)])
    assert found.sizes == (4, 1)
    assert found.size == 5
    assert found.keys == (document_key("é b"), document_key("c"))


def test_key_ignores_white_space() -> None:
    assert document_key("a  b\n\nc ") == document_key("\ta b c")
    assert document_key("ab c") != document_key("a b c")
    assert len(document_key("")) == 16


@pytest.mark.usefixtures("small_pieces")
@same_folder
@given(st.text(st.sampled_from("ab \n"), min_size=1, max_size=80), st.integers(0, 40))
def test_key_does_not_depend_on_the_cut(tmp_path: Path, text: str, before: int) -> None:
    """The key was that of the first piece, which ends elsewhere in another file: duplicates leaked."""
    content = "x" * before + "|" + text + "|" + text.replace(" ", "\n \n") + "|\n\n" + text
    found = survey(pieces_of(write(tmp_path / "a.txt", content), separator="|"))
    lines = "\n".join(json.dumps({"text": t}) for t in (text, f"\n{text}\n"))
    found_lines = survey(pieces_of(write(tmp_path / "a.jsonl", lines)))
    keys = {*found.keys[bool(before) :], *found_lines.keys}
    assert keys == ({document_key(text)} if text.strip() else set())
