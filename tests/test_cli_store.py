"""`gpt2cli rm`, `import`, `export` and `gc`: what they change, and what they leave alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli import COMMAND, call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import COMMIT, GPT2, OTHER, cache_model, flip_a_byte, sha256, store_model, tree
from support import make_model, random_weights

from gpt2cli import paths
from gpt2cli.hub.hfcache import cache_root
from gpt2cli.hub.manifest import read_manifest
from gpt2cli.hub.store import stored_models

DAY = 86_400
GREEDY = ("--greedy", "--max-new-tokens", "8", "-q", "ab")


def names() -> list[str]:
    return [f"{model.name}@{model.revision}" for model in stored_models()]


def write_pickle(directory: Path, **config: Any) -> dict[str, Any]:
    """A checkpoint as they were before safetensors."""
    import torch

    make_model(directory, **config)
    (directory / "model.safetensors").unlink()
    whole = json.loads((directory / "config.json").read_text())
    tensors = random_weights(whole)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    torch.save(tensors, directory / "pytorch_model.bin")
    return tensors


# rm


def test_rm_takes_all_revisions_or_one(tiny_model: Path) -> None:
    store_model(tiny_model, GPT2, COMMIT)
    store_model(tiny_model, GPT2, OTHER, refs=("v1",))
    store_model(tiny_model, "kept")
    outcome = call("rm", "--yes", "gpt2@v1")
    assert outcome.code == 0 and "removed gpt2@e7da7f2" in outcome.err
    assert names() == ["kept@local", f"{GPT2}@{COMMIT}"]
    store_model(tiny_model, GPT2, OTHER, refs=())
    assert call("rm", "-y", "small", "gpt2").code == 0
    assert names() == ["kept@local"]
    assert sorted(p.name for p in paths.store_dir().iterdir()) == ["kept"]


def test_rm_takes_converted_weights_and_the_mark_of_use(tiny_model: Path) -> None:
    store_model(tiny_model, "my-stories")
    store_model(tiny_model, "kept")
    assert call("generate", "-m", "my-stories", *GREEDY).code == 0
    for name in ("my-stories", "kept"):
        converted = paths.cache_dir() / "weights" / name / "local"
        converted.mkdir(parents=True)
        (converted / "int8").write_text("x")
    call("rm", "--yes", "my-stories")
    assert not list(paths.state_dir().rglob("my-stories*"))
    assert [p.name for p in (paths.cache_dir() / "weights").glob("*/local")] == ["local"]


@pytest.mark.parametrize(
    ("answer", "left"), [(b"y\n", 0), (b"YES\n", 0), (b"n\n", 1), (b"\n", 1), (b"", 1), (b"yes please\n", 1)]
)
def test_rm_asks_on_a_terminal(tiny_model: Path, answer: bytes, left: int) -> None:
    store_model(tiny_model, "my-stories")
    outcome = call("rm", "my-stories", stdin=answer, tty="in out err")
    assert outcome.code == 0 and "remove my-stories@local" in outcome.err
    assert len(names()) == left and ("nothing was removed" in outcome.err) == bool(left)


@pytest.mark.parametrize("tty", ["", "out", "in", "err out"])
def test_rm_does_not_ask_nobody(tiny_model: Path, tty: str) -> None:
    store_model(tiny_model, "my-stories")
    outcome = call("rm", "my-stories", stdin=b"y\n", tty=tty)
    assert (outcome.code, names()) == (2, ["my-stories@local"])
    assert "--yes" in outcome.err


def test_rm_is_for_our_store(tiny_model: Path) -> None:
    """And nothing is removed when one of several names is wrong."""
    store_model(tiny_model, "my-stories")
    cache_model(tiny_model, "someone/else")
    before = tree(cache_root())
    for wrong, code in (("someone/else", 2), ("nothing", 3), ("a//b", 2), ("my-stories@v9", 3), ("tiny", 2)):
        outcome = call("rm", "--yes", "my-stories", wrong)
        assert outcome.code == code and outcome.err.startswith("error: ")
    assert names() == ["my-stories@local"] and tree(cache_root()) == before
    assert str(cache_root() / "models--someone--else") in call("rm", "--yes", "someone/else").err


def test_rm_of_the_default_says_so(tiny_model: Path) -> None:
    store_model(tiny_model, "my-stories")
    call("config", "set", "model", "my-stories")
    assert "default" in call("rm", "--yes", "my-stories").err


def test_rm_does_not_follow_links(tiny_model: Path, tmp_path: Path) -> None:
    precious = make_model(tmp_path / "precious")
    stored = store_model(tiny_model, "my-stories")
    shutil.rmtree(stored.directory)
    stored.directory.symlink_to(precious)
    assert call("rm", "--yes", "my-stories").code == 0
    assert names() == [] and (precious / "config.json").exists()


# import


def test_import(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "stories", shards=2, generation={"temperature": 0.9})
    for name in ("README.md", "LICENSE", "optimizer.pt", "secret.txt", "pytorch_model.bin", ".env"):
        (directory / name).write_text(name)
    before = tree(directory)
    assert call("import", directory).code == 0
    manifest = read_manifest(paths.store_dir() / "stories" / "local.json")
    assert manifest is not None and manifest.source == {"kind": "import", "path": str(directory)}
    taken = {record.path for record in manifest.files}
    assert taken == before.keys() - {"optimizer.pt", "secret.txt", "pytorch_model.bin", ".env"}
    assert {path.name for path in (paths.store_dir() / "stories" / "local").iterdir()} == taken
    assert call("verify", "stories").code == 0
    assert call("generate", "-m", "stories", *GREEDY).out == call("generate", "-m", directory, *GREEDY).out
    assert tree(directory) == before


def test_import_from_a_cache_copies_what_links_lead_to(tiny_model: Path) -> None:
    snapshot = cache_model(tiny_model, "someone/else")
    assert call("import", snapshot, "--name", "mine").code == 0
    assert not any(path.is_symlink() for path in paths.store_dir().rglob("*"))


@pytest.mark.parametrize(
    ("name", "code"), [("gpt2", 2), ("tiny", 2), ("taken", 2), ("a//b", 2), ("../x", 2), ("", 2), ("a/b", 0)]
)
def test_names_of_imports(tiny_model: Path, name: str, code: int) -> None:
    store_model(tiny_model, "taken")
    before = tree(paths.store_dir())
    outcome = call("import", tiny_model, "--name", name)
    assert outcome.code == code, outcome.err
    assert code == 0 or tree(paths.store_dir()) == before


def test_a_directory_with_an_odd_name(tmp_path: Path) -> None:
    outcome = call("import", make_model(tmp_path / "an odd one"))
    assert outcome.code == 2 and "--name" in outcome.err
    assert call("import", tmp_path / "missing").code == 3
    assert call("import", tmp_path).code in (2, 3)


def damage_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def damage_weights(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 1000)


def damage_tokenizer(directory: Path) -> None:
    (directory / "vocab.json").write_text("[]")


def damage_all(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize("spoil", [damage_config, damage_weights, damage_tokenizer, damage_all])
def test_what_is_damaged_is_not_imported(tmp_path: Path, spoil: Any) -> None:
    directory = make_model(tmp_path / "m")
    spoil(directory)
    outcome = call("import", directory)
    assert outcome.code == 5 and outcome.err.startswith("error: ")
    assert not paths.store_dir().exists()


def test_a_pickle_is_converted_when_asked_to(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    write_pickle(directory)
    outcome = call("import", directory)
    assert outcome.code == 5 and "--allow-pickle" in outcome.err and not paths.store_dir().exists()
    assert call("import", "--allow-pickle", directory).code == 0
    manifest = read_manifest(paths.store_dir() / "old" / "local.json")
    assert manifest is not None and manifest.source["converted_from"] == ["pytorch_model.bin"]
    assert {r.path for r in manifest.files} == {
        "config.json",
        "merges.txt",
        "model.safetensors",
        "vocab.json",
    }
    expected = call("generate", "--allow-pickle", "-m", directory, *GREEDY)
    assert call("generate", "-m", "old", *GREEDY).out == expected.out
    assert [path.name for path in paths.store_dir().iterdir()] == ["old"]


def test_a_pickle_that_is_none_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    write_pickle(directory)
    flip_a_byte(directory / "pytorch_model.bin", 40)
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    outcome = call("import", "--allow-pickle", directory)
    assert outcome.code == 5 and names() == [] and not Path("owned").exists()
    assert list(paths.store_dir().iterdir()) == []


# export


def test_export_can_be_loaded_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    directory = make_model(tmp_path / "m", tie_word_embeddings=False)
    store_model(directory, "my-stories")
    target = tmp_path / "out"
    outcome = call("export", "my-stories", target)
    assert outcome.code == 0 and tree(target) == tree(directory)
    ours, _ = transformers.GPT2LMHeadModel.from_pretrained(target, output_loading_info=True)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(directory)
    ids = torch.arange(10)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert transformers.AutoTokenizer.from_pretrained(target)("ab")["input_ids"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_pickle_can_be_loaded_by_transformers(tmp_path: Path, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    tensors = write_pickle(tmp_path / "old", tie_word_embeddings=tied)
    if not tied:
        tensors["lm_head.weight"] = tensors["lm_head.weight"] * 2
        torch.save(tensors, tmp_path / "old" / "pytorch_model.bin")
    assert call("import", "--allow-pickle", tmp_path / "old").code == 0
    assert call("export", "old", tmp_path / "out").code == 0
    model, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    assert torch.equal(model.transformer.h[1].mlp.c_fc.weight, tensors["transformer.h.1.mlp.c_fc.weight"])


def test_export_refuses_what_is_in_use(tiny_model: Path, tmp_path: Path) -> None:
    store_model(tiny_model, "my-stories")
    full, file, empty, link = (tmp_path / name for name in ("full", "file", "empty", "link"))
    full.mkdir()
    (full / "precious").touch()
    file.touch()
    empty.mkdir()
    link.symlink_to(empty)
    before = tree(tmp_path)
    for target in (full, file, link, tmp_path / "none" / "x"):
        outcome = call("export", "my-stories", target)
        assert outcome.code == 2, (target, outcome.err)
        assert tree(tmp_path) == before
    assert call("export", "my-stories", empty).code == 0
    assert tree(empty) == tree(tiny_model)


def test_export_does_not_take_the_working_directory_away(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_model(tiny_model, "my-stories")
    monkeypatch.chdir(tmp_path)
    assert call("export", "my-stories", ".").code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_not_exported(tiny_model: Path, tmp_path: Path) -> None:
    stored = store_model(tiny_model, "my-stories")
    flip_a_byte(stored.directory / "model.safetensors")
    outcome = call("export", "my-stories", tmp_path / "out")
    assert outcome.code == 5 and "gpt2cli rm my-stories" in outcome.err
    os.truncate(stored.directory / "model.safetensors", 10)
    assert call("export", "my-stories", tmp_path / "out").code == 5
    assert list(tmp_path.iterdir()) == []


def test_export_from_a_cache(tiny_model: Path, tmp_path: Path) -> None:
    cache_model(tiny_model, "someone/else")
    assert call("export", f"someone/else@{COMMIT[:8]}", tmp_path / "out").code == 0
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    write_pickle(tmp_path / "old")
    cache_model(tmp_path / "old", "someone/old")
    outcome = call("export", "someone/old", tmp_path / "out2")
    assert outcome.code == 5 and "gpt2cli import --allow-pickle" in outcome.err
    assert call("export", "nothing", tmp_path / "out2").code == 3


# gc


def aged(path: Path, days: float) -> Path:
    """A path that nobody has touched for days; what lies in it, too."""
    then = time.time() - days * DAY
    for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
        os.utime(each, (then, then))
    return path


def partial(name: str, days: float) -> Path:
    path = paths.store_dir() / ".partial" / "someone--else" / COMMIT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x" * 100)
    return aged(path, days)


def test_gc_takes_old_partials(tiny_model: Path) -> None:
    store_model(tiny_model, "my-stories")
    kept = tree(paths.store_dir())
    old, fresh = partial("old.part", 8), partial("fresh.part", 6)
    outcome = call("gc", "--dry-run")
    assert outcome.out == f"partial\t100\t{old}\n" and "would be freed" in outcome.err
    assert old.exists()
    assert "100 B freed" in call("gc").err
    assert not old.exists() and fresh.exists()
    assert call("gc", "--days", "5").code == 0 and not fresh.exists()
    partial("just.part", 0)
    assert "partial" in call("gc", "--all", tty="out").out
    assert not (paths.store_dir() / ".partial" / "someone--else").exists()
    assert {name: what for name, what in tree(paths.store_dir()).items() if name != ".partial"} == kept
    assert call("gc").out == ""


def test_gc_leaves_a_pull_that_runs_alone() -> None:
    fcntl = pytest.importorskip("fcntl")
    path = partial("old.part", 100)
    lock = paths.store_dir() / ".partial" / "someone--else.lock"
    code = (
        "import fcntl,sys,time;f=open(sys.argv[1],'w');fcntl.flock(f,fcntl.LOCK_EX);print(flush=True);input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert fcntl and holder.stdout and holder.stdin
    holder.stdout.readline()
    assert call("gc", "--all").code == 0 and path.exists()
    holder.communicate(b"\n")
    assert call("gc", "--all").code == 0 and not path.exists() and lock.exists()


def test_gc_takes_what_was_left_unfinished(tiny_model: Path) -> None:
    good = store_model(tiny_model, "good")
    bare = store_model(tiny_model, "bare")
    (bare.directory.parent / "local.json").unlink()
    orphan = store_model(tiny_model, "orphan")
    shutil.rmtree(orphan.directory)
    incoming = paths.store_dir() / ".incoming-x"
    incoming.mkdir()
    (incoming / "f").write_text("x")
    assert call("gc").out == "", "another process may be at it"
    outcome = call("gc", "--all")
    assert {Path(line.split("\t")[2]).name for line in outcome.out.splitlines()} == {
        ".incoming-x",
        "local",
        "local.json",
    }
    assert names() == ["good@local"] and call("verify", good.name).code == 0
    assert not incoming.exists() and not bare.directory.exists()


def test_gc_takes_revisions_that_nothing_leads_to(tiny_model: Path) -> None:
    store_model(tiny_model, GPT2, COMMIT, refs=("main",))
    store_model(tiny_model, GPT2, OTHER, refs=())
    alone = store_model(tiny_model, "someone/pinned", OTHER, refs=())
    assert call("gc").out == "", "it came, or was used, a moment ago"
    outcome = call("gc", "--days", "0")
    assert [line.split("\t")[0] for line in outcome.out.splitlines()] == ["revision"]
    assert names() == [f"{GPT2}@{COMMIT}", f"{alone.name}@{OTHER}"]


def test_a_branch_that_two_manifests_claim_is_the_newer_ones(tiny_model: Path) -> None:
    store_model(tiny_model, GPT2, OTHER, created="2026-01-01T00:00:00+00:00")
    store_model(tiny_model, GPT2, COMMIT, created="2026-02-01T00:00:00+00:00")
    call("gc", "--all")
    assert names() == [f"{GPT2}@{COMMIT}"]


def test_gc_takes_token_caches_that_nobody_reads() -> None:
    tokens = paths.cache_dir() / "tokens"
    tokens.mkdir(parents=True)
    for name, days in (("old", 31), ("fresh", 29)):
        (tokens / name).write_text("x" * 10)
        aged(tokens / name, days)
    call("gc")
    assert [path.name for path in tokens.iterdir()] == ["fresh"]


def test_list_says_what_gc_would_free(tiny_model: Path) -> None:
    store_model(tiny_model, "my-stories")
    partial("a.part", 0)
    assert call("list", "--json").document["disk_use"]["garbage"] == 100
    assert "100 B that gpt2cli gc --all would free" in call("list", tty="out err").err


# A store that cannot be written, and manifests of any kind


@pytest.mark.slow
def test_a_read_only_store(tiny_model: Path, tmp_path: Path) -> None:
    """Root writes where it likes: only a mount is read-only for all."""
    store_model(tiny_model, "my-stories")
    partial("a.part", 0)
    home = paths.store_dir().parent
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    mount = f"mount --bind {home} {home} && mount -o remount,ro,bind {home}"

    def read_only(line: str) -> subprocess.CompletedProcess[str]:
        script = f"{mount} || exit 99; {' '.join(COMMAND)} {line}"
        command = ["unshare", "--mount", "bash", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    if read_only("--version").returncode != 0:
        pytest.skip("no mount namespaces here")
    before = tree(home)
    for line in ("list", "show my-stories", "verify", f"export my-stories {tmp_path / 'out'}"):
        done = read_only(line)
        assert done.returncode == 0, done.stderr
    done = read_only("generate -q -m my-stories --max-new-tokens 1 a")
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("rm --yes my-stories", f"import {tiny_model} --name x", "gc --all"):
        done = read_only(line)
        assert done.returncode == 1 and done.stderr.startswith("error: cannot "), done.stderr
        assert "Read-only file system" in done.stderr and "Traceback" not in done.stderr
    assert tree(home) == before


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["config.json", "../../x", "a\0b", "\x1b[2J", "main", "hub", 2**70, -1, "0" * 64]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["path", "size", "kind"]), inner)
    ),
    max_leaves=6,
)
keys = st.sampled_from(["format", "name", "revision", "files", "refs", "source", "created"])
file_keys = st.sampled_from(["path", "size", "sha256", "verified"])


@pytest.mark.slow
@settings(max_examples=70, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    changes=st.dictionaries(keys, values, max_size=3),
    in_file=st.dictionaries(file_keys, values, max_size=2),
    cut=st.one_of(st.none(), st.integers(0, 400)),
)
def test_any_manifest(tiny_model: Path, changes: Any, in_file: Any, cut: int | None) -> None:
    """No traceback, a documented exit code, and nothing outside the model touched."""
    shutil.rmtree(paths.store_dir(), ignore_errors=True)
    stored = store_model(tiny_model, "my-stories", kind="hub")
    record = stored.directory.parent / "local.json"
    content = json.loads(record.read_text())
    content["files"][0] |= in_file
    text = json.dumps(content | changes)
    record.write_text(text if cut is None else text[:cut])
    weights = sha256(tiny_model / "model.safetensors")
    for arguments in (
        ("list",),
        ("list", "--json"),
        ("show", "my-stories"),
        ("show", "my-stories", "--json"),
        ("verify",),
        ("verify", "--json"),
        ("gc", "--dry-run", "--all"),
        ("rm", "--yes", "my-stories"),
    ):
        outcome = call(*arguments, tty="out err")
        assert outcome.code in (0, 1, 3, 5), (arguments, outcome)
        assert "Traceback" not in outcome.err and "defect" not in outcome.err
        assert "\x9b" not in outcome.out and "\x1b[2J" not in outcome.out
    assert sha256(tiny_model / "model.safetensors") == weights


def test_no_socket_is_opened(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is on the disk never asks the network, whatever HF_HUB_OFFLINE says."""
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    store_model(tiny_model, GPT2, COMMIT, kind="hub")
    cache_model(tiny_model, "someone/else")
    lines: list[tuple[str, ...]] = [
        ("list",),
        ("list", "--available"),
        ("show", "gpt2"),
        ("show", "someone/else"),
    ]
    lines += [("verify", "--files-only"), ("export", "gpt2", str(tmp_path / "out")), ("gc",)]
    lines += [("generate", "-m", "gpt2", *GREEDY), ("rm", "--yes", "gpt2")]
    for line in lines:
        assert call(*line).code == 0, line
