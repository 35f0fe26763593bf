"""Model cards: what is taken from them, and what a crafted one cannot do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.hub.card import MAX_BYTES, MAX_SHOWN, parse_card, read_card

# The build of gpt2's card and of distilgpt2's, in other words.
CARD = """---
language: en
license: mit
tags:
- exbert
---

# A model

Words of its own.

## Intended uses & limitations

You can use it for text.

### How to use

```python
# Limitations
secret()
```

### Limitations and bias

It is **biased**.

| a | b |
|---|---|

## Training data

A lot.

## Uses, Limitations and Risks

<details>
<summary>Click to expand</summary>

Hidden.<!-- a note --> Shown.

</details>

#### Out-of-scope Uses

Not for facts.

## Evaluation results

Good.
"""


def test_a_card() -> None:
    card = parse_card(CARD)
    assert card.licence == "mit"
    sections = {section.title: section.text for section in card.sections}
    assert sections == {
        "Intended uses & limitations": "You can use it for text.",
        "Limitations and bias": "It is **biased**.\n\n| a | b |\n|---|---|",
        "Uses, Limitations and Risks": "Click to expand\n\nHidden. Shown.",
        "Out-of-scope Uses": "Not for facts.",
    }


def test_nothing_is_taken_where_nothing_is_said() -> None:
    assert parse_card("# Model\n\nsome words\n\n## Training\n\nmore") == parse_card("")
    assert parse_card("") == parse_card("---\nlicense:\n---\n")


@pytest.mark.parametrize(
    ("line", "licence"),
    [("license: mit", "mit"), ('license: "apache-2.0"', "apache-2.0"), ("license: [mit]", "mit")],
)
def test_the_licence(line: str, licence: str) -> None:
    assert parse_card(f"---\n{line}\n---\n").licence == licence
    assert parse_card(f"\ufeff---\r\n{line}\r\n---\r\n").licence == licence
    assert parse_card(f"# No front matter\n{line}\n").licence is None
    assert parse_card(f"---\nx: 1\n{line}\n").licence is None


def test_escapes_do_not_come_through() -> None:
    card = parse_card("---\nlicense: m\x1b]0;x\x07it\n---\n# Bias \x1b[2J\n\x1b[31mred\x9b\u202e\n")
    text = repr(card)
    assert "\\x1b" not in text and "\\x9b" not in text and "202e" not in text


def test_a_long_card_is_cut() -> None:
    card = parse_card("".join(f"# Limitations {n}\n{'x' * 5000}\n" for n in range(100)))
    assert sum(len(section.text) for section in card.sections) <= MAX_SHOWN + 100


@pytest.mark.parametrize(
    "piece", ["<", "<!--", "<a", "# ", "#", "```\n", "\n \n", "\n", "-->", "license: ", "---\n", "(<!--)" * 3]
)
def test_no_card_takes_long(piece: str) -> None:
    text = "# Bias\n" + piece * (MAX_BYTES // len(piece))
    started = time.perf_counter()
    parse_card(text)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x" * (MAX_BYTES + 1), None])
def test_a_card_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "README.md").write_bytes(content)
    card = read_card(tmp_path)
    assert card is None or card.sections == ()
    (tmp_path / "d" / "README.md").mkdir(parents=True)
    assert read_card(tmp_path / "d") is None


markdown = st.lists(
    st.one_of(
        st.sampled_from(
            ["# ", "## ", "---\n", "license: ", "```\n", "~~~", "<!--", "-->", "<b>", "Bias", "\n"]
        ),
        st.text(max_size=12),
    ),
    max_size=40,
).map("".join)


@given(markdown)
def test_any_card_can_be_shown(text: str) -> None:
    card = parse_card(text)
    for shown in (card.licence or "", *(f"{s.title}\n{s.text}" for s in card.sections)):
        assert all(char in "\n\t" or not 0 <= ord(char) < 32 for char in shown)
        assert not {"\x7f", "\x9b", "\u202e"} & set(shown)
