"""Which backend is chosen, and that a GPU is looked for without torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import native_available

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core import choose
from gpt2cli.errors import UsageError
from gpt2cli.options import LoadOptions


def test_a_gpu_that_is_hidden_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked() -> int:
        raise AssertionError("it asked the driver")

    monkeypatch.setattr(choose, "_cuda_devices", looked)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not choose.gpu_present()


def test_the_driver_is_asked_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert 0 <= choose._cuda_devices() < 100
    monkeypatch.setattr(choose, "_cuda_devices", lambda: 2)
    assert choose.gpu_present()


def test_a_gpu_that_torch_cannot_use_leaves_the_cpu(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is too old, or a torch without CUDA: here the GPU is hidden from torch alone."""
    monkeypatch.setattr(choose, "gpu_present", lambda: True)
    backend = choose.open_backend(open_checkpoint(tiny_model), LoadOptions())
    assert backend.info.device == "cpu"


@pytest.mark.parametrize("off", [True, False])
def test_native_where_it_is_not(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, off: bool) -> None:
    if off:
        monkeypatch.setenv("GPT2CLI_NATIVE", "0")
    elif native_available():
        pytest.skip("it is available")
    with pytest.raises(UsageError, match="native backend is not available"):
        choose.open_backend(open_checkpoint(tiny_model), LoadOptions(backend="native"))


@pytest.mark.skipif(not native_available(), reason="the native library is not available")
def test_native_is_what_auto_means(tiny_model: Path) -> None:
    for backend in ("auto", "native"):
        options = LoadOptions(backend=backend, device="cpu", threads=1)  # type: ignore[arg-type]
        info = choose.open_backend(open_checkpoint(tiny_model), options).info
        assert (info.device, info.precision, info.threads) == ("cpu", "fp16", 1)
        assert "native" in info.kernels[0]
