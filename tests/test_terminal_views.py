"""What `inspect` and `compare` draw: legible everywhere, and safe whatever a model says."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import Color

from gpt2cli.terminal import page, views
from gpt2cli.terminal.canvas import _THEMES, Canvas, draw_svg
from gpt2cli.terminal.csvout import csv_text
from gpt2cli.terminal.heat import COLOURS, INK, Span, heat_lines, legend
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.visible import visible

HOSTILE = "\x1b]0;title\x07\x1b[2J<script>alert(1)</script>&amp;\"'\u202e\x9b31m\x00\ufffe\uffff[bold]:smile:"
spans_of = st.lists(
    st.builds(Span, st.text(max_size=12), st.one_of(st.none(), st.integers(0, 9))), max_size=12
)


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [value / 255 for value in Color.parse(colour).get_truecolor()]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", COLOURS[1:])
def test_letters_stand_out_from_every_colour(colour: str) -> None:
    """WCAG AA asks for 4.5; they bring their own background, so a dark and a light terminal are alike."""
    assert contrast(INK, colour) >= 6


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_dim_text_of_an_svg_is_legible(theme: str) -> None:
    svg = draw_svg([views.remark("dim")], width=40, title="t", theme=theme)  # type: ignore[arg-type]
    ground = _THEMES[theme].background_color.hex
    found = re.findall(r"gpt2cli-r\d+ \{ fill: (#\w+)", svg)
    assert found
    assert all(contrast(colour, ground) >= 4.5 for colour in found)


@given(spans_of, st.integers(2, 60))
def test_every_line_fits_and_no_character_is_lost(spans: list[Span], width: int) -> None:
    lines = heat_lines(spans, width, marks=False)
    assert all(cell_len(line.plain) <= width for line in lines)
    shown = "".join(line.plain for line in lines).replace("\u25cc", "")
    assert shown == "".join(visible(span.text) for span in spans).replace("\u25cc", "")


@given(spans_of, st.integers(2, 60))
def test_each_piece_has_one_mark_under_its_beginning(spans: list[Span], width: int) -> None:
    """Without colour, as many digits as pieces that something predicted, in their order."""
    lines = heat_lines(spans, width, marks=True)
    assert len(lines) % 2 == 0
    marks = [line.plain for line in lines[1::2]]
    found = [mark for line in marks for mark in line.replace(" ", "")]
    wide = [span for span in spans if not span.text.startswith("\u25cc")]
    if len(wide) == len(spans):
        assert found == ["·" if span.level is None else str(span.level) for span in spans]
    assert all(cell_len(line) <= width for line in marks)


def test_marks_as_they_look() -> None:
    spans = [Span("Once", None), Span(" upon", 0), Span(" a", 3), Span(" submarine", 9), Span("\n", 2)]
    spans += [Span("名", 4), Span("\x1b", 5), Span("é", 1)]
    assert [line.plain for line in heat_lines(spans, 20, marks=True)] == [
        "Once upon a ",
        "·    0    3",
        "submarine↵",
        "9        2",
        "名␛é",
        "4 51",
    ]


def test_the_legend_fits_eighty_columns_and_fewer() -> None:
    for measure in ("probability", "rank", "entropy"):
        for colours in (True, False):
            assert cell_len(legend(measure, colours=colours).plain) <= 80


@given(st.text())
def test_visible_is_safe_and_loses_nothing(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", shown)


def items() -> list[object]:
    columns = [views.Column(HOSTILE, HOSTILE, 3, (HOSTILE,)), views.Column("b", "text\n" + HOSTILE, None)]
    rows = [[HOSTILE, views.Shade(HOSTILE, 4), views.Entries([HOSTILE, "x y"])]]
    heat = heat_lines([Span(HOSTILE, 5), Span("\n", None)], 40, marks=True)
    drawn: list[object] = [*heat, views.heading(HOSTILE), views.remark(HOSTILE)]
    return [*drawn, views.Listing([HOSTILE, "b", "c"], rows), *views.side_by_side(columns, 60)]


class Tty(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("environ", [{"TERM": "xterm"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_nothing_reaches_a_terminal_but_colours(environ: dict[str, str]) -> None:
    terminal = Terminal(None, Tty(), None, {"TERM": "xterm-256color", **environ})
    canvas = Canvas(terminal, on_screen=True)
    text = canvas.draw(items())  # type: ignore[arg-type]
    styled = len(environ) == 1 and environ.get("TERM") == "xterm"
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text) if styled else text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", bare)
    assert "[bold]:smile:" in bare.replace("\n", "")


@pytest.mark.parametrize("columns", [20, 33, 79, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    canvas = Canvas(Terminal(None, Tty(), None, {"NO_COLOR": "1"}), on_screen=True)
    text = "The quick brown fox jumps over it. 名前名前名前 " * 5
    texts = [views.Column(f"model {n}", text, 40, ("0.5 bits per byte · 20 tokens",)) for n in range(3)]
    drawn = canvas.draw([*views.side_by_side(texts, canvas.width), views.heading(text)])
    assert all(cell_len(line) <= columns for line in drawn.splitlines())
    stands_beside = any("model 0" in line and "model 2" in line for line in drawn.splitlines())
    assert stands_beside == (columns >= 76)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_svg_is_xml_of_its_own(theme: str) -> None:
    """Whatever the text: well-formed, no script, nothing fetched."""
    svg = draw_svg(items(), width=60, title=HOSTILE, theme=theme)  # type: ignore[arg-type]
    root = ET.fromstring(svg)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "script" not in tags and "image" not in tags
    assert "url(http" not in svg and "@font-face" not in svg and "href" not in svg
    assert "alert(1)" in "".join(root.itertext())


class Reader(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_escapes_everything() -> None:
    parts = [
        page.paragraph(HOSTILE),
        page.section(HOSTILE),
        page.heat([(Span(HOSTILE, 4), HOSTILE), (Span("\n", None), HOSTILE)]),
        page.table([HOSTILE, "n"], [[HOSTILE, HOSTILE]], right=(1,)),
        page.columns([(HOSTILE, HOSTILE, 5, [HOSTILE])]),
        page.legend("low", "high"),
    ]
    whole = page.page(HOSTILE, parts)
    reader = Reader()
    reader.feed(whole)
    allowed = "html head meta title style body h1 h2 h3 p div span table tr th td"
    assert set(reader.tags) <= set(allowed.split())
    names = {name for name, _ in reader.attributes}
    assert names <= {"lang", "charset", "name", "content", "http-equiv", "class", "title", "data-level"}
    assert "http" not in whole.replace("http-equiv", "")
    assert "<script>alert(1)</script>" in reader.text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", whole)


@given(st.lists(st.lists(st.one_of(st.text(max_size=9), st.integers(), st.none()), min_size=2, max_size=2)))
def test_csv_comes_back_and_is_no_formula(rows: list[list[object]]) -> None:
    """One apostrophe taken off, a cell is what it was, sanitised; none begins as a formula does."""
    read = list(csv.reader(io.StringIO(csv_text(("a", "b"), rows), newline="")))
    assert read[0] == ["a", "b"]
    assert len(read) == len(rows) + 1
    for before, after in zip(rows, read[1:], strict=True):
        for value, cell in zip(before, after, strict=True):
            if isinstance(value, str):
                assert not cell.lstrip().startswith(("=", "+", "-", "@"))
                assert cell.removeprefix("'") == views.sanitize(value)
            else:
                assert cell == ("" if value is None else str(value))


@pytest.mark.parametrize("bad", ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "\x1b=1", "\r=1", "\uff1d1", "'x"])
def test_formulas_get_an_apostrophe(bad: str) -> None:
    assert csv_text(("a",), [[bad]]).splitlines()[1].startswith(("'", "\"'"))
