"""Pulling from a loopback Hub, by the table of faults that a pull must survive."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapters import CONFIG as ADAPTER_CONFIG
from adapters import WEIGHTS as ADAPTER_WEIGHTS
from adapters import make_adapter
from cli import Outcome, call, run, start
from hub_server import (
    HubServer,
    Repository,
    body,
    close,
    drip,
    flip,
    hub_server,
    ignore_range,
    model_files,
    reset,
    slow,
    stall,
    status,
    then,
)
from support import make_model, series, tensors_of, write_json

from gpt2cli.hub import pull as pull_module
from gpt2cli.hub.manifest import read_manifest
from gpt2cli.hub.pull import PullOptions
from gpt2cli.hub.transport import Policy

NAME = "owner/model"
WEIGHTS = "model.safetensors"
MEBIBYTE = 2**20
FAST = Policy(first_wait_s=0.01, most_wait_s=0.02, stall_s=0.3, longest_wait_s=5, retries=3, answer_s=2)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that both this process and those it starts are pointed to."""
    from huggingface_hub import close_session, constants

    with hub_server() as server:
        for name, value in (("HF_ENDPOINT", server.url), ("HF_HUB_OFFLINE", "0"), ("NO_PROXY", "*")):
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield server
        close_session()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulls in this process wait for hundredths of seconds."""
    monkeypatch.setattr(pull_module, "PullOptions", functools.partial(PullOptions, policy=FAST))


@pytest.fixture(scope="session")
def small(tiny_model: Path) -> dict[str, bytes]:
    """The files of a repository of 150 kB, with things that are not wanted."""
    more = {"README.md": b"# A card\n", "tf_model.h5": b"x" * 50, "onnx/model.onnx": b"y" * 50}
    return model_files(tiny_model, **more)


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same with 4 MB of weights."""
    return model_files(make_model(tmp_path_factory.mktemp("big") / "model", n_embd=192))


def store() -> Path:
    return Path(os.environ["GPT2CLI_HOME"]) / "models"


def model_directory(repository: Repository) -> Path:
    return store() / repository.name.replace("/", "--") / repository.commit


def part_of(repository: Repository, path: str = WEIGHTS) -> Path:
    folder = store() / ".partial" / repository.name.replace("/", "--") / repository.commit
    return folder / f"{path}.part"


def assert_whole(repository: Repository) -> None:
    """The model is in the store, byte for byte, and its manifest says so."""
    directory = model_directory(repository)
    manifest = read_manifest(directory.with_suffix(".json"))
    assert manifest is not None
    assert {f.path for f in manifest.files} == {path.name for path in directory.iterdir()}
    assert {"config.json", WEIGHTS} <= {f.path for f in manifest.files}
    for file in manifest.files:
        content = (directory / file.path).read_bytes()
        assert content == repository.files[file.path]
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def assert_nothing_pulled() -> None:
    """No model is in the store, whole or not."""
    folders = [path for path in store().glob("*") if path.name != ".partial"]
    assert folders == []


def assert_one_line_error(outcome: Outcome, code: int) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    lines = [line for line in outcome.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert len([line for line in lines if line.startswith("error:")]) == 1
    assert "Traceback" not in outcome.err


def test_huggingface_hub_itself_works_against_the_server(
    hub: HubServer, small: dict[str, bytes], tmp_path: Path
) -> None:
    """So the server is known to speak the protocol."""
    from huggingface_hub import HfApi, snapshot_download

    repository = hub.add(NAME, small)
    directory = Path(snapshot_download(NAME, cache_dir=tmp_path / "cache", token=False))
    assert directory.name == repository.commit
    found = {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    assert found == small
    assert any(request.host == "files" for request in hub.requests)
    info = HfApi(token=False).model_info(NAME, files_metadata=True)
    assert info.sha == repository.commit
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    assert sizes == {path: len(content) for path, content in small.items()}


def test_a_model_comes_whole(hub: HubServer, small: dict[str, bytes]) -> None:
    repository = hub.add(NAME, small)
    outcome = run("pull", NAME)
    assert (outcome.code, outcome.out) == (0, "")
    assert_whole(repository)
    manifest = read_manifest(model_directory(repository).with_suffix(".json"))
    assert manifest is not None
    assert manifest.source == {
        "kind": "hub",
        "endpoint": hub.url,
        "repository": NAME,
        "commit": repository.commit,
    }
    assert manifest.refs == ("main",)
    verified = {file.path: file.verified for file in manifest.files}
    assert verified[WEIGHTS] == "sha256 from the Hub"
    assert verified["config.json"] == "git blob sha1 from the Hub"
    assert not hub.gets("tf_model.h5") and not hub.gets("model.onnx")
    assert list((store() / ".partial").glob("*/*")) == []
    assert f"{NAME} is now the model used without -m" in outcome.err
    text = call("generate", "-q", "--greedy", "--max-new-tokens", "2", "ab")
    assert text.code == 0


def test_a_second_pull_fetches_nothing(hub: HubServer, small: dict[str, bytes]) -> None:
    hub.add(NAME, small)
    assert call("pull", NAME).code == 0
    before = len(hub.requests)
    again = call("pull", NAME)
    assert again.code == 0 and "there already" in again.err and "is now the model" not in again.err
    assert [r.path.partition("?")[0] for r in hub.requests[before:]] == [f"/api/models/{NAME}/revision/main"]


def test_a_damaged_file_is_fetched_again_and_only_that(hub: HubServer, small: dict[str, bytes]) -> None:
    repository = hub.add(NAME, small)
    assert call("pull", NAME).code == 0
    vocab = model_directory(repository) / "vocab.json"
    vocab.write_bytes(vocab.read_bytes()[:-1] + b"?")
    before = hub.bytes_sent(WEIGHTS)
    assert call("pull", NAME).code == 0
    assert_whole(repository)
    assert hub.bytes_sent(WEIGHTS) == before


def test_revisions_and_refs(hub: HubServer, small: dict[str, bytes]) -> None:
    """``main`` moves on; the commit it was stays reachable by its digits."""
    old = hub.add(NAME, small)
    assert call("pull", NAME).code == 0
    new = hub.add(NAME, {**small, "README.md": b"# Another card\n"})
    new.refs.add("v2")
    assert call("pull", f"{NAME}@v2").code == 0
    assert call("pull", NAME).code == 0
    for repository in (old, new):
        assert_whole(repository)
    refs = {
        repository.commit: read_manifest(model_directory(repository).with_suffix(".json")).refs  # type: ignore[union-attr]
        for repository in (old, new)
    }
    assert refs == {old.commit: (), new.commit: ("v2", "main")}
    assert call("pull", NAME, "--revision", old.commit).code == 0
    assert_one_line_error(call("pull", NAME, "--revision", "v9"), 3)
    assert_one_line_error(call("pull", f"{NAME}@v2", "--revision", "v2"), 2)
    assert_one_line_error(call("pull", f"{NAME}@../v2"), 2)


def test_an_adapter_comes_as_one(hub: HubServer, tiny_model: Path, tmp_path: Path) -> None:
    """By `pull`, and by itself where it is named; it makes no default, and is checked before it enters."""
    adapter = make_adapter(tmp_path / "a", tiny_model)
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    more = {"README.md": b"# A card", "config.json": b"{}", "optimizer.pt": b"x", "tokenizer.json": b"{}"}
    repository = hub.add("owner/voice", {**files, **more})
    done = call("pull", "owner/voice")
    assert done.code == 0 and "used without -m" not in done.err, done.err
    directory = model_directory(repository)
    assert {path.name for path in directory.iterdir()} == {*files, "README.md"}
    same = ("--seed", "1", "--max-new-tokens", "5", "ab")
    found = call("generate", "-m", f"{tiny_model}+owner/voice", *same)
    assert (
        found.code == 0 and found.out == call("generate", "-m", tiny_model, "--adapter", adapter, *same).out
    )
    hub.add("owner/other", files)
    done = call("generate", "-m", tiny_model, "--adapter", "owner/other", *same)
    assert (done.code, done.out) == (0, found.out), done.err
    for name, bad in (("cut", files[ADAPTER_WEIGHTS][:-4]), ("none", None)):
        hub.add(f"owner/{name}", {**files, ADAPTER_WEIGHTS: bad} if bad else {ADAPTER_CONFIG: b"{}"})
        outcome = call("pull", f"owner/{name}")
        assert outcome.code == 5 and "Traceback" not in outcome.err, outcome.err
        assert not (store() / f"owner--{name}").exists()


def test_shards_and_a_renamed_repository(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = model_files(make_model(tmp_path / "m", shards=3))
    repository = hub.add("openai-community/other", files)
    hub.renamed["openai-community/gpt2"] = "openai-community/other"
    assert call("pull", "gpt2").code == 0
    directory = store() / "openai-community--gpt2" / repository.commit
    assert {path.name for path in directory.iterdir()} == set(files)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sharded", "pickle"])
def test_another_architecture(hub: HubServer, tmp_path: Path, form: str) -> None:
    """Its shards, or its pickle as safetensors; what is told of it, and that it runs."""
    import torch
    from family_models import write_base

    model = write_base(tmp_path, "llama") / ("sharded" if form == "sharded" else "single")
    if form == "pickle":
        torch.save(tensors_of(model), model / "pytorch_model.bin")
        (model / WEIGHTS).unlink()
    repository = hub.add(NAME, model_files(model))
    if form == "pickle":
        assert call("pull", NAME).code == 5
    outcome = call("pull", NAME, *(["--allow-pickle"] if form == "pickle" else []))
    assert outcome.code == 0, outcome.err
    expected = {WEIGHTS if name == "pytorch_model.bin" else name for name in repository.files}
    assert {path.name for path in model_directory(repository).iterdir()} == expected
    (told,) = (each for each in call("list", "--json").document["models"] if each["name"] == NAME)
    assert (told["parameters"], told["problem"], told["precision"]) == (32_224, None, "fp32")
    assert call("verify", NAME).code == 0
    assert call("generate", "-m", NAME, "--max-new-tokens", "3", "ab").code == 0


# What a connection does.


@pytest.mark.parametrize("fault", [close, reset], ids=["closed", "reset"])
def test_a_broken_connection_is_resumed_where_it_broke(
    hub: HubServer, big: dict[str, bytes], fast: None, fault: Callable[[int], Any]
) -> None:
    repository = hub.add(NAME, big)
    size = len(big[WEIGHTS])
    hub.script(WEIGHTS, fault(size // 3), fault(size // 3), fault(0))
    outcome = call("pull", NAME)
    assert outcome.code == 0, outcome.err
    assert_whole(repository)
    assert hub.bytes_sent(WEIGHTS) <= size + 2 * MEBIBYTE
    ranges = [request.headers.get("range") for request in hub.gets(WEIGHTS)]
    assert ranges[0] is None and all(ranges[2:])
    if fault is close:
        assert ranges == [None, f"bytes={size // 3}-", f"bytes={size // 3 * 2}-", f"bytes={size // 3 * 2}-"]
    assert all(r.headers.get("if-range") for r in hub.gets(WEIGHTS)[1:] if r.headers.get("range"))


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub: HubServer, big: dict[str, bytes]) -> None:
    repository = hub.add(NAME, big)
    hub.script(WEIGHTS, close(100_000), ignore_range())
    assert run("pull", NAME).code == 0
    assert_whole(repository)


def test_a_file_that_changes_during_the_pull_is_read_from_the_start(
    hub: HubServer, big: dict[str, bytes], fast: None
) -> None:
    """The server puts other weights under the same commit, and says so in its listing from then on."""
    repository = hub.add(NAME, big)
    other = big[WEIGHTS][:-4] + b"\0\0\0\0"

    def change() -> None:
        repository.files = {**big, WEIGHTS: other}
        raise ConnectionAbortedError

    hub.script(WEIGHTS, then(1_000_000, change))
    outcome = call("pull", NAME)
    assert outcome.code == 0, outcome.err
    assert_whole(repository)


def test_a_stall_and_a_drip_are_given_up_and_resumed(
    hub: HubServer, big: dict[str, bytes], fast: None
) -> None:
    repository = hub.add(NAME, big)
    hub.script(WEIGHTS, stall(200_000, 2.0), drip(300_000, 0.05))
    began = time.monotonic()
    outcome = call("pull", NAME)
    assert outcome.code == 0, outcome.err
    assert time.monotonic() - began < 5
    assert_whole(repository)
    assert len(hub.gets(WEIGHTS)) == 3


# What a server answers.


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (status(401, x_error_code="RepoNotFound"), 4, "does not exist, or it is private"),
        (status(403), 4, "does not exist, or it is private"),
        (status(403, x_error_code="GatedRepo"), 4, "gated"),
        (status(404), 3, "not found"),
        (status(418), 4, "418"),
        (status(429, retry_after="7200"), 4, "try again in 7200 s"),
        (body(b"<html>Log in</html>"), 4, "not the Hub's"),
        (status(302, location="file:///etc/passwd"), 4, "redirect"),
        (status(302, location="http://[half"), 4, "redirect"),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
def test_an_answer_that_is_final(hub: HubServer, fast: None, fault: Any, code: int, said: str) -> None:
    hub.script("api", fault)
    outcome = call("pull", NAME)
    assert_one_line_error(outcome, code)
    assert said in outcome.err
    assert_nothing_pulled()


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_an_answer_that_may_pass_is_asked_for_again(
    hub: HubServer, small: dict[str, bytes], fast: None, code: int
) -> None:
    repository = hub.add(NAME, small)
    hub.script("api", status(code))
    hub.script(WEIGHTS, status(code), status(code))
    assert call("pull", NAME).code == 0
    assert_whole(repository)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_that_stays_broken(hub: HubServer, small: dict[str, bytes], fast: None, code: int) -> None:
    """What has come is kept, and the next run needs no more than the rest."""
    repository = hub.add(NAME, small)
    hub.script(WEIGHTS, close(50_000), *[status(code)] * 8)
    assert_one_line_error(call("pull", NAME), 4)
    assert_nothing_pulled()
    assert part_of(repository).stat().st_size == 50_000
    hub.faults.clear()
    outcome = call("pull", NAME)
    assert outcome.code == 0 and "already there" in outcome.err
    assert hub.gets(WEIGHTS)[-1].headers["range"] == "bytes=50000-"
    assert_whole(repository)


def test_retry_after_is_obeyed(hub: HubServer, small: dict[str, bytes], fast: None) -> None:
    repository = hub.add(NAME, small)
    hub.script(WEIGHTS, status(429, retry_after="1"))
    began = time.monotonic()
    assert call("pull", NAME).code == 0
    assert time.monotonic() - began >= 1
    assert_whole(repository)


def test_nobody_listens(hub: HubServer, fast: None) -> None:
    hub.close()
    assert_one_line_error(call("pull", NAME), 4)


@pytest.mark.parametrize("path", [WEIGHTS, "vocab.json", "config.json"])
@pytest.mark.parametrize("kind", ["wrong bytes", "login page"])
def test_what_is_not_the_file_never_enters_the_store(
    hub: HubServer, small: dict[str, bytes], fast: None, path: str, kind: str
) -> None:
    """Once: it is tried again. Twice: exit 5."""
    repository = hub.add(NAME, small)
    fault = flip(len(small[path]) // 2) if kind == "wrong bytes" else body(b"<html>Log in</html>")
    hub.script(path, fault, fault)
    assert_one_line_error(call("pull", NAME), 5)
    assert_nothing_pulled()
    assert not part_of(repository, path).exists() or kind == "login page"
    hub.script(path, fault)
    assert call("pull", NAME).code == 0
    assert_whole(repository)


def test_a_login_page_does_not_cost_what_has_come(hub: HubServer, big: dict[str, bytes], fast: None) -> None:
    hub.add(NAME, big)
    hub.script(WEIGHTS, close(3_000_000), body(b"<html>Log in</html>"))
    assert call("pull", NAME).code == 0
    assert hub.bytes_sent(WEIGHTS) == len(big[WEIGHTS])


# Hostile servers.


def snapshot(root: Path) -> dict[str, bytes]:
    """Everything below ``root`` but the store and what holds the settings: a first pull makes a default."""
    inside = store()
    return {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and inside not in path.parents and path.stem != "config"
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"etag": '"../../../../x"'},
        {"etag": '"' + "a" * 41 + '"'},
        {"etag": '"' + "A" * 40 + '"'},
        {"etag": "\u00e9" * 40},
        {"x-repo-commit": "../../x"},
        {"x-repo-commit": "0" * 40},
        {"content-length": "-1"},
    ],
    ids=lambda headers: next(iter(headers.items()))[1][:10],
)
def test_hostile_headers_are_refused(
    hub: HubServer, small: dict[str, bytes], fast: None, headers: dict[str, str]
) -> None:
    hub.add(NAME, small)
    root = Path(os.environ["GPT2CLI_HOME"]).parent
    before = snapshot(root)
    hub.head_headers["config.json"] = dict(headers)
    outcome = call("pull", NAME)
    assert outcome.code in (4, 5), outcome.err
    assert_one_line_error(outcome, outcome.code)
    assert not hub.gets("config.json")
    assert_nothing_pulled()
    assert snapshot(root) == before


@pytest.mark.parametrize(
    "path",
    [
        "../../x",
        "/etc/x",
        "a/../../x",
        "..",
        "",
        "a\\..\\x",
        "a\0b",
        "a\x1b]0;x\x07",
        "./x",
        "a//b",
        "\ud800",
    ],
)
def test_hostile_file_names_are_refused(
    hub: HubServer, small: dict[str, bytes], fast: None, path: str
) -> None:
    hub.add(NAME, small)
    entry = {"rfilename": path, "size": 1, "blobId": "0" * 40}
    hub.answer = lambda answer: {**answer, "siblings": [*answer["siblings"], entry]}
    outcome = call("pull", NAME)
    assert_one_line_error(outcome, 5)
    assert "\x1b" not in outcome.err
    assert not store().exists()
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "x.bin", "a/b.safetensors", "gone.safetensors", 7]
)
def test_hostile_shard_names_are_refused(hub: HubServer, tmp_path: Path, fast: None, name: Any) -> None:
    directory = make_model(tmp_path / "m", shards=2)
    index = directory / "model.safetensors.index.json"
    raw = json.loads(index.read_bytes())
    raw["weight_map"]["transformer.wte.weight"] = name
    write_json(index, raw)
    hub.add(NAME, model_files(directory))
    assert_one_line_error(call("pull", NAME), 5)
    assert_nothing_pulled()
    assert not [r for r in hub.requests if r.path.endswith("00002.safetensors")]


@pytest.mark.slow
def test_malformed_answers(hub: HubServer, small: dict[str, bytes], fast: None) -> None:
    """Some hundred answers of the API, broken in one place each: a clean error, or a whole model."""
    repository = hub.add(NAME, small)
    rng = random.Random(0)
    junk = [
        None,
        True,
        -1,
        10**30,
        1.5,
        "",
        "x" * 300,
        "../x",
        [],
        {},
        [[]],
        {"sha256": 1},
        "\ud800",
        "\x1b[2J",
    ]
    root = Path(os.environ["GPT2CLI_HOME"]).parent
    before = snapshot(root)
    for _ in range(80):

        def spoil(answer: dict[str, Any]) -> Any:
            raw = json.loads(json.dumps(answer))
            where: Any = raw
            while True:
                keys = list(where) if isinstance(where, dict) else list(range(len(where)))
                key = rng.choice(keys)
                if isinstance(where[key], dict | list) and where[key] and rng.random() < 0.8:
                    where = where[key]
                    continue
                if rng.random() < 0.2 and isinstance(where, dict):
                    del where[key]
                else:
                    where[key] = rng.choice(junk)
                break
            encoded = json.dumps(raw).encode()
            return encoded[: rng.randrange(len(encoded))] if rng.random() < 0.1 else encoded

        hub.answer = spoil
        outcome = call("pull", "-q", NAME)
        assert outcome.code in (0, 3, 4, 5), outcome.err
        assert "Traceback" not in outcome.err and "defect" not in outcome.err, outcome.err
        assert "\x1b" not in outcome.err
        if outcome.code:
            assert outcome.err.startswith("error: ")
    assert snapshot(root) == before
    for manifest in store().glob("*/*.json"):
        assert manifest.stem == repository.commit
    hub.answer = lambda answer: answer
    assert call("pull", NAME).code == 0


@pytest.mark.slow
def test_malformed_headers(hub: HubServer, small: dict[str, bytes], fast: None) -> None:
    """The same for the headers of HEAD and GET."""
    hub.add(NAME, small)
    rng = random.Random(1)
    names = ["etag", "x-repo-commit", "x-linked-etag", "x-linked-size", "content-length", "location"]
    values = [
        "",
        "x",
        "-1",
        "1e9",
        "9" * 40,
        '"',
        "W/",
        "../..",
        "\u00ff",
        "0",
        "http://[",
        "//",
        "a" * 9000,
        None,
    ]
    for _ in range(40):
        path = rng.choice(["config.json", WEIGHTS, "merges.txt"])
        hub.head_headers = {path: {rng.choice(names): rng.choice(values)}}
        if rng.random() < 0.3:
            code = rng.choice([200, 206, 204, 300, 304, 416])
            hub.script(path, status(code, content_range=str(rng.choice(values))))
        outcome = call("pull", "-q", NAME)
        assert outcome.code in (0, 3, 4, 5), outcome.err
        assert "Traceback" not in outcome.err and "defect" not in outcome.err, outcome.err
        hub.faults.clear()
        for manifest in store().glob("*/*.json"):
            manifest.unlink()


# What kind of repository it is.


def test_no_causal_model_is_refused_before_its_weights_come(hub: HubServer, small: dict[str, bytes]) -> None:
    hub.add(NAME, {**small, "config.json": b'{"model_type": "t5"}'})
    outcome = call("pull", NAME)
    assert_one_line_error(outcome, 5)
    assert f"{NAME}: config.json" in outcome.err and "t5" in outcome.err
    assert not hub.gets(WEIGHTS)
    assert list((store() / ".partial").glob("*/*")) == []


@pytest.mark.parametrize("gone", ["config.json", WEIGHTS])
def test_a_repository_without_a_model(hub: HubServer, small: dict[str, bytes], gone: str) -> None:
    hub.add(NAME, {path: content for path, content in small.items() if path != gone})
    outcome = call("pull", NAME)
    assert_one_line_error(outcome, 5)
    assert gone in outcome.err


def test_weights_that_do_not_fit_the_config_are_refused(hub: HubServer, small: dict[str, bytes]) -> None:
    """The hashes are right; it is the repository that is broken."""
    config = json.loads(small["config.json"])
    hub.add(NAME, {**small, "config.json": json.dumps({**config, "n_layer": 3}).encode()})
    assert_one_line_error(call("pull", NAME), 5)
    assert_nothing_pulled()


def pickled(directory: Path) -> dict[str, bytes]:
    """The model as older repositories have it: a pickle, with the tied head in it."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(directory / WEIGHTS)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    path = directory.parent / "pytorch_model.bin"
    torch.save(tensors, path)
    files = model_files(directory)
    del files[WEIGHTS]
    return {**files, path.name: path.read_bytes()}


def test_a_pickle_is_refused_or_converted(hub: HubServer, tmp_path: Path) -> None:
    directory = make_model(tmp_path / "m")
    repository = hub.add(NAME, pickled(directory))
    refused = call("pull", NAME)
    assert_one_line_error(refused, 5)
    assert "hint: " in refused.err and "--allow-pickle" in refused.err
    assert not hub.gets("pytorch_model.bin")
    assert run("pull", NAME, "--allow-pickle").code == 0
    pulled = model_directory(repository)
    assert (pulled / WEIGHTS).exists() and not (pulled / "pytorch_model.bin").exists()
    manifest = read_manifest(pulled.with_suffix(".json"))
    assert manifest is not None
    assert manifest.source["converted_from"][0]["path"] == "pytorch_model.bin"
    (weights,) = (file for file in manifest.files if file.path == WEIGHTS)
    assert weights.verified.startswith("converted here from pytorch_model.bin")
    texts = [
        call("generate", "-q", "-m", model, "--greedy", "--max-new-tokens", "8", "ab").out
        for model in (NAME, directory)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_who_may_read_the_store(hub: HubServer, tmp_path: Path, umask: int) -> None:
    """What was converted could be read by its owner alone; directories by all, whatever the umask."""
    repository = hub.add(NAME, pickled(make_model(tmp_path / "m")))
    before = os.umask(umask)
    try:
        assert call("pull", NAME, "--allow-pickle").code == 0
        assert call("import", tmp_path / "m", "--name", "mine").code == 0
        assert call("export", NAME, tmp_path / "out").code == 0
    finally:
        os.umask(before)
    folders = (model_directory(repository), store() / "mine", tmp_path / "out")
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    assert len(paths) > 15
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_pickle_with_code_in_it_is_refused(hub: HubServer, small: dict[str, bytes]) -> None:
    evil = b"cos\nsystem\n(S'echo hacked > /tmp/hacked'\ntR."
    files = {path: content for path, content in small.items() if path != WEIGHTS}
    hub.add(NAME, {**files, "pytorch_model.bin": evil})
    assert_one_line_error(call("pull", NAME, "--allow-pickle"), 5)
    assert_nothing_pulled()


# The token.


def tokens(hub: HubServer) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {"hub": set(), "files": set()}
    for request in hub.requests:
        found[request.host].add(request.headers.get("authorization"))
    return found


@pytest.mark.parametrize("where", ["environment", "file"])
def test_the_token_goes_nowhere_unless_asked_and_never_to_another_host(
    hub: HubServer, small: dict[str, bytes], where: str
) -> None:
    secret = "hf_" + "s" * 20
    hub.add(NAME, small)
    environ = {**os.environ}
    if where == "environment":
        environ["HF_TOKEN"] = secret
    else:
        path = Path(os.environ["HF_HOME"]) / "token"
        path.parent.mkdir(parents=True)
        path.write_text(secret)
    outcome = run("pull", NAME, "--debug", env=environ)
    assert outcome.code == 0
    assert tokens(hub) == {"hub": {None}, "files": {None}}
    asked = run(
        "pull",
        NAME,
        "--debug",
        env={**environ, "GPT2CLI_SEND_TOKEN": "1", "GPT2CLI_HOME": environ["GPT2CLI_HOME"] + "2"},
    )
    assert asked.code == 0
    assert tokens(hub) == {"hub": {None, f"Bearer {secret}"}, "files": {None}}
    for path in Path(environ["GPT2CLI_HOME"]).parent.rglob("*"):
        if path.is_file() and path.name != "token":
            assert secret.encode() not in path.read_bytes()
    assert secret not in outcome.err + asked.err


def test_a_token_that_cannot_be_one_is_not_shown(hub: HubServer) -> None:
    environ = {**os.environ, "HF_TOKEN": "hf_se\u00e9cret", "GPT2CLI_SEND_TOKEN": "1"}
    outcome = run("pull", NAME, "--debug", env=environ)
    assert outcome.code == 2
    assert "cret" not in outcome.err.replace("secret", "") and "se\u00e9" not in outcome.err


# Interruptions.


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_pull_that_is_ended_is_resumed(
    hub: HubServer, big: dict[str, bytes], number: int, code: int
) -> None:
    repository = hub.add(NAME, big)
    hub.script(WEIGHTS, slow(0.01))
    process = start("pull", NAME)
    wait_until(lambda: hub.bytes_sent(WEIGHTS) > 1_000_000)
    process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert process.returncode == code, err
    assert b"Traceback" not in err
    assert_nothing_pulled()
    sent, kept = hub.bytes_sent(WEIGHTS), part_of(repository).stat().st_size
    assert kept >= sent - MEBIBYTE
    assert run("pull", NAME).code == 0
    assert hub.gets(WEIGHTS)[-1].headers["range"] == f"bytes={kept}-"
    assert_whole(repository)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_at_random(hub: HubServer, big: dict[str, bytes], rng: random.Random, kills: int, pulls: int) -> None:
    """Kill ``pulls`` pulls at once, ``kills`` times; then let one finish."""
    repository = hub.add(NAME, big)
    size = len(big[WEIGHTS])
    done = 0
    for _ in range(kills):
        hub.faults[WEIGHTS].clear()
        hub.script(WEIGHTS, slow(0.004))
        processes = [start("pull", NAME) for _ in range(pulls)]
        if rng.random() < 0.7:
            goal = hub.bytes_sent(WEIGHTS) + rng.randrange(size // 4)
            with contextlib.suppress(AssertionError):
                wait_until(lambda goal=goal: hub.bytes_sent(WEIGHTS) >= goal, 3)  # type: ignore[misc]
        else:
            time.sleep(rng.uniform(0, 1))
        for process in processes:
            process.kill()
            process.communicate()
        if model_directory(repository).with_suffix(".json").exists():
            assert_whole(repository)
            done += 1
            subprocess.run(["rm", "-rf", str(store())], check=True)
    hub.faults.clear()
    assert run("pull", NAME).code == 0
    assert_whole(repository)
    assert hub.bytes_sent(WEIGHTS) <= (1 + done) * size + kills * MEBIBYTE


@pytest.mark.parametrize("pulls", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_kill_9_at_random_moments(hub: HubServer, big: dict[str, bytes], pulls: int) -> None:
    kill_at_random(hub, big, random.Random(pulls), 4, pulls)


@pytest.mark.slow
@pytest.mark.parametrize("pulls", [1, 2])
def test_kill_9_at_many_random_moments(hub: HubServer, big: dict[str, bytes], pulls: int) -> None:
    kill_at_random(hub, big, random.Random(10 + pulls), series(50, 8), pulls)


def test_two_pulls_at_once_are_one_transfer(hub: HubServer, big: dict[str, bytes]) -> None:
    repository = hub.add(NAME, big)
    hub.script(WEIGHTS, slow(0.005))
    processes = [start("pull", NAME) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert_whole(repository)
    assert len(hub.gets(WEIGHTS)) == 1
    assert hub.bytes_sent(WEIGHTS) == len(big[WEIGHTS])


@pytest.mark.slow
def test_many_hostile_headers(hub: HubServer, small: dict[str, bytes], fast: None) -> None:
    """ETags, commits and file names that are paths: nothing is written outside of the store."""
    rng = random.Random(4)
    root = Path(os.environ["GPT2CLI_HOME"]).parent
    before = snapshot(root)
    hub.add(NAME, small)
    for n in range(series(200, 90)):
        path = "../" * rng.randrange(1, 9) + rng.choice(["x", "config.json", "tmp/x", "\\x", "x\0y"])
        hostile = path.replace("\0", "") if n % 3 else path
        if n % 3 == 0:
            entry = {"rfilename": hostile, "size": 1, "blobId": "0" * 40}
            hub.answer = lambda answer, entry=entry: {**answer, "siblings": [entry, *answer["siblings"]]}  # type: ignore[misc]
        else:
            hub.answer = lambda answer: answer
            header = "etag" if n % 3 == 1 else "x-repo-commit"
            hub.head_headers = {"config.json": {header: f'"{hostile}"'}}
        assert_one_line_error(call("pull", "-q", NAME), 5)
        hub.head_headers = {}
        assert_nothing_pulled()
    assert snapshot(root) == before


@pytest.mark.slow
def test_many_flipped_bytes(hub: HubServer, small: dict[str, bytes], fast: None) -> None:
    hub.add(NAME, small)
    rng = random.Random(2)
    for _ in range(series(200, 60)):
        path = rng.choice([WEIGHTS, "vocab.json", "config.json", "merges.txt", "README.md"])
        fault = flip(rng.randrange(len(small[path])))
        # Twice, and once more for each time that a busy machine lets a request run into its timeout.
        hub.script(path, *[fault] * 8)
        assert_one_line_error(call("pull", "-q", NAME), 5)
        assert_nothing_pulled()
        # Else a file that came well is not fetched again.
        subprocess.run(["rm", "-rf", str(store())], check=True)
        hub.faults.clear()


@pytest.mark.slow
def test_random_schedules_of_faults(hub: HubServer, big: dict[str, bytes], fast: None) -> None:
    """A right file or a clean error, within its time."""
    repository = hub.add(NAME, big)
    rng = random.Random(3)
    size = len(big[WEIGHTS])
    for _ in range(series(100, 40)):
        for path in ("api", "config.json", WEIGHTS, "vocab.json"):
            faults = [
                reset(rng.randrange(size)), close(rng.randrange(size)), status(503), ignore_range(),
                status(429, retry_after="0"), drip(rng.randrange(size), 0.05), flip(rng.randrange(size)),
                stall(rng.randrange(size), 0.6), status(500), body(b"<html>", code=200),
            ]  # fmt: skip
            hub.faults[path].clear()
            hub.script(path, *rng.sample(faults, rng.randrange(4)))
        began = time.monotonic()
        outcome = call("pull", "-q", NAME)
        assert time.monotonic() - began < 20
        assert outcome.code in (0, 4, 5), outcome.err
        assert "Traceback" not in outcome.err
        if outcome.code == 0:
            assert_whole(repository)
            subprocess.run(["rm", "-rf", str(store())], check=True)
        else:
            assert_nothing_pulled()


# The disk.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_disk_that_is_too_small_is_seen_before(
    hub: HubServer, big: dict[str, bytes], small_disk: Path
) -> None:
    hub.add(NAME, big)
    (small_disk / "filler").write_bytes(bytes(3_000_000))
    outcome = run("pull", NAME, env={**os.environ, "GPT2CLI_HOME": str(small_disk)})
    assert_one_line_error(outcome, 1)
    assert "are free" in outcome.err
    assert not hub.gets(WEIGHTS)


def test_a_disk_that_fills_up_on_the_way(hub: HubServer, big: dict[str, bytes], small_disk: Path) -> None:
    repository = hub.add(NAME, big)
    filler = small_disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(8_000_000))
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    hub.script(WEIGHTS, then(1_000_000, fill))
    environ = {**os.environ, "GPT2CLI_HOME": str(small_disk)}
    outcome = run("pull", NAME, env=environ)
    assert_one_line_error(outcome, 1)
    assert "is full" in outcome.err
    filler.unlink()
    resumed = run("pull", NAME, env=environ)
    assert resumed.code == 0, resumed.err
    assert hub.gets(WEIGHTS)[-1].headers["range"] != "bytes=0-"
    assert (small_disk / "models" / "owner--model" / repository.commit / WEIGHTS).read_bytes() == big[WEIGHTS]


def test_a_store_that_cannot_be_written(hub: HubServer, small: dict[str, bytes], tmp_path: Path) -> None:
    """Tests may run as root: a file stands where the directory should be."""
    hub.add(NAME, small)
    (tmp_path / "models").write_text("")
    outcome = run("pull", NAME, env={**os.environ, "GPT2CLI_HOME": str(tmp_path)})
    assert_one_line_error(outcome, 1)
    assert "cannot write to the store" in outcome.err and "hint:" in outcome.err


@pytest.mark.slow
def test_a_model_runs_from_a_read_only_store(hub: HubServer, small: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(NAME, small)
    home = tmp_path / "home"
    assert run("pull", NAME, env={**os.environ, "GPT2CLI_HOME": str(home)}).code == 0
    view = tmp_path / "view"
    view.mkdir()
    mount = ["mount", "--bind", "-o", "ro", str(home), str(view)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a read-only view cannot be mounted here")
    try:
        environ = {**os.environ, "GPT2CLI_HOME": str(view)}
        assert run("generate", "-q", "-m", NAME, "--max-new-tokens", "1", "ab", env=environ).code == 0
        assert run("pull", NAME, env=environ).code == 0
        hub.add("owner/other", small)
        refused = run("pull", "owner/other", env=environ)
        assert_one_line_error(refused, 1)
        assert "Read-only" in refused.err
    finally:
        subprocess.run(["umount", "-l", str(view)], check=True)


def test_a_link_in_the_way_is_not_written_through(
    hub: HubServer, small: dict[str, bytes], tmp_path: Path
) -> None:
    repository = hub.add(NAME, small)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    part = part_of(repository)
    part.parent.mkdir(parents=True)
    part.symlink_to(victim)
    assert_one_line_error(call("pull", NAME), 1)
    assert victim.read_text() == "mine"


def test_a_part_of_other_bytes_is_found_out(hub: HubServer, small: dict[str, bytes], fast: None) -> None:
    """A power cut can leave zeros where bytes were."""
    repository = hub.add(NAME, small)
    part = part_of(repository)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(60_000))
    (part.parent / "merges.txt").write_bytes(b"not the merges")
    assert call("pull", NAME).code == 0
    assert_whole(repository)


def test_the_hugging_face_cache_is_used(hub: HubServer, small: dict[str, bytes]) -> None:
    from huggingface_hub import snapshot_download

    repository = hub.add(NAME, small)
    snapshot_download(NAME, token=False, cache_dir=os.environ["HF_HUB_CACHE"])
    before = hub.bytes_sent(WEIGHTS)
    assert call("pull", NAME).code == 0
    assert_whole(repository)
    assert hub.bytes_sent(WEIGHTS) == before


def test_a_cached_model_without_its_tokenizer(hub: HubServer, small: dict[str, bytes]) -> None:
    """What `AutoModel.from_pretrained` leaves: `generate` said that the model's files are corrupt."""
    from huggingface_hub import snapshot_download

    repository = hub.add(NAME, small)
    cache = Path(os.environ["HF_HUB_CACHE"])
    snapshot_download(NAME, token=False, cache_dir=cache, allow_patterns=["config.json", WEIGHTS])
    before = hub.bytes_sent(WEIGHTS)
    arguments = ("generate", "-m", NAME, "--greedy", "--max-new-tokens", "3", "ab")
    offline = call(*arguments, "--offline")
    assert_one_line_error(offline, 4)
    assert "without its tokenizer" in offline.err and f"hint: gpt2cli pull {NAME}" in offline.err
    assert_nothing_pulled()
    outcome = call(*arguments)
    assert outcome.code == 0 and outcome.out, outcome.err
    assert "without its tokenizer" in outcome.err
    assert_whole(repository)
    assert hub.bytes_sent(WEIGHTS) == before, "the weights lie in the cache"
    requests = len(hub.requests)
    again = call(*arguments)
    assert again.out == outcome.out and "tokenizer" not in again.err and len(hub.requests) == requests


def test_a_cached_model_whose_repository_has_no_tokenizer(hub: HubServer, small: dict[str, bytes]) -> None:
    """It is pulled once, not at each run."""
    from huggingface_hub import snapshot_download

    hub.add(NAME, {name: small[name] for name in ("config.json", WEIGHTS)})
    snapshot_download(NAME, token=False, cache_dir=os.environ["HF_HUB_CACHE"])
    assert_one_line_error(call("generate", "-m", NAME, "ab"), 5)
    requests = len(hub.requests)
    assert_one_line_error(call("generate", "-m", NAME, "ab"), 5)
    assert len(hub.requests) == requests


# The command line.


def test_jsonl_events(hub: HubServer, small: dict[str, bytes]) -> None:
    repository = hub.add(NAME, small)
    outcome = run("pull", NAME, "--jsonl", "-q")
    assert outcome.code == 0 and outcome.err == ""
    kinds = [event["event"] for event in outcome.events]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("file") == 5
    begin = next(event for event in outcome.events if event["event"] == "start")
    assert (begin["commit"], begin["model"], begin["present"]) == (repository.commit, NAME, 0)
    assert outcome.events[-1]["directory"] == str(model_directory(repository))


def test_the_display_fits_the_stream(hub: HubServer, big: dict[str, bytes]) -> None:
    """A bar on a terminal, lines on a dumb one, nothing when quiet."""
    shown = {}
    for number, (flags, environ) in enumerate(
        [((), {}), ((), {"TERM": "dumb"}), ((), {"NO_COLOR": "1"}), (("-q",), {})]
    ):
        hub.add(f"owner/model{number}", big)
        hub.script(WEIGHTS, slow(0.002))
        outcome = call("pull", *flags, f"owner/model{number}", tty="err", **environ)
        assert outcome.code == 0
        shown[number] = outcome.err
    assert "MB/s" in shown[0] and "\x1b[?25l" in shown[0] and shown[0].rfind("\x1b[?25h") > 0
    assert "\x1b[?25l" not in shown[1] and "owner/model1" in shown[1]
    colours = [code for code in ("\x1b[3", "\x1b[9", "\x1b[1;3") if code in shown[2]]
    assert "MB/s" in shown[2] and not colours
    assert shown[3] == ""


def test_generate_pulls_what_is_not_there(hub: HubServer, small: dict[str, bytes]) -> None:
    repository = hub.add(NAME, small)
    arguments = ("generate", "-m", NAME, "--greedy", "--max-new-tokens", "3", "ab")
    offline = call(*arguments, "--offline")
    assert_one_line_error(offline, 4)
    assert hub.requests == []
    outcome = run(*arguments)
    assert outcome.code == 0 and outcome.out
    assert_whole(repository)
    before = len(hub.requests)
    assert call(*arguments).out == outcome.out
    assert len(hub.requests) == before
    assert_one_line_error(call("generate", "-m", "typo", "ab"), 3)
    assert len(hub.requests) == before


def test_offline_opens_no_socket(hub: HubServer, small: dict[str, bytes]) -> None:
    hub.add(NAME, small)
    assert call("pull", NAME).code == 0
    before = len(hub.requests)
    assert call("pull", NAME, "--offline").code == 0
    assert call("pull", NAME, HF_HUB_OFFLINE="1").code == 0
    assert_one_line_error(call("pull", "owner/other", "--offline"), 4)
    assert len(hub.requests) == before


@pytest.mark.parametrize("name", ["tiny", "no-owner", "../x", "a/b/c", "a--b/c", "-x", "a/..", "x@", "@y"])
def test_names_that_cannot_be_pulled(hub: HubServer, name: str) -> None:
    outcome = call("pull", "--", name)
    assert_one_line_error(outcome, 2)
    assert hub.requests == []


def test_the_default_is_not_taken_from_the_user(hub: HubServer, small: dict[str, bytes]) -> None:
    hub.add(NAME, small)
    assert call("config", "set", "model", "mine").code == 0
    outcome = call("pull", NAME)
    assert "used without -m" not in outcome.err
    assert call("config", "get", "model").out == "mine\n"


def test_a_pull_that_happens_by_itself_makes_no_default(hub: HubServer, small: dict[str, bytes]) -> None:
    """Only who pulls a model chooses it; `generate -m NAME` once made NAME the default."""
    hub.add(NAME, small)
    outcome = call("generate", "-m", NAME, "--max-new-tokens", "1", "ab")
    assert outcome.code == 0 and "used without -m" not in outcome.err
    assert call("config", "get", "model").out == ""
    assert "used without -m" in call("pull", NAME).err
    assert call("config", "get", "model").out == f"{NAME}\n"


@pytest.mark.parametrize(
    "environ",
    [
        {"HF_ENDPOINT": "ftp://x"},
        {"HF_ENDPOINT": "nonsense"},
        {"ALL_PROXY": "x://user:secret@host"},
        {"SSL_CERT_FILE": "/nowhere", "HF_ENDPOINT": "https://localhost:1"},
    ],
    ids=lambda environ: "-".join(environ.values()),
)
def test_an_environment_that_cannot_work(hub: HubServer, environ: dict[str, str]) -> None:
    outcome = run("pull", NAME, "--debug", env={**os.environ, **environ})
    assert outcome.code in (2, 4)
    assert "error: " in outcome.err and "a defect of gpt2cli" not in outcome.err
    assert "secret" not in outcome.err


def test_threads_end_with_the_pull(hub: HubServer, small: dict[str, bytes], fast: None) -> None:
    hub.add(NAME, small)
    hub.script("vocab.json", flip(1), flip(1))
    hub.script(WEIGHTS, slow(0.01))
    assert call("pull", NAME).code == 5
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("fetch-")], 5)


@pytest.mark.slow
def test_memory_of_a_large_pull(hub: HubServer, small: dict[str, bytes], tmp_path: Path) -> None:
    """Under 150 MB; how long it took beside curl is printed (pytest -s), not asserted."""
    if not shutil.which("curl"):
        pytest.skip("curl is not here")
    directory = make_model(tmp_path / "large", vocab_size=120_000, n_embd=1024, n_layer=1, n_head=4)
    repository = hub.add(NAME, model_files(directory))
    url = f"{hub.url}/{NAME}/resolve/main/{WEIGHTS}"
    began = time.monotonic()
    subprocess.run(["curl", "-sL", "-o", str(tmp_path / "copy"), url], check=True)
    curl_s = time.monotonic() - began
    # VmHWM begins anew with the process; ru_maxrss takes over what the tests have used.
    code = (
        "import sys; from gpt2cli.cli.app import main; code = main(sys.argv[1:]);"
        "print(*[l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')]); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "pull", NAME, "--jsonl"], capture_output=True, text=True, check=True
    )
    *events, peak = done.stdout.splitlines()
    assert_whole(repository)
    assert int(peak) < 150_000
    pulled_s = json.loads(events[-1])["seconds"]
    size = len(repository.files[WEIGHTS])
    print(f"{size / 1e6:.0f} MB: curl {curl_s:.2f} s, pull {pulled_s:.2f} s, peak {int(peak) / 1000:.0f} MB")
