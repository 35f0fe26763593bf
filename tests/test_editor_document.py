"""The text of the editor: spans, undo, files, recovery, layout; pure data, without a terminal."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from gpt2cli.editor import layout
from gpt2cli.editor.document import Document, difference
from gpt2cli.editor.opened import OpenText
from gpt2cli.editor.panel import Facts, bar, rows_each, suggestion_lines
from gpt2cli.editor.provenance import provenance, read_provenance, sidecar_of
from gpt2cli.editor.recovery import Recovery
from gpt2cli.editor.spans import BEFORE, USER, Draw, Origin, Run, joined, part_of, run_of
from gpt2cli.editor.textfile import MAX_BYTES, Form, decoded, encoded
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.suggest.drawing import Drawing, Suggestion

TEXTS = st.text(alphabet="ab \n\té日👍\r", max_size=8)
FIRST = Draw(1, "gpt2", None, 7, {"top_k": 50})
SECOND = Draw(2, "gpt2", "abc", 8)


def characters(document: Document) -> list[tuple[str, Origin]]:
    origins = [run.origin for run in document.runs for _ in range(run.length)]
    return list(zip(document.text, origins, strict=True))


CHANGES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 6), TEXTS, st.sampled_from([USER, FIRST, SECOND])),
    max_size=12,
)


@given(CHANGES)
def test_spans_follow_every_change_and_undo_takes_all_back(changes: list[Any]) -> None:
    """Each character keeps its origin, whatever is replaced; undo and redo come by the same states."""
    document, removed_texts = Document(), set()
    states = [characters(document)]
    for at, removed, inserted, origin in changes:
        at = min(at, len(document.text))
        removed = min(removed, len(document.text) - at)
        before = characters(document)
        document.pause()
        document.replace(at, removed, inserted, origin)
        after = characters(document)
        new = after[at : at + len(inserted)]
        assert after == [*before[:at], *new, *before[at + removed :]]
        assert "".join(char for char, _ in new) == inserted
        assert all(own == origin for _, own in new) or inserted in removed_texts, (
            "only what was cut keeps its own"
        )
        assert document.runs == joined(document.runs), "neighbours of one origin are one run"
        removed_texts.add("".join(char for char, _ in before[at : at + removed]))
        if before != after or inserted:
            states.append(after)
    backwards = [characters(document)]
    while document.undo() is not None:
        backwards.append(characters(document))
    forwards = [characters(document)]
    while document.redo() is not None:
        forwards.append(characters(document))
    assert forwards == backwards[::-1]
    assert [state for n, state in enumerate(states) if not n or state != states[n - 1]] == [
        state for n, state in enumerate(forwards) if not n or state != forwards[n - 1]
    ]


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_difference_is_what_was_typed(head: str, old: str, new: str, tail: str) -> None:
    before, after = head + old + tail, head + new + tail
    at, removed, inserted = difference(before, after, len(head + new))
    assert before[:at] + inserted + before[at + removed :] == after
    if not old:
        assert (at, removed, inserted) == (len(head), 0, new), "the cursor tells which of two alike is new"
    at, removed, inserted = difference(before, after, 0)
    assert before[:at] + inserted + before[at + removed :] == after


def typed(document: Document, text: str) -> None:
    for char in text:
        document.replace(len(document.text), 0, char)


def test_undo_goes_by_words() -> None:
    document = Document()
    typed(document, "one two\nthree")
    texts = [document.text]
    while document.undo() is not None:
        texts.append(document.text)
    assert texts == ["one two\nthree", "one two\n", "one two", "one ", ""]
    assert document.redo() == 4 and document.text == "one "
    typed(document, "x")
    assert document.redo() is None, "what was undone is gone with the first new letter"


def test_deleted_letters_are_one_step() -> None:
    document = Document("abcdef")
    for at in (5, 4, 3):
        document.replace(at, 1, "")
    assert document.text == "abc" and document.undo() == 6 and document.text == "abcdef"
    for _ in range(2):
        document.replace(1, 1, "")
    assert document.text == "adef" and document.undo() == 3 and not document.modified


def test_a_suggestion_is_a_step_of_its_own_and_new_until_saved() -> None:
    document = Document("It ", run_of("It ", BEFORE))
    typed(document, "was")
    document.pause()
    document.replace(6, 0, " a dog", FIRST)
    document.pause()
    typed(document, "!")
    assert document.runs == (Run(3, BEFORE), Run(3, USER), Run(6, FIRST), Run(1, USER))
    assert document.is_new(FIRST) and not document.is_new(USER)
    document.saved()
    assert not document.is_new(FIRST) and not document.modified and document.next_number() == 2
    document.undo()
    document.undo()
    assert document.text == "It was" and document.modified


def test_what_the_model_wrote_stays_its_own_when_it_is_moved() -> None:
    document = Document()
    typed(document, "ab ")
    document.pause()
    document.replace(3, 0, "dog", FIRST)
    document.replace(2, 4, "")
    document.replace(0, 0, " dog")
    assert document.runs == (Run(1, USER), Run(3, FIRST), Run(2, USER))
    with pytest.raises(ValueError, match="no characters"):
        document.replace(5, 3, "")


@given(st.binary(max_size=40) | st.text(alphabet="a\r\n\ufeff日", max_size=12).map(str.encode))
def test_a_file_comes_back_byte_by_byte(data: bytes) -> None:
    """Byte-order mark, line ends of all kinds and mixed, final newline or none; bad UTF-8 is refused."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        with pytest.raises(UsageError, match="no UTF-8 text"):
            decoded(data, "f")
        return
    text, form = decoded(data, "f")
    assert encoded(text, form) == data


def test_line_ends_and_the_final_newline_are_kept_when_the_text_changes() -> None:
    text, form = decoded(b"\xef\xbb\xbfone\r\ntwo\r\n", "f")
    assert text == "one\ntwo" and encoded(text + "\nthree", form) == b"\xef\xbb\xbfone\r\ntwo\r\nthree\r\n"
    text, form = decoded(b"a\r\nb\nc", "f")
    assert text == "a\r\nb\nc" and encoded(text + "d", form) == b"a\r\nb\ncd", "mixed: as they are"
    assert encoded("new", Form()) == b"new\n" and encoded("", Form()) == b""


@given(CHANGES, st.booleans(), st.booleans(), st.booleans())
def test_provenance_comes_back(changes: list[Any], mark: bool, crlf: bool, final: bool) -> None:
    document = Document()
    for at, removed, inserted, origin in changes:
        at = min(at, len(document.text))
        inserted = inserted.replace("\r", "")
        document.replace(at, min(removed, len(document.text) - at), inserted, origin)
    form = Form(mark, crlf, final)
    data = encoded(document.text, form)
    record = json.loads(provenance("f.txt", document.text, form, document.runs))
    assert [span["start"] for span in record["spans"]] == [0, *(s["end"] for s in record["spans"])][:-1]
    assert record["bytes"] == len(data)
    assert not record["spans"] or record["spans"][-1]["end"] == len(data)
    by_model = b"".join(data[s["start"] : s["end"]] for s in record["spans"] if s["by"] == "model")
    written = "".join(c for c, origin in characters(document) if isinstance(origin, Draw))
    shown = by_model.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").decode()
    assert shown.removesuffix("\n") == written.removesuffix("\n")


def test_a_sidecar_is_read_and_only_for_its_own_content(tmp_path: Path) -> None:
    path, form = tmp_path / "f.txt", Form()
    runs = (Run(3, USER), Run(4, FIRST))
    data = encoded("one two", form)
    sidecar_of(path).write_bytes(provenance("f.txt", "one two", form, runs))
    assert read_provenance(path, data, "one two", form) == runs
    with pytest.raises(ValueError, match="another content"):
        read_provenance(path, b"other\n", "other", form)
    record = json.loads(sidecar_of(path).read_text())
    for field, value in {"spans": [[1]], "draws": [{"number": True}], "gpt2cli_provenance": 2}.items():
        sidecar_of(path).write_text(json.dumps({**record, field: value}))
        with pytest.raises(ValueError, match="provenance"):
            read_provenance(path, data, "one two", form)
    sidecar_of(path).unlink()
    assert read_provenance(path, data, "one two", form) is None


def opened(path: Path | None, **keywords: Any) -> OpenText:
    text = OpenText.open(path, **keywords)
    assert text.recovered() is None
    return text


def test_what_was_not_saved_comes_back(tmp_path: Path) -> None:
    """Every change is on the disk at once, with who made it; only the owner can read it."""
    path = tmp_path / "f.txt"
    path.write_bytes(b"one\r\n")
    lost = opened(path)
    lost.document.replace(3, 0, " two", FIRST)
    typed(lost.document, " end")
    lost.document.undo()
    lost.document.redo()
    (file,) = lost.recovery.path.parent.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    expected = characters(lost.document)
    with file.open("ab") as torn:
        torn.write(b'{"at":0,"rem')
    os.close(lost.recovery._descriptor)
    again = OpenText.open(path)
    found = again.recovered()
    assert found is not None and characters(found.document) == expected and found.base == "one"
    again.restore(found)
    assert again.document.modified and not again.changed_elsewhere()
    typed(again.document, "!")
    # A crash once more, after what was torn.
    os.close(again.recovery._descriptor)
    again = OpenText.open(path)
    found = again.recovered()
    assert found is not None and found.document.text == "one two end!"
    again.restore(found)
    again.save()
    assert path.read_bytes() == b"one two end!\r\n"
    again.close()
    assert not file.exists(), "nothing is left of a session that ended well"


def test_a_text_without_a_name_comes_back_and_gets_one(tmp_path: Path) -> None:
    lost = opened(None)
    typed(lost.document, "new")
    os.close(lost.recovery._descriptor)
    again = OpenText.open(None)
    found = again.recovered()
    assert found is not None and found.document.text == "new"
    again.restore(found)
    other = OpenText.open(None)
    assert other.recovered() is None, "the one that is open is nobody else's"
    other.close()
    with pytest.raises(UsageError):
        again.name_as(tmp_path / "absent" / "f.txt")
    assert again.path is None
    again.name_as(tmp_path / "f.txt")
    assert (tmp_path / "f.txt").read_text() == "new\n"
    again.close()
    assert opened(None).document.text == ""


def test_two_editors_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    first = opened(path)
    with pytest.raises(Gpt2cliError, match="open in another"):
        OpenText.open(path)
    path.write_text("by another program\n")
    assert first.changed_elsewhere()
    first.close()
    opened(path).close()


def test_a_recovery_file_that_is_damaged_recovers_nothing(tmp_path: Path) -> None:
    for content in (
        b"{}\n",
        b'{"write":1,"base":5}\n',
        b"\xff\n",
        b'{"write":1,"base":"a","runs":[[9,"user"]]}\n',
    ):
        recovery = Recovery.of(tmp_path / "f")
        os.write(recovery._descriptor, content)
        assert recovery.read() is None
        recovery.close()


def test_a_sidecar_that_no_longer_fits_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("one\n")
    text = opened(path, with_provenance=True)
    typed(text.document, " two")
    text.save()
    text.close()
    path.write_text("by another program\n")
    text = opened(path)
    assert any("begins anew" in note for note in text.notes)
    typed(text.document, "!")
    text.save()
    text.close()
    assert opened(path).keeps_provenance
    assert json.loads(sidecar_of(path).read_text())["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_text_that_has_become_too_large_is_not_saved_and_the_file_stays(tmp_path: Path) -> None:
    """Else it could never be opened again."""
    path = tmp_path / "f.txt"
    path.write_text("one\n")
    text = opened(path)
    text.document.replace(3, 0, "x" * MAX_BYTES, USER)
    with pytest.raises(UsageError, match="larger than 4 MiB"):
        text.save()
    assert path.read_text() == "one\n" and not text.changed_elsewhere()
    path.write_bytes(b"y" * (MAX_BYTES + 10))
    assert text.changed_elsewhere(), "another program may write more than is opened"
    text.close()


def test_a_failed_save_loses_nothing(tmp_path: Path) -> None:
    text = opened(tmp_path / "f.txt")
    typed(text.document, "words")
    (tmp_path / "f.txt").mkdir()
    with pytest.raises(Gpt2cliError):
        text.save()
    assert text.document.modified and text.recovery.read() is not None


WIDE = "日本語の文章 and words, 👍🏽 e\u0301 \t tab and\u200b a verylongwordwithoutanyspaceatall"


@pytest.mark.parametrize("width", [2, 3, 7, 20, 39])
@pytest.mark.parametrize(
    "text", ["", "\n", "one two three\n\nfour ", WIDE, "x" * 50, " " * 30 + "a", WIDE * 700]
)
def test_rows_are_the_text_and_fit(text: str, width: int) -> None:
    """Down and up meet the same rows; together they are the text; each place is in one of them."""
    rows = list(layout.rows_from(text, layout.row_at(text, 0, width), width))
    assert "".join(text[row.start : row.end] for row in rows) == text.replace("\n", "")
    for row in rows[:300]:
        part = layout.shown(text[row.start : row.end].rstrip(), 0)
        assert get_cwidth(part) <= max(width, 4) or row.end - row.start == 1
    above = [rows[-1]]
    while (row := layout.row_before(text, above[-1], width)) is not None:
        above.append(row)
    assert above[::-1] == rows
    for at in range(0, len(text) + 1, max(1, len(text) // 100)):
        row = layout.row_at(text, at, width)
        assert row in rows and row.start <= at <= row.end
        place = layout.place_in(text, row, layout.column_of(text, row, at))
        assert layout.row_at(text, place, width) == row


def test_the_cursor_is_always_among_the_rows() -> None:
    text = "one two three four five\n" * 500
    top = 0
    for at in (0, 200, 7000, 6990, 11999, 12000, 3, 5000):
        first = layout.top_for(text, top, at, 11, 5)
        rows = [row for row, _ in zip(layout.rows_from(text, first, 11), range(5), strict=False)]
        assert layout.row_at(text, at, 11) in rows
        top = first.start


def test_characters_of_several_code_points_are_one_step() -> None:
    text = "ae\u0301👍🏽👩\u200d💻b"
    stops, at = [0], 0
    while at < len(text):
        at = layout.boundary(text, at, forward=True)
        stops.append(at)
    assert stops == [0, 1, 3, 5, 8, 9]
    assert [layout.boundary(text, stop, forward=False) for stop in stops[1:]] == stops[:-1]


def test_nothing_reaches_the_terminal_raw() -> None:
    assert layout.shown("a\x1b[31m\x07\x9b\u202e\r", 0) == "a␛[31m␇\ufffd\ufffd␍"


@pytest.mark.parametrize("width", [*range(8, 60), 80, 120])
def test_bar_and_panel_fit(width: int) -> None:
    facts = Facts(
        name="ein 日本語 name.txt" * 3, modified=True, said="x" * 70, model="gpt2", keys="Tab suggests"
    )
    assert get_cwidth(bar(facts, width)) <= width
    drawing = Drawing(
        [Suggestion(1, "some words\nand 日本語 " * 9), Suggestion(2), Suggestion(3, "a")], wanted=3
    )
    rows = rows_each(24, 3, width, 24)
    pieces = suggestion_lines(drawing, 0, rows, width)
    lines = "".join(piece[1] for piece in pieces).split("\n")
    assert len(lines) == 3 * rows and max(map(get_cwidth, lines)) <= width
    assert part_of((Run(2, USER),), 1, 2) == (Run(1, USER),)
