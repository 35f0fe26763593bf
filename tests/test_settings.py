"""Settings: who wins, and a file that holds what was put into it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.options import GenerateOptions, LoadOptions
from gpt2cli.settings import (
    KEYS,
    Settings,
    Value,
    change_config_file,
    environment_name,
    known_key,
    parse_value,
    read_config_file,
    set_in_file,
    unset_in_file,
)

SAMPLES: dict[str, Value] = {
    "model": "gpt2",
    "max_new_tokens": 7,
    "temperature": 0.7,
    "top_k": 0,
    "top_p": 1e-05,
    "min_p": 0.25,
    "typical_p": 0.9,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "rng": "transformers",
    "overflow": "slide",
    "draft": "lookup",
    "device": "cpu",
    "precision": "int8",
    "threads": 2,
    "offline": True,
    "editing_mode": "vi",
    "suggest": True,
    "send_token": True,
    "quiet": False,
    "log": True,
}
HOSTILE = [
    '"',
    '"""',
    "'",
    "\\",
    '\\"',
    "\\u0041",
    "line\nline\r\n",
    "\t\b\f\0\x7f\x80\x85\u2028\u200b\u202e\ufeff",
    'x"\ntop_k = 5\n#',
    "é 字 😀 👩‍👩‍👧",
    "C:\\models\\gpt2",
    "[section]",
    " ",
    "\U0010ffff",
]


@pytest.fixture
def write_file() -> Callable[[str | bytes], Path]:
    """A function that writes config.toml."""

    def write(content: str | bytes) -> Path:
        path = paths.config_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_every_key_has_a_sample_here() -> None:
    assert SAMPLES.keys() == KEYS.keys()
    assert all(type(SAMPLES[key]) is KEYS[key].kind for key in KEYS)


def test_what_bears_an_options_name_is_that_option() -> None:
    """A key renamed on one side only would be ignored in silence."""
    options = {*GenerateOptions.__dataclass_fields__, *LoadOptions.__dataclass_fields__}
    others = {"model", "offline", "editing_mode", "suggest", "send_token", "quiet", "log"}
    assert KEYS.keys() - options == others


def test_flag_over_environment_over_file() -> None:
    change_config_file({"top_k": 1, "top_p": 0.1, "min_p": 0.1, "model": "file"})
    found = Settings.load({"GPT2CLI_TOP_P": "0.2", "GPT2CLI_MIN_P": "0.2", "GPT2CLI_QUIET": ""})
    flags = {"top_k": None, "top_p": None, "min_p": 0.3, "temperature": None}
    assert found.over(flags) == {"top_k": 1, "top_p": 0.2, "min_p": 0.3}
    sources = {key: setting.source for key in KEYS if (setting := found.get(key))}
    assert sources == {
        "model": "config.toml",
        "top_k": "config.toml",
        "top_p": "environment",
        "min_p": "environment",
    }
    assert found.value("quiet") is None


def test_a_flag_of_zero_or_false_is_a_flag() -> None:
    """``flag or setting`` would take a temperature of 0 for no flag."""
    found = Settings.load({"GPT2CLI_TEMPERATURE": "1.5", "GPT2CLI_OFFLINE": "1"})
    flags = {"temperature": 0.0, "offline": False}
    assert found.over(flags) == flags


@pytest.mark.parametrize("key", KEYS)
def test_the_environment_and_the_file_read_alike(key: str, write_file: Callable[[str], Path]) -> None:
    value = SAMPLES[key]
    set_in_file(key, value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    from_environment = Settings.load({environment_name(key): text}).get(key)
    change_config_file({key: value})
    from_file = Settings.load({}).get(key)
    assert from_environment is not None
    assert from_file is not None
    assert from_file.value == from_environment.value == value
    assert type(from_file.value) is type(from_environment.value) is KEYS[key].kind


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("offline", "YES", True),
        ("offline", " off ", False),
        ("temperature", "1", 1.0),
        ("temperature", "1e-3", 0.001),
        ("top_k", " 5 ", 5),
    ],
)
def test_texts_that_are_values(key: str, text: str, value: Value) -> None:
    parsed = parse_value(key, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("offline", "maybe"),
        ("temperature", "hot"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "-1"),
        ("top_k", "1.5"),
        ("top_k", "-1"),
        ("top_k", "9" * 5000),
        ("top_p", "0"),
        ("threads", "0"),
        ("rng", "dice"),
        ("device", "CPU"),
        ("model", ""),
    ],
)
def test_texts_that_are_not(key: str, text: str) -> None:
    """A wrong value must name where it stands: the user did not type it just now."""
    with pytest.raises(UsageError, match="GPT2CLI_X") as caught:
        parse_value(key, text, "GPT2CLI_X")
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["top-k", "top_k", " TOP-K "])
def test_a_key_is_found_however_it_is_written(text: str) -> None:
    assert known_key(text) == "top_k"


def test_an_unknown_key_lists_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        known_key("top_q")
    assert "top_k" in (caught.value.hint or "")


def test_the_file_holds_what_was_written() -> None:
    change_config_file(SAMPLES)
    assert read_config_file() == SAMPLES
    assert tomllib.loads(paths.config_file().read_text("utf-8")) == SAMPLES


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_survive(text: str) -> None:
    """A value that ends its own string could write further keys, or damage the file for good."""
    change_config_file({"model": text, "top_k": 3})
    assert tomllib.loads(paths.config_file().read_text("utf-8")) == {"model": text, "top_k": 3}


@given(strategies.text(strategies.characters(codec="utf-8"), min_size=1))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives(text: str) -> None:
    change_config_file({"model": text})
    assert read_config_file() == {"model": text}


@pytest.mark.parametrize("text", ["\udcff", "a\ud800b", os.fsdecode(b"/models/\xff")])
def test_a_lone_surrogate_is_refused_and_the_file_kept(text: str) -> None:
    """TOML cannot hold it: written as an escape it would make the whole file unreadable."""
    change_config_file({"top_k": 3})
    with pytest.raises(UsageError, match="model"):
        set_in_file("model", text)
    assert read_config_file() == {"top_k": 3}


@given(strategies.floats(0.001, allow_nan=False, allow_infinity=False))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_number_comes_back_to_the_last_bit(number: float) -> None:
    change_config_file({"temperature": number})
    assert read_config_file() == {"temperature": number}


def test_set_and_unset_keep_the_rest() -> None:
    set_in_file("top_k", 3)
    set_in_file("model", "gpt2")
    set_in_file("top_k", 4)
    assert read_config_file() == {"model": "gpt2", "top_k": 4}
    assert unset_in_file("top_k")
    assert not unset_in_file("top_k")
    assert read_config_file() == {"model": "gpt2"}


@pytest.mark.parametrize(
    "content",
    [
        "top_k = ",
        "top_k = 1\ntop_k = 2",
        "= 1",
        b"model = '\xff'",
        b"\xff\xfe\x00",
        "\0",
        "a = " + "[" * 5000,
        "temperature = nan",
        "temperature = inf",
        "temperature = true",
        "temperature = 1" + "0" * 400,
        "temperature = 0x" + "f" * 5000,
        "top_k = true",
        "top_k = 1.0",
        "top_k = -1",
        "top_k = [1]",
        "top_k = {a = 1}",
        "top_k = 0x" + "f" * 5000,
        "top_k = " + "9" * 5000,
        "top_k = 2020-01-01",
        "offline = 1",
        "offline = 'true'",
        "model = 5",
        "model = ''",
        "device = 'tpu'",
        "top-k = 5",
        "unknown = 5",
        "[sampling]\ntop_k = 5",
    ],
    ids=lambda content: repr(content)[:30],
)
def test_a_damaged_file_is_a_usage_error(content: str | bytes, write_file: Callable[..., Path]) -> None:
    """Every command reads the file: a traceback here would be one everywhere."""
    path = write_file(content)
    for load in (read_config_file, lambda: Settings.load({}), lambda: set_in_file("quiet", True)):
        with pytest.raises(UsageError) as caught:
            load()
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 300 + len(str(path))
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_an_unknown_key_in_the_file_is_named(write_file: Callable[..., Path]) -> None:
    write_file("temprature = 1.0")
    with pytest.raises(UsageError, match="temprature") as caught:
        read_config_file()
    assert "temperature" in (caught.value.hint or "")


def test_comments_and_order_are_kept(write_file: Callable[..., Path]) -> None:
    """`config set` once wrote the file anew, without them."""
    path = write_file("# mine\ntop_p  =  0.5 # so\n\n# and this\ntop_k=3\t# few\nmodel = 'x'")
    set_in_file("top_p", 0.25)
    set_in_file("quiet", True)
    set_in_file("top_k", 4)
    assert unset_in_file("model")
    wanted = "# mine\ntop_p  =  0.25 # so\n\n# and this\ntop_k=4\t# few\nquiet = true\n"
    assert path.read_text() == wanted


def test_two_at_once_lose_nothing() -> None:
    """Each read the file, changed its own key, and wrote the other's away."""
    whole = {key: SAMPLES[key] for key in KEYS}
    code = "import sys; from gpt2cli.settings import *; set_in_file(sys.argv[1], eval(sys.argv[2]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, key, repr(value)]) for key, value in whole.items()
    ]
    assert [process.wait(60) for process in processes] == [0] * len(whole)
    assert read_config_file() == whole


def test_no_file_is_no_settings() -> None:
    assert read_config_file() == {}
    assert not unset_in_file("top_k")
    assert not paths.config_file().exists()


def test_a_directory_in_the_place_of_the_file() -> None:
    paths.config_file().mkdir(parents=True)
    with pytest.raises(UsageError, match="config"):
        read_config_file()
    with pytest.raises(Gpt2cliError, match="config"):
        change_config_file({"top_k": 1})
    assert sorted(p.name for p in paths.config_file().parent.iterdir()) == ["config.toml", "state"]


def test_a_file_in_the_place_of_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPT2CLI_HOME", str(tmp_path / "file"))
    with pytest.raises(Gpt2cliError, match="cannot write"):
        change_config_file({"top_k": 1})


def test_a_link_is_kept(tmp_path: Path, write_file: Callable[..., Path]) -> None:
    """Who keeps his settings elsewhere and links them here would lose the link at the first ``set``."""
    elsewhere = tmp_path / "dotfiles.toml"
    write_file("top_k = 1\n").rename(elsewhere)
    paths.config_file().symlink_to(elsewhere)
    set_in_file("top_k", 2)
    assert paths.config_file().is_symlink()
    assert elsewhere.read_text() == "top_k = 2\n"


def test_a_failed_write_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced in one rename, and no temporary stays behind."""
    change_config_file({"top_k": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Gpt2cliError, match="No space left"):
        change_config_file({"top_k": 2})
    assert read_config_file() == {"top_k": 1}
    assert sorted(p.name for p in paths.config_file().parent.iterdir()) == ["config.toml", "state"]
