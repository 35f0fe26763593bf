"""Tokenizers of other families than GPT-2's, against transformers on the same files."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import series
from test_tokenizer import mixed_texts
from tokenizer_kinds import CHAT_TOKENS, KINDS, charsmap, gpt1
from tokenizers import Tokenizer as Library

from gpt2cli.api.answers import Offsets
from gpt2cli.errors import Gpt2cliError, ModelFileError
from gpt2cli.text.charsmap import check_charsmap
from gpt2cli.text.detokenizer import Detokenizer
from gpt2cli.text.tokenizer import Tokenizer

ADDED = [*CHAT_TOKENS, "<think>", "<s>", "</s>", "<x>", " word", "<|user|>\n ", "<0x41>", "</w>", "ﬁ①\x07"]
Both = tuple[Tokenizer, Any]


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    from transformers import PreTrainedTokenizerFast

    directory = KINDS[request.param](tmp_path_factory.mktemp("kind") / "m")
    return load(directory), PreTrainedTokenizerFast.from_pretrained(directory)


def load(directory: Path) -> Tokenizer:
    found = Tokenizer.from_directory(directory)
    assert found is not None
    return found


def texts(count: int) -> list[str]:
    rng = random.Random(1)
    found = mixed_texts(count)
    return [text + rng.choice(ADDED) + text[::-1] if rng.random() < 0.5 else text for text in found]


def streamed(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


def whole(reference: Any, ids: Sequence[int]) -> str:
    text: str = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def test_ids_are_those_of_transformers(both: Both) -> None:
    """The bos of a template included; a special token that was typed stays text where it is to."""
    tokenizer, reference = both
    for text in texts(series(1000, 200)):
        assert tokenizer.encode(text, special_tokens=True) == reference.encode(text), text
        assert tokenizer.encode(text) == reference.encode(text, split_special_tokens=True), text


def test_streams_are_full_decodes(both: Both) -> None:
    """Of texts and of any ids; what is shown is at all times a beginning of it."""
    tokenizer, reference = both
    rng = random.Random(2)
    size = len(reference)
    some = [tokenizer.encode(text, special_tokens=True) for text in texts(series(500, 100))]
    some += [rng.choices(range(size), k=rng.randint(0, 30)) for _ in range(series(1000, 200))]
    some.append(rng.choices(range(size), k=2000))
    for ids in some:
        expected, shown = whole(reference, ids), ""
        assert tokenizer.decode(ids) == expected
        for text in streamed(tokenizer, ids):
            shown += text
            assert expected.startswith(shown), ids
        assert shown == expected, ids


def test_only_whole_characters_are_shown(both: Both) -> None:
    tokenizer, reference = both
    for text in ("a😀b", "👩‍👩‍👧 é字 ß", "한국어 😀😀"):
        ids = tokenizer.encode(text)
        if "\ufffd" not in whole(reference, ids):
            assert not any("\ufffd" in piece for piece in streamed(tokenizer, ids))


def test_a_text_that_goes_on_after_a_prompt(both: Both) -> None:
    """The space before its first word is not lost, as it is where the ids drawn are decoded alone."""
    tokenizer, reference = both
    for text in texts(series(500, 100)):
        ids = tokenizer.encode(text)
        cut = len(ids) // 2
        while cut > 0 and tokenizer.is_part_of_character(ids[cut - 1]):
            cut -= 1
        before, after = ids[:cut], ids[cut:]
        begun = whole(reference, before)
        if not begun.endswith("\ufffd") and not tokenizer.byte_level:
            assert begun + "".join(streamed(tokenizer, after, before)) == whole(reference, ids), text


def test_the_bytes_of_tokens_are_those_of_the_text(both: Both) -> None:
    tokenizer, reference = both
    for text in ("the cat sat", "Größe 😀 字", "a\n\nb", "1234 x"):
        ids = tokenizer.encode(text, template=False)
        data = b"".join(map(tokenizer.token_bytes, ids))
        assert data.decode().strip(" ") == whole(reference, ids).strip(" ") or "<unk>" in data.decode()


def test_gpt1_without_a_tokenizer_json(tmp_path: Path) -> None:
    """Its two files, which GPT-2 has too, are told apart by the end of a word."""
    directory = gpt1(tmp_path / "m")
    (directory / "config.json").write_text('{"model_type": "openai-gpt"}')
    one = load(directory)
    Library.from_file(str(directory / "tokenizer.json")).model.save(str(directory))
    (directory / "tokenizer.json").unlink()
    other = load(directory)
    for text in mixed_texts(100):
        assert one.encode(text) == other.encode(text)
    assert other.decode(other.encode("The Cat sat")) == "the cat sat"


def test_two_files_of_another_family(tmp_path: Path) -> None:
    """Qwen's would be read, with another way to cut words than its own."""
    directory = gpt1(tmp_path / "m")
    Library.from_file(str(directory / "tokenizer.json")).model.save(str(directory))
    (directory / "tokenizer.json").unlink()
    (directory / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ModelFileError, match="how a 'qwen2' cuts") as caught:
        Tokenizer.from_directory(directory)
    assert caught.value.hint and "tokenizer.json" in caught.value.hint


def test_a_sentencepiece_file_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(ModelFileError, match=r"sentencepiece file, tokenizer\.model") as caught:
        Tokenizer.from_directory(tmp_path)
    assert caught.value.hint and "tokenizer.json" in caught.value.hint


@pytest.mark.parametrize("own", [False, True])
def test_bos_is_as_tokenizer_json_says(tmp_path: Path, own: bool) -> None:
    """It counts for nothing where there is a tokenizer.json, whether that has a template or not."""
    from transformers import PreTrainedTokenizerFast

    directory = KINDS["llama 2"](tmp_path / "m")
    table = json.loads((directory / "tokenizer.json").read_text())
    config = json.loads((directory / "tokenizer_config.json").read_text())
    if not own:
        (directory / "tokenizer.json").write_text(json.dumps({**table, "post_processor": None}))
    for bos, eos in [(True, True), (True, False), (False, True), (False, False)]:
        content = {**config, "add_bos_token": bos, "add_eos_token": eos}
        (directory / "tokenizer_config.json").write_text(json.dumps(content))
        reference: Any = PreTrainedTokenizerFast.from_pretrained(directory)
        assert load(directory).encode("the cat") == reference.encode("the cat")


def test_a_map_of_characters_that_leads_astray() -> None:
    """Each is a panic of the library at some prompt, or memory without end."""
    sound = charsmap({"ﬁ": "fi", "½": "1\u20442"})
    assert check_charsmap(sound) is None
    data = base64.b64decode(sound)
    units = [int.from_bytes(data[4 + 4 * n : 8 + 4 * n], "little") for n in range((len(data) - 4) // 4)]
    leaf = next(n for n, unit in enumerate(units) if unit >> 31)

    def changed(at: int, value: int) -> str:
        return base64.b64encode(
            data[: 4 + 4 * at] + value.to_bytes(4, "little") + data[8 + 4 * at :]
        ).decode()

    wrong = [changed(0, 0x7FFFFFFF & ~0x100), changed(leaf, 1 << 31 | 9999)]
    wrong += ["", "AAAA", "é", "/wAAAA==", sound[:100], changed(-1, 2**32 - 1)]
    texts_ = len(data) - len(b"fi\x001\xe2\x81\x842\x00")
    assert data[texts_:].startswith(b"fi")
    wrong.append(changed(leaf, 1 << 31 | 5))
    assert all(check_charsmap(each) is not None for each in wrong)
    assert check_charsmap(None) is not None


def test_damaged_files(both: Both, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes changed, cut and doubled: refused in one line, or the tokenizer works."""
    tokenizer, _ = both
    rng = random.Random(3)
    data = tokenizer._backend.to_str().encode()
    for _ in range(series(50, 8)):
        spoilt = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(spoilt))
            kind = rng.randrange(3)
            if kind == 0:
                spoilt[at] = rng.randrange(256)
            elif kind == 1:
                del spoilt[at : at + rng.choice([1, 10, len(spoilt)])]
            else:
                spoilt[at:at] = spoilt[max(0, at - 30) : at]
            if not spoilt:
                break
        (tmp_path / "tokenizer.json").write_bytes(bytes(spoilt))
        try:
            found = load(tmp_path)
            ids = found.encode("the ﬁ cat 😀 e\u0301")
        except Gpt2cliError as error:
            assert "\n" not in str(error)
            continue
        assert "".join(streamed(found, ids)) == found.decode(ids)
    assert capfd.readouterr().err == ""


def test_places_of_tokens_in_a_text(both: Both) -> None:
    """The first of a text may lose the space before it; the others stand where they say."""
    tokenizer, _ = both
    for text in texts(50):
        ids = tokenizer.encode(text)
        shown, offsets = tokenizer.decode(ids), Offsets(tokenizer, begins=True)
        places = [(offsets.next(token), token) for token in ids]
        visible = [(place, token) for place, token in places if token not in tokenizer.hidden]
        assert not visible or (visible[0][0] == 0 and visible[-1][0] <= len(shown))
        # What ends a text may lose one, too.
        for place, token in visible[1:-1]:
            piece = tokenizer.token_bytes(token).decode("utf-8", "replace")
            assert "\ufffd" in piece or shown.startswith(piece, place), (text, place, piece)
