"""The tree of exceptions."""

from __future__ import annotations

import inspect
import re

import pytest

from gpt2cli import errors

LINE = re.compile(r"(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)(?: +(?P<code>\d+))?(?: {2,}\S.*)?")


def drawn_tree() -> dict[str, tuple[str | None, int | None]]:
    """Each class in the docstring of errors.py, with the class it hangs from and its exit code."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    above: list[tuple[int, str]] = []
    drawing = inspect.cleandoc(errors.__doc__ or "").split("::\n\n", 1)[1].split("\n\n``str")[0]
    for line in filter(None, inspect.cleandoc(drawing).splitlines()):
        match = LINE.fullmatch(line)
        assert match, line
        depth = len(match["indent"])
        above = [entry for entry in above if entry[0] < depth]
        code = int(match["code"]) if match["code"] else None
        tree[match["name"]] = (above[-1][1] if above else None, code)
        above.append((depth, match["name"]))
    return tree


def test_the_drawing_is_the_tree() -> None:
    """A class added or moved without its line in the drawing."""
    defined = {
        name: (
            None if cls.__base__ in (Exception, BaseException) else cls.__base__.__name__,
            getattr(cls, "exit_code", None),
        )
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if cls.__module__ == errors.__name__
    }
    assert drawn_tree() == defined


def test_a_signal_is_no_exception() -> None:
    """``except Exception`` in a library must not swallow a SIGINT."""
    assert not issubclass(errors.Signalled, Exception)
    assert issubclass(errors.Gpt2cliError, Exception)


def test_an_error_is_one_line_and_a_hint() -> None:
    error = errors.ModelNotFound("no model", hint="name one")
    assert (str(error), error.hint, error.exit_code) == ("no model", "name one", 3)
    assert errors.Unavailable("x").hint is None


@pytest.mark.parametrize("option", ["top_k", "temperature"])
def test_an_invalid_option_is_named_as_its_flag(option: str) -> None:
    error = errors.InvalidOption(option, "too large")
    assert str(error) == f"{option.replace('_', '-')}: too large"
    assert error.option == option
