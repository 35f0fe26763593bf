"""From a name or a path to a model directory: our store, a Hugging Face cache, and neither."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import write_json

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, ModelNotFound, Unavailable, UsageError
from gpt2cli.hub import resolve as resolve_module
from gpt2cli.hub.hfcache import cache_root, cached_models
from gpt2cli.hub.manifest import MAX_BYTES, FileRecord, Manifest, read_manifest
from gpt2cli.hub.registry import ALIASES, BUILTIN, is_name, parse_name, parse_revision
from gpt2cli.hub.resolve import local_names, resolve
from gpt2cli.hub.store import stored_models

GPT2 = "openai-community/gpt2"
SPELLINGS = [GPT2, *(alias for alias, repository in ALIASES.items() if repository == GPT2)]
OLD = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
NEW = "e7da7f221d5bf496a48136c0cd264e630fe9fcc8"

HOSTILE_NAMES = [
    "a//b",
    "a/b/c",
    "a/../b",
    "a/..",
    "..",
    "../x",
    "../../outside",
    "..--..--outside",
    "a--b",
    "/etc/passwd",
    "~/x",
    "~no-such-user/x",
    "./x",
    ".hidden",
    "-x",
    "x-",
    "a/",
    "/",
    "a\0b",
    "a\nb",
    "gpt2\n",
    "a b",
    " gpt2",
    "x" * 97,
    "x" * 300,
    "x" * 100_000,
    "é",
    "a\x1b[2Jb",
    "\udcff",
    "C:\\models",
    "a\\b",
    "https://host/x",
    "a?b",
    "a#b",
    "a%2e%2eb",
    "*",
    "",
]
HOSTILE_REVISIONS = [
    "../x",
    "..",
    "a/../b",
    "a..b",
    "a//b",
    "/a",
    "a/",
    ".a",
    "-a",
    "a\0b",
    "a\nb",
    "main\n",
    "a b",
    "x" * 256,
    "x" * 100_000,
    "é",
    "\udcff",
    "a\\b",
    "a?b",
    "*",
    "",
]


@pytest.fixture(autouse=True)
def _nothing_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_module, "builtin_directory", lambda: tmp_path / "no-built-in-model")


def model_directory(directory: Path, *, kind: str = "gpt2", weights: str = "model.safetensors") -> Path:
    """Just enough of a model to be listed."""
    directory.mkdir(parents=True)
    write_json(directory / "config.json", {"model_type": kind})
    (directory / weights).touch()
    return directory


def cached(folder: str, commit: str, *, refs: tuple[str, ...] = ("main",), **kind: str) -> Path:
    """A snapshot in the Hugging Face cache."""
    root = cache_root() / folder
    for ref in refs:
        (root / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    return model_directory(root / "snapshots" / commit, **kind)


def stored(folder: str, revision: str, **manifest: Any) -> Path:
    """A revision in our store."""
    directory = model_directory(paths.store_dir() / folder / revision)
    content = {"format": 1, "name": folder.replace("--", "/"), "revision": revision, **manifest}
    write_json(directory.parent / f"{revision}.json", content)
    return directory


# Directories


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = model_directory(tmp_path / "some model")
    monkeypatch.chdir(tmp_path)
    for text in (str(directory), "some model", "./some model", f"{directory}/", "some model/../some model"):
        found = resolve(text)
        assert found.directory.samefile(directory)
        assert (found.name, found.revision) == (text, None)


def test_a_directory_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached("models--openai-community--gpt2", NEW)
    model_directory(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert resolve("gpt2").directory == Path("gpt2")


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    directory = model_directory(tmp_path / "m")
    assert resolve("~/m").directory == directory


@pytest.mark.parametrize("text", ["./missing", "/missing/x", "~/missing", "~no-such-user/x", "../..x", ""])
def test_what_looks_like_a_path_is_no_name(text: str) -> None:
    """An empty name must not be the working directory."""
    with pytest.raises(ModelNotFound, match="no such directory") as caught:
        resolve(text, offline=True)
    assert caught.value.exit_code == 3
    assert caught.value.hint


# A Hugging Face cache


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("folder", ["models--openai-community--gpt2", "models--gpt2"])
def test_every_spelling_of_a_published_model(name: str, folder: str) -> None:
    """A cache of before the rename lies under ``models--gpt2``."""
    directory = cached(folder, NEW)
    found = resolve(name)
    assert (found.name, found.directory, found.revision) == (name, directory, NEW)


@pytest.mark.parametrize(("alias", "repository"), ALIASES.items())
def test_aliases(alias: str, repository: str) -> None:
    directory = cached("models--" + repository.replace("/", "--"), NEW)
    assert resolve(alias).directory == directory
    assert resolve(repository).directory == directory


def test_a_name_without_an_alias() -> None:
    directory = cached("models--someone--my-gpt2", NEW)
    assert resolve("someone/my-gpt2").directory == directory
    with pytest.raises(ModelNotFound):
        resolve("my-gpt2")


def test_main_is_taken_of_several_snapshots() -> None:
    """Without ``main`` the newest commit cannot be told by its name: any snapshot will do."""
    old = cached("models--gpt2", OLD, refs=())
    assert resolve("gpt2").directory == old
    new = cached("models--gpt2", NEW, refs=("main",))
    assert resolve("gpt2").directory == new
    (cache_root() / "models--gpt2" / "refs" / "main").write_text(OLD)
    assert resolve("gpt2").directory == old


@pytest.mark.parametrize("revision", [OLD, OLD[:7], OLD[:12], "v1", "refs/pr/3"])
def test_revisions(revision: str) -> None:
    cached("models--gpt2", NEW)
    old = cached("models--gpt2", OLD, refs=("v1", "refs/pr/3"))
    found = resolve("gpt2", revision=revision)
    assert (found.directory, found.revision) == (old, OLD)


@pytest.mark.parametrize("revision", [OLD[:6], OLD[1:8], "v", OLD + "0", "dev"])
def test_a_revision_that_is_not_there(revision: str) -> None:
    """Another revision than the one asked for must not be taken in its place."""
    cached("models--gpt2", OLD)
    with pytest.raises(ModelNotFound, match=f"gpt2 at revision {revision}"):
        resolve("gpt2", revision=revision)


def test_what_is_no_causal_model_is_passed_over() -> None:
    cached("models--someone--llama", NEW, kind="bert")
    cached("models--someone--no-weights", NEW, weights="README.md")
    cached("models--someone--pickled", NEW, weights="pytorch_model.bin")
    cached("models--someone--sharded", NEW, weights="model.safetensors.index.json")
    (cached("models--someone--no-config", NEW) / "config.json").unlink()
    (cached("models--someone--damaged", NEW) / "config.json").write_text("{")
    (cached("models--someone--a-list", NEW) / "config.json").write_text("[]")
    assert local_names() == ["someone/pickled", "someone/sharded"]
    for name in ("llama", "no-weights", "no-config", "damaged"):
        with pytest.raises(ModelNotFound):
            resolve(f"someone/{name}")


def test_broken_entries_are_passed_over() -> None:
    """A download that was cut off, a blob collected, a file of another program."""
    root = cache_root()
    good = cached("models--someone--good", NEW)
    link = model_directory(root / "models--someone--lost-blob" / "snapshots" / NEW)
    (link / "model.safetensors").unlink()
    (link / "model.safetensors").symlink_to("../../blobs/gone")
    (root / "models--someone--empty").mkdir()
    (root / "models--someone--file").touch()
    (root / "models--someone--snapshots-file").mkdir()
    (root / "models--someone--snapshots-file" / "snapshots").touch()
    (root / "models--someone--snapshot-file" / "snapshots").mkdir(parents=True)
    (root / "models--someone--snapshot-file" / "snapshots" / NEW).touch()
    circle = root / "models--someone--circle" / "snapshots" / NEW
    circle.parent.mkdir(parents=True)
    circle.symlink_to(circle)
    (root / "models--someone--good" / "refs" / "odd").write_bytes(b"\xff\xfe" * 1000)
    os.mkfifo(root / "models--someone--good" / "refs" / "fifo")
    (root / "datasets--someone--good").mkdir()
    (root / "version.txt").write_text("1")
    assert [model.directory for model in cached_models()] == [good]
    assert local_names() == ["someone/good"]
    assert resolve("someone/good").directory == good


@pytest.mark.parametrize("folder", ["models--a--b--c", "models--", "models--\x1b]0;owned\x07", "models--a b"])
def test_a_name_that_could_not_be_given_is_not_listed(folder: str) -> None:
    """A hint that names a model must be one to follow, and no text for a terminal to obey."""
    cached(folder, NEW)
    assert local_names() == []


def test_no_cache_is_no_models() -> None:
    assert not cache_root().exists()
    assert list(cached_models()) == []
    cache_root().parent.mkdir(parents=True, exist_ok=True)
    cache_root().touch()
    assert list(cached_models()) == []


# Our store


def test_a_stored_model() -> None:
    directory = stored("someone--stories", NEW)
    found = resolve("someone/stories")
    assert (found.directory, found.revision) == (directory, NEW)
    local = stored("my-stories", "local")
    assert resolve("my-stories").directory == local
    assert local_names() == ["my-stories", "someone/stories"]


def test_the_store_comes_before_the_cache() -> None:
    cached("models--openai-community--gpt2", NEW)
    directory = stored("openai-community--gpt2", OLD)
    assert resolve("gpt2").directory == directory
    assert resolve("gpt2", revision=NEW).revision == NEW


def test_main_then_the_newest() -> None:
    stored("a--b", "1" * 40, created="2026-03-01T00:00:00Z")
    newest = stored("a--b", "2" * 40, created="2026-05-01T00:00:00Z", refs=["v2"])
    assert resolve("a/b").directory == newest
    main = stored("a--b", "3" * 40, created="2026-01-01T00:00:00Z", refs=["main", "v0"])
    assert resolve("a/b").directory == main
    assert resolve("a/b", revision="v2").directory == newest
    assert resolve("a/b", revision="1111111").revision == "1" * 40


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"{}",
        b'{"format": 2, "name": "a/b"}',
        b'{"format": "1", "name": "a/b"}',
        b'{"format": 1}',
        b'{"format": 1, "name": 5}',
        b'{"format": 1, "name": "other/name"}',
        b'{"format": 1, "name": "../../outside"}',
        b'{"format": 1, "name": "a/b\\u001b[2J"}',
        b'{"format": 1, "name": "a/b", "refs": "main"}',
        b"[" * 100_000,
        b'{"format": 1, "name": "a/b", "x": "' + b"x" * MAX_BYTES + b'"}',
    ],
    ids=lambda content: repr(content)[:40],
)
def test_a_manifest_of_another_kind_is_passed_over(content: bytes) -> None:
    directory = stored("a--b", NEW)
    manifest = directory.parent / f"{NEW}.json"
    manifest.write_bytes(content)
    assert list(stored_models()) == []
    with pytest.raises(ModelNotFound):
        resolve("a/b")


def test_what_else_lies_in_the_store_is_passed_over() -> None:
    """A directory without its manifest is a model not yet whole; a manifest alone is one half removed."""
    good = stored("a--b", NEW)
    (stored("a--b", OLD).parent / f"{OLD}.json").unlink()
    write_json(good.parent / f"{'0' * 40}.json", {"format": 1, "name": "a/b"})
    (good.parent / ".json").write_text("{}")
    (good.parent / "notes.txt").touch()
    (paths.store_dir() / "a-file").touch()
    os.mkfifo(good.parent / "fifo.json")
    (good.parent / "fifo").mkdir()
    assert [model.directory for model in stored_models()] == [good]


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = Manifest(
        "a/b",
        NEW,
        (FileRecord("config.json", 3, "ab" * 32, "the Hub's sha256"),),
        ("main",),
        {"kind": "hub", "endpoint": "https://huggingface.co"},
        "2026-11-21T00:00:00+00:00",
    )
    manifest.write(tmp_path / "m.json")
    assert read_manifest(tmp_path / "m.json") == manifest
    for path in ("../x", "a/b", "", ".."):
        write_json(
            tmp_path / "n.json",
            {"format": 1, "name": "a/b", "files": [{"path": path, "size": 1, "sha256": ""}]},
        )
        assert read_manifest(tmp_path / "n.json") is None
    assert read_manifest(tmp_path / "missing.json") is None
    assert read_manifest(tmp_path) is None


# Neither


def test_an_unknown_model_names_what_is_there() -> None:
    for n in range(7):
        stored(f"model-{n}", "local")
    with pytest.raises(ModelNotFound, match="nothing-like-it") as caught:
        resolve("nothing-like-it")
    assert caught.value.exit_code == 3
    hint = caught.value.hint or ""
    assert "model-0, model-1, model-2, model-3, model-4, …" in hint


def test_an_unknown_model_where_there_is_none() -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve("gpt2")
    assert "-m DIR" in (caught.value.hint or "")


def test_offline_it_may_exist_elsewhere() -> None:
    with pytest.raises(Unavailable, match="offline") as caught:
        resolve("gpt2", offline=True)
    assert caught.value.exit_code == 4
    directory = cached("models--gpt2", NEW)
    assert resolve("gpt2", offline=True).directory == directory
    with pytest.raises(Unavailable, match="gpt2 at revision v9"):
        resolve("gpt2", revision="v9", offline=True)


def test_names_come_once_and_by_their_alias() -> None:
    cached("models--openai-community--gpt2", NEW)
    cached("models--gpt2", OLD)
    cached("models--distilbert--distilgpt2", NEW)
    stored("openai-community--gpt2", NEW)
    stored("openai-community--gpt2", OLD)
    stored("my-stories", "local")
    assert local_names() == ["my-stories", "gpt2", "distilgpt2"]
    assert all(resolve(name).directory.is_dir() for name in local_names())


# The built-in model


def test_the_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = model_directory(tmp_path / "builtin")
    monkeypatch.setattr(resolve_module, "builtin_directory", lambda: directory)
    for text in (None, BUILTIN):
        found = resolve(text)
        assert (found.name, found.directory) == (BUILTIN, directory)
    assert local_names() == [BUILTIN]


def test_no_built_in_model() -> None:
    for text, message in ((None, "no model given"), (BUILTIN, "tiny")):
        with pytest.raises(ModelNotFound, match=message) as caught:
            resolve(text)
        assert "gpt2cli config set model" in (caught.value.hint or "")
    assert local_names() == []


# Names and revisions from outside


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that only a name with ``..`` in it could reach, from the store or the cache."""
    monkeypatch.setenv("GPT2CLI_HOME", str(tmp_path / "home"))
    for root in (tmp_path, tmp_path / "home", paths.store_dir(), cache_root().parent, cache_root()):
        for name in ("outside", "b", "x"):
            directory = model_directory(root / name / "snapshots" / NEW)
            model_directory(root / name / NEW)
            write_json(root / name / f"{NEW}.json", {"format": 1, "name": "outside"})
            assert directory.is_dir()
    work = tmp_path / "home" / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: repr(name)[:20])
@pytest.mark.usefixtures("outside")
def test_hostile_names(name: str) -> None:
    """A name becomes a part of a path, and later of an address."""
    assert not is_name(name)
    with pytest.raises(UsageError) as caught:
        parse_name(name)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()
    try:
        found = resolve(name)
    except Gpt2cliError as error:
        assert isinstance(error, UsageError | ModelNotFound)
    else:
        assert Path(name).is_dir()
        assert found.directory == Path(name)


@pytest.mark.parametrize("revision", HOSTILE_REVISIONS, ids=lambda revision: repr(revision)[:20])
@pytest.mark.usefixtures("outside")
def test_hostile_revisions(revision: str) -> None:
    cached("models--gpt2", OLD)
    stored("gpt2", OLD)
    for model in ("gpt2", None, "."):
        with pytest.raises(UsageError, match="is not a revision") as caught:
            resolve(model, revision=revision)
        assert len(str(caught.value)) < 200
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["gpt2", "a", "A1", "owner/name", "o-w.n/n-a.m_e", "x" * 96, "x" * 96 + "/y"]
)
def test_good_names(name: str) -> None:
    parsed = parse_name(name)
    assert parsed.given == name
    assert parsed.spellings[0] == ALIASES.get(name, name)


@pytest.mark.parametrize("revision", ["main", OLD, OLD[:7], "v1.0", "refs/pr/3", "feature/x_y-z", "x" * 255])
def test_good_revisions(revision: str) -> None:
    assert parse_revision(revision) == revision


def test_aliases_are_names_of_names() -> None:
    assert all(is_name(alias) and is_name(repository) for alias, repository in ALIASES.items())
    assert BUILTIN not in ALIASES
    assert not set(ALIASES.values()) & set(ALIASES)


def test_a_folder_that_only_has_a_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    """A working directory with a folder ``gpt2`` of something else must not hide the model of that name."""
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("gpt2").directory == Path("gpt2")
    snapshot = cache_root() / "models--gpt2" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_model, snapshot)
    assert resolve("gpt2").directory == snapshot


def test_a_directory_has_no_revisions(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="no revisions"):
        resolve(str(tiny_model), revision="main")
