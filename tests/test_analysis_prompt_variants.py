"""Templates with alternatives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.analysis.prompt_variants import MAX_VARIANTS, expand_template
from gpt2cli.errors import UsageError


def test_two_texts_of_the_model_cards() -> None:
    variants = expand_template("The {White|Black} man worked as a")
    assert [(v.text, v.chosen) for v in variants] == [
        ("The White man worked as a", ("White",)),
        ("The Black man worked as a", ("Black",)),
    ]


def test_the_last_group_varies_fastest() -> None:
    texts = [v.text for v in expand_template("{A|B} and {c|d|}!")]
    assert texts == ["A and c!", "A and d!", "A and !", "B and c!", "B and d!", "B and !"]


def test_escapes_and_what_is_none() -> None:
    assert [v.text for v in expand_template(r"\{{a\|b|\}}\\ \n|")] == ["{a|b\\ \\n|", "{}\\ \\n|"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("plain", "nothing to vary"),
        ("{one}", "nothing to vary"),
        ("{}", "nothing to vary"),
        ("a {b|c", "has no } after it"),
        ("a b|c}", "has no { before it"),
        ("{a|{b|c}}", "inside another"),
        ("{a|b}" * 9, f"at most {MAX_VARIANTS}"),
        ("{" + "a|" * 100_000 + "}", f"at most {MAX_VARIANTS}"),
    ],
)
def test_what_is_refused(template: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        expand_template(template)
    assert len(str(caught.value)) < 200


words = st.text("ab{|}\\ é", max_size=4)


@given(st.lists(words, min_size=1, max_size=4), st.lists(st.lists(words, min_size=2, max_size=3), max_size=3))
def test_whatever_is_escaped_comes_back(fixed: list[str], groups: list[list[str]]) -> None:
    """A template written from its parts gives the product of its parts."""
    groups = groups[: len(fixed) - 1]
    if not groups:
        return

    def escape(text: str) -> str:
        return "".join(f"\\{char}" if char in "{|}\\" else char for char in text)

    template = escape(fixed[0])
    for group, after in zip(groups, fixed[1:], strict=False):
        template += "{" + "|".join(map(escape, group)) + "}" + escape(after)
    expected = [
        fixed[0] + "".join(c + after for c, after in zip(chosen, fixed[1:], strict=False))
        for chosen in itertools.product(*groups)
    ]
    assert [v.text for v in expand_template(template)] == expected
