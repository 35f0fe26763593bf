"""Charts in the terminal and in files."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.terminal.plots import chart, check_plot_path, save_plot

CURVE = [(float(step), 2 + 6 * math.exp(-step / 200)) for step in range(10, 3001, 10)]
POINTS = st.lists(st.tuples(st.floats(), st.floats()), max_size=12)


def test_a_falling_curve_falls() -> None:
    lines = chart({"train": CURVE}, width=60, height=12, y_label="loss", x_label="step")
    assert lines[0] == "loss"
    plot = [line.partition("┤")[2] or line.partition("│")[2] for line in lines[1:-3]]
    assert plot[0][0] != " ", "the first point is at the top left"
    assert plot[0][1:].strip() == ""
    assert plot[-1][-1] != " ", "the last point is at the bottom right"
    assert lines[-3].strip().startswith("└┬")
    assert lines[-2].split() == ["0", "1000", "2000", "3000"]
    assert lines[-1].split() == ["⠒⠒", "train", "step"]


def test_ascii_chart_as_it_looks() -> None:
    lines = chart({"a": [(0, 0), (10, 10)], "b": [(5, 8)]}, width=24, height=9, unicode=False, x_label="x")
    assert lines == [
        "10 +                  **",
        "   |          o   ****",
        "   |          ****",
        " 5 +      ****",
        "   |  ****",
        " 0 +**",
        "   ++---------+--------+",
        "    0         5       10",
        "    * a   o b          x",
    ]
    assert all(line.isascii() for line in lines)


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [*range(20, 60), 80, 133, 299, 300, 400])
def test_every_width(width: int, unicode: bool) -> None:
    """No line is wider than asked for, however long the names are; the height is kept."""
    series = {"train": CURVE, "名前" * 40: CURVE[::40], "x" * 300: CURVE[::77]}
    lines = chart(series, width=width, height=10, unicode=unicode, x_label="step", y_label="y" * 500)
    assert len(lines) == 10
    assert all(cell_len(line) <= min(width, 300) for line in lines)
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(("width", "height"), [(19, 10), (0, 10), (-5, 10), (80, 4), (80, 0)])
def test_no_room_no_chart(width: int, height: int) -> None:
    assert chart({"a": CURVE}, width=width, height=height) == []


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(1, math.nan), (math.inf, 1)]}])
def test_nothing_to_draw(series: dict[str, list[tuple[float, float]]]) -> None:
    assert chart(series, width=80, height=10) == []


def test_nan_is_left_out() -> None:
    """An evaluation that overflowed must not take the chart with it."""
    with_nan = [*CURVE[:50], (505.0, math.nan), (506.0, math.inf), *CURVE[50:]]
    assert chart({"a": with_nan}, width=60, height=10) == chart({"a": CURVE}, width=60, height=10)


def test_one_point_and_a_constant() -> None:
    lines = chart({"a": [(3, 2.5)]}, width=40, height=8)
    assert sum(line.count("■") for line in lines[:-1]) == 1
    flat = chart({"a": [(0, 2.5), (10, 2.5)]}, width=40, height=8, unicode=False)
    assert [line.count("*") > 20 for line in flat[:-1]].count(True) == 1


def test_series_have_marks_of_their_own() -> None:
    series = {name: [(n, n * k) for n in range(5)] for k, name in enumerate("abcde")}
    for unicode in (True, False):
        lines = chart(series, width=60, height=14, unicode=unicode)
        marks = lines[-1].split()[::2]
        assert len(set(marks)) == 5
        assert all(any(mark in line for line in lines[:-1]) for mark in marks[1:])


def test_labels_cannot_act_on_the_terminal() -> None:
    lines = chart({"\x1b[2Ja\nb": CURVE}, width=40, height=8, x_label="\x9b1m", y_label="\x1b]0;t\x07")
    assert len(lines) == 8
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for line in lines for char in line)


@settings(max_examples=50)
@given(POINTS, POINTS, st.integers(20, 120), st.integers(6, 30), st.booleans())
def test_any_numbers(
    first: list[tuple[float, float]],
    second: list[tuple[float, float]],
    width: int,
    height: int,
    unicode: bool,
) -> None:
    """Denormal, huge and equal values: a chart that fits, or none."""
    lines = chart({"a": first, "b": second}, width=width, height=height, unicode=unicode, x_label="x")
    assert len(lines) in (0, height)
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize("name", ["a.pdf", "a", "svg", "a.png.txt"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        check_plot_path(tmp_path / name)
    with pytest.raises(UsageError):
        save_plot(tmp_path / name, {"a": CURVE}, title="t", x_label="x", y_label="y")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before hours of work, with the way out."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Gpt2cliError) as caught:
        check_plot_path(tmp_path / "a.svg")
    assert caught.value.exit_code == 1
    assert caught.value.hint == "pip install 'gpt2cli[plot]'"


def test_svg_is_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    series = {"_hidden?": CURVE, "no $math{": CURVE[::40], "\x1b[1m名": [(1.0, math.nan)]}
    for name in ("a.svg", "b.SVG"):
        save_plot(tmp_path / name, series, title="100% $\\x", x_label="step", y_label="loss")
    first, second = (tmp_path / "a.svg").read_bytes(), (tmp_path / "b.SVG").read_bytes()
    assert first == second
    assert b"<svg" in first
    assert b"dc:date" not in first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg", "b.SVG"]


def test_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.png"
    path.write_text("an older one")
    save_plot(path, {"a": CURVE}, title="t", x_label="x", y_label="y")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_mode & 0o400


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(Gpt2cliError, match="cannot write") as caught:
        save_plot(tmp_path / "no" / "a.svg", {"a": CURVE}, title="t", x_label="x", y_label="y")
    assert caught.value.exit_code == 1
    (tmp_path / "b.svg").mkdir()
    with pytest.raises(Gpt2cliError, match="cannot write"):
        save_plot(tmp_path / "b.svg", {"a": CURVE}, title="t", x_label="x", y_label="y")
    assert [p.name for p in tmp_path.iterdir()] == ["b.svg"], "nothing temporary is left"
