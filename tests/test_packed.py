"""Converted matrices in files: the same bits, made once, never mistaken for those of another checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from native_models import PRECISIONS, bits, needs_native, open_native, whole
from safetensors.torch import load_file, save_file
from support import make_model

from gpt2cli import paths
from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core.engine import Engine
from gpt2cli.core.native import backend as backend_module
from gpt2cli.core.native import packed as packed_module
from gpt2cli.core.native.backend import NativeBackend
from gpt2cli.core.quantise import Kind
from gpt2cli.errors import ModelFileError
from gpt2cli.hub.converted import converted_stem, unused_converted
from gpt2cli.hub.resolve import resolve
from gpt2cli.hub.store import StoredModel, weights_cache
from gpt2cli.hub.verify import file_hash, verify_files
from gpt2cli.options import LoadOptions

pytestmark = needs_native

IDS = [5, 6, 7, 8, 200]


@pytest.fixture(autouse=True)
def _worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "WORTH_KEEPING", 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", n_embd=96, std=0.1)


def _logits(model: Path, precision: Kind, stem: Path | None) -> bytes:
    """The logits of a fresh backend, which converts, or finds what was converted, below ``stem``."""
    backend = open_native(model, precision, converted=stem)
    found = bits(whole(backend, IDS)).tobytes()
    backend.close()
    return found


def _no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it is converted again")

    monkeypatch.setattr(packed_module, "pack", never)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Kind, dtype: str, tied: bool
) -> None:
    """Converted in memory, while the file is written, and from the file; which nothing changes."""
    model = make_model(tmp_path / "model", n_embd=96, std=0.1, dtype=dtype, tie_word_embeddings=tied)
    stem = tmp_path / "cache" / "key"
    in_memory, written = _logits(model, precision, None), _logits(model, precision, stem)
    assert in_memory == written
    (file,) = stem.parent.glob("*.safetensors")
    assert file.name == f"key.{precision}-v{packed_module.FORMAT}.safetensors"
    assert file.with_name(f"{file.name}.sha256").read_text().strip() == file_hash(file)
    before = file.read_bytes()
    _no_conversion(monkeypatch)
    assert _logits(model, precision, stem) == written
    assert file.read_bytes() == before
    assert len([*stem.parent.iterdir()]) == 2


def test_what_was_converted_for_one_precision_is_not_used_for_another(model: Path, tmp_path: Path) -> None:
    found = {precision: _logits(model, precision, tmp_path / "key") for precision in PRECISIONS}
    assert len({*found.values()}) == len(PRECISIONS)
    assert len([*tmp_path.glob("*.safetensors")]) == len(PRECISIONS)
    for precision in PRECISIONS:
        assert _logits(model, precision, tmp_path / "key") == found[precision]


def test_the_file_is_safetensors(model: Path, tmp_path: Path) -> None:
    """Panels of 64 outputs; in 8 and 4 bits 64 inputs and 64 scales of two bytes make a group."""
    for precision in ("fp16", "int8", "int4"):
        _logits(model, precision, tmp_path / precision)
        (file,) = tmp_path.glob(f"{precision}.*.safetensors")
        tensors = load_file(file)
        layer, head = tensors["h.1.mlp.c_fc.weight"], tensors["lm_head.weight"]
        assert len(tensors) == 2 * 4 + 1
        if precision == "fp16":
            assert layer.dtype == head.dtype == torch.float16
            assert (layer.shape, head.shape) == ((6, 96, 64), (5, 96, 64))
        else:
            assert layer.dtype == head.dtype == torch.uint8
            size = 64 * 64 + 128 if precision == "int8" else 64 * 32 + 128
            assert (layer.shape, head.shape) == ((6, 2, size), (5, 2, 64 * 64 + 128))


def test_a_small_model_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.undo()
    expected = _logits(model, "int8", None)
    assert _logits(model, "int8", tmp_path / "cache" / "key") == expected
    assert not (tmp_path / "cache").exists()


def _header(file: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    data = file.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:size]), data[size:]


def _with_header(file: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> bytes:
    """The bytes of a file whose table is changed, its matrices where they are."""
    table, data = _header(file)
    change(table)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


DAMAGE: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda file: b"",
    "no table": lambda file: b"{}",
    "noise": lambda file: b"\xff" * 100,
    "half": lambda file: file.read_bytes()[: file.stat().st_size // 2],
    "a byte short": lambda file: file.read_bytes()[:-1],
    "a byte long": lambda file: file.read_bytes() + b"\0",
    "the table alone": lambda file: file.read_bytes()[: 2**20],
    "a matrix less": lambda file: _with_header(file, lambda table: table.pop("h.1.attn.c_attn.weight")),
    "another name": lambda file: _with_header(
        file, lambda table: table.update({"h.9.attn.c_attn.weight": table.pop("h.1.attn.c_attn.weight")})
    ),
    "another shape": lambda file: _with_header(
        file, lambda table: table["lm_head.weight"].update(shape=[5, 64, 96])
    ),
    "another type": lambda file: _with_header(
        file, lambda table: table["h.0.mlp.c_fc.weight"].update(dtype="I16")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(model: Path, tmp_path: Path, damage: str) -> None:
    expected = _logits(model, "fp16", tmp_path / "key")
    (file,) = tmp_path.glob("*.safetensors")
    good = file.read_bytes()
    file.write_bytes(DAMAGE[damage](file))
    assert _logits(model, "fp16", tmp_path / "key") == expected
    assert file.read_bytes() == good


def test_a_file_of_another_shape_is_made_again(tmp_path: Path) -> None:
    """The key says that it is the same model; the table says otherwise."""
    _logits(make_model(tmp_path / "a", n_embd=64), "fp16", tmp_path / "key")
    other = make_model(tmp_path / "b", n_embd=32)
    assert _logits(other, "fp16", tmp_path / "key") == _logits(other, "fp16", None)


def test_a_checkpoint_that_is_refused_leaves_nothing(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.h.1.mlp.c_proj.weight"][3, 3] = torch.nan
    save_file(tensors, model / "model.safetensors")
    for _ in range(2):
        with pytest.raises(ModelFileError, match=r"h\.1\.mlp\.c_proj\.weight contains NaN"):
            _logits(model, "int8", tmp_path / "cache" / "key")
    assert not [*(tmp_path / "cache").iterdir()]


@pytest.mark.parametrize("name", ["wte.weight", "wpe.weight", "ln_f.bias", "h.0.attn.c_attn.bias"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_what_is_not_converted_is_checked_too(
    model: Path, tmp_path: Path, name: str, precision: Kind
) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors[f"transformer.{name}"].view(-1)[-1] = torch.inf
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(ModelFileError, match=f"{name} contains NaN or infinity"):
        _logits(model, precision, tmp_path / "cache" / "key")


def test_what_cannot_be_written_is_no_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert _logits(model, "fp16", tmp_path / "file" / "key") == _logits(model, "fp16", None)


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "_SPARE_BYTES", 2**62)
    assert _logits(model, "fp16", tmp_path / "cache" / "key") == _logits(model, "fp16", None)
    assert not [*(tmp_path / "cache").iterdir()]


def test_a_disk_that_is_full_in_the_middle(model: Path, tmp_path: Path) -> None:
    """No more bytes in a file than a part of the matrices, as a quota would have it."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    expected = _logits(model, "fp16", None)
    # Where its default action stands, the signal kills.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 + 100_000, limits[1]))
    try:
        found = _logits(model, "fp16", tmp_path / "cache" / "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert found == expected
    assert not [*(tmp_path / "cache").iterdir()]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_whoever_may_read_the_folder_may_read_the_file(model: Path, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        _logits(model, "int8", tmp_path / "key")
    finally:
        os.umask(before)
    files = [*tmp_path.glob("key.*")]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o666 & ~umask] * 2


def test_a_cache_that_is_only_readable_serves(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time of use cannot be noted (of a folder that is not ours; root may write to any)."""
    expected = _logits(model, "int8", tmp_path / "key")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(packed_module.os, "utime", refused)
    _no_conversion(monkeypatch)
    assert _logits(model, "int8", tmp_path / "key") == expected


def test_a_file_that_goes_while_it_is_used(model: Path, tmp_path: Path) -> None:
    """`gc`, `rm` and a conversion by another process replace files and never write into one that is there."""
    backend = open_native(model, "fp16", converted=tmp_path / "key")
    expected = bits(whole(backend, IDS))
    (file,) = tmp_path.glob("*.safetensors")
    other = file.with_suffix(".other")
    other.write_bytes(b"\xff" * file.stat().st_size)
    os.replace(other, file)
    assert np.array_equal(bits(whole(backend, IDS)), expected)
    file.unlink()
    assert np.array_equal(bits(whole(backend, IDS)), expected)
    backend.close()


SHRINKS = """
import os, sys
from native_models import open_native, whole
from pathlib import Path
from gpt2cli.core.native import backend
backend.WORTH_KEEPING = 0
model, stem = map(Path, sys.argv[1:])
running = open_native(model, "fp16", converted=stem)
whole(running, [1, 2, 3])
(file,) = stem.parent.glob("*.safetensors")
os.truncate(file, 2**20)
print("cut", flush=True)
whole(running, [1, 2, 3])
print("survived", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="this system has no such signal")
def test_a_file_that_shrinks_while_it_is_used(model: Path, tmp_path: Path) -> None:
    """What the docstring of `packed` says: nothing here cuts files, and where somebody does, it ends."""
    command = [sys.executable, "-c", SHRINKS, str(model), str(tmp_path / "key")]
    places = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, timeout=300
    )
    assert (done.stdout, done.returncode) == ("cut\n", -signal.SIGBUS), done.stderr
    # The next one makes it again.
    assert _logits(model, "fp16", tmp_path / "key") == _logits(model, "fp16", None)


def test_progress_ends_at_the_total(model: Path, tmp_path: Path) -> None:
    """It rises with every matrix; and where nothing is converted nothing is told."""
    told: list[tuple[int, int]] = []

    def load(stem: Path | None) -> None:
        told.clear()
        NativeBackend(open_checkpoint(model), "int8", 1, stem, lambda *both: told.append(both)).close()

    for stem in (None, tmp_path / "key"):
        load(stem)
        dones = [done for done, _ in told]
        assert dones == sorted(dones) and len(dones) == 9
        assert all(0 < done <= total for done, total in told)
        assert told[-1][0] > 0.9 * told[-1][1]
    load(tmp_path / "key")
    assert not told


class TestKeys:
    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("GPT2CLI_HOME", str(tmp_path / "home"))
        yield

    def test_it_changes_with_the_weights(self, model: Path) -> None:
        before = converted_stem(resolve(str(model)))
        assert before == converted_stem(resolve(str(model)))
        os.utime(model / "model.safetensors", (1, 1))
        assert before != converted_stem(resolve(str(model)))

    def test_the_built_in_model_has_none(self) -> None:
        assert converted_stem(resolve(None)) is None

    def test_unused(self, model: Path) -> None:
        stem = converted_stem(resolve(str(model)))
        assert stem is not None and stem.is_relative_to(paths.cache_dir())
        _load(model, stem)
        assert [*unused_converted()] == []
        assert len([*unused_converted(everything=True)]) == 2
        for path in stem.parent.iterdir():
            os.utime(path, (1, 1))
        assert len([*unused_converted()]) == 2
        _load(model, stem)
        assert [*unused_converted()] == []

    def test_what_an_earlier_format_left_is_unused(self, model: Path) -> None:
        """The format stands in the name: a new one is another file, and the old one goes with time."""
        stem = converted_stem(resolve(str(model)))
        assert stem is not None
        _load(model, stem)
        (file,) = stem.parent.glob("*.safetensors")
        older = file.with_name(file.name.replace(f"-v{packed_module.FORMAT}", "-v1"))
        assert older != file
        older.write_bytes(file.read_bytes())
        os.utime(older, (1, 1))
        _load(model, stem)
        assert [*unused_converted()] == [older]

    def test_verify(self, model: Path) -> None:
        """A flipped bit is found, and what it is in goes; the model itself is as it was."""
        stored = StoredModel("owner/name", "0" * 40, model, "directory")
        _load(model, weights_cache(stored) / "key")
        (file,) = weights_cache(stored).glob("*.safetensors")
        assert {c.status for c in verify_files(stored).files if "converted" in c.path} == {"verified"}
        data = bytearray(file.read_bytes())
        data[-5] ^= 4
        file.write_bytes(data)
        report = verify_files(stored)
        assert "deleted" in report.problems[0] and report.repair is None
        assert report.status == "unverified", "as a directory without a manifest is"
        assert not file.exists()


def _load(model: Path, stem: Path) -> None:
    options = LoadOptions(backend="native", device="cpu", precision="fp16", converted=stem)
    Engine.load(model, options).backend.close()
