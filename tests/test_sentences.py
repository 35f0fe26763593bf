"""Where a text ends that may have so many sentences, however it is cut into chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli import call
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.text.sentences import SentenceLimit


def run(most: int | None, chunks: list[str]) -> tuple[str, bool]:
    limit = SentenceLimit(most)
    return "".join(map(limit.push, chunks)), limit.stopped


@pytest.mark.parametrize(
    ("most", "text", "passed"),
    [
        (1, " One. Two.", " One."),
        (2, " One. Two! Three?", " One. Two!"),
        (1, 'He said "Go!" and went.', 'He said "Go!"'),
        (1, "(It was.) And", "(It was.)"),
        (1, "3.14 is pi. So", "3.14 is pi."),
        (1, "A heading\nA text.", "A heading"),
        (1, "\n\nOne.\nTwo", "\n\nOne."),
        (1, "... and then. Go", "... and then."),
        (2, "One...  Two?! Three", "One...  Two?!"),
        (1, "Never ends", "Never ends"),
        (1, "Ends here.", "Ends here."),
        (None, "One. Two.\n", "One. Two.\n"),
    ],
)
def test_where_a_sentence_ends(most: int | None, text: str, passed: str) -> None:
    assert run(most, [text]) == (passed, passed != text)
    assert run(most, [*text]) == (passed, passed != text)


@given(st.text(alphabet='aB.!? \n")', max_size=30), st.integers(1, 3), st.integers(0, 30))
def test_chunks_do_not_matter(text: str, most: int, cut: int) -> None:
    whole = run(most, [text])
    assert run(most, [*text]) == run(most, [text[:cut], text[cut:]]) == whole
    assert text.startswith(whole[0])


def test_generate_ends_after_so_many_sentences(tiny_model: Path) -> None:
    """The first sentences of the same text, and no token more than it takes to see their end."""
    long = call("generate", "--seed", "4", "--max-new-tokens", "120", "--json", "Once upon a time").document
    short = call("generate", "--seed", "4", "--max-sentences", "2", "--json", "Once upon a time").document
    text, cut = (document["choices"][0]["text"] for document in (long, short))
    assert run(2, [text]) == (cut, True)
    assert short["choices"][0]["finish_reason"] == "stop"
    ids = [document["choices"][0]["token_ids"] for document in (long, short)]
    assert ids[0][: len(ids[1])] == ids[1] and len(ids[1]) < len(ids[0])
    assert call("generate", "--max-sentences", "0", "a b").code == 2
