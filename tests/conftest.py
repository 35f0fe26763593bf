"""Every test runs in an environment of its own: no settings, no stores, no network."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support import REPOSITORY, make_model

import gpt2cli

# The models are tiny: a second thread only waits, and spins where the machine is busy. Read when torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where an installed package is tested, processes that tests start import it too, with its native library, and
# not the source tree in the current folder.
if not Path(gpt2cli.__file__).is_relative_to(REPOSITORY):
    os.environ["PYTHONSAFEPATH"] = "1"

# Where this runs in the background of a script SIGINT is ignored, and so it would be by what is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, however busy the machine is.
settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")

# A GPU is left out unless it is named: expected numbers and kernels are those of the CPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# Of these files' long series every so-manieth case runs by default; the slow run has the others.
THINNED = {
    "test_analysis_explain": 4,
    "test_analysis_parity": 3,
    "test_chat_hostile": 3,
    "test_chat_parts": 5,
    "test_checkpoint": 3,
    "test_cli_chat": 5,
    "test_cli_compare": 5,
    "test_cli_features": 2,
    "test_cli_fuzz": 4,
    "test_cli_generate": 2,
    "test_cli_inspect": 3,
    "test_cli_process": 8,
    "test_cli_score": 5,
    "test_cli_store": 3,
    "test_cli_train": 5,
    "test_completions": 3,
    "test_parity": 5,
    "test_pull": 6,
    "test_repl_sessions": 3,
}

LONGEST_FIRST = (
    "test_native_elsewhere",
    "test_native_texts",
    "test_pull",
    "test_cli_train",
    "test_cli_chat",
    "test_native_bits",
    "test_parity",
    "test_build",
    "test_cli_score",
)
"""Of the files those whose single tests take long: begun last, they would leave the other cores idle."""

PARTS = {"test_native_texts": re.compile(r"\[([^]]*?-\d+)[]-]")}
"""What of an id names the part of its file that is not to be divided among processes; else it is the file."""

KEPT = ("GPT2CLI_SHARED", "GPT2CLI_REQUIRE_SHARED", "GPT2CLI_FULL")


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our store and the Hugging Face cache are empty folders, and the Hub is out of reach."""
    for name in os.environ:
        if name.startswith("GPT2CLI_") and name not in KEPT:
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    huggingface, hub = home / "huggingface", home / "huggingface" / "hub"
    monkeypatch.setenv("GPT2CLI_HOME", str(home / "gpt2cli"))
    monkeypatch.setenv("HF_HOME", str(huggingface))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # huggingface_hub reads its environment once, when it is imported.
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        monkeypatch.setattr(constants, "HF_HOME", str(huggingface))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


MOST_WORKERS = 4
"""Each takes up to 1.5 GB."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core; none where files or tests are named, so that one answers at once."""
    if any(".py" in argument for argument in config.args):
        return 0
    return min(os.cpu_count() or 1, MOST_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile`` as `PARTS` says, in the order of collection and not by the number of tests."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByPart(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            named = PARTS.get(Path(file).stem)
            part = named.search(nodeid) if named else None
            return f"{file}::{part[1]}" if part else file

    config.option.loadscopereorder = False
    return ByPart(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what `THINNED` says to the slow run; processes that share the work begin with what takes long."""
    seen: Counter[tuple[str, str]] = Counter()
    for item in items:
        every = THINNED.get(item.path.stem, 1)
        if every > 1 and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            series = (item.path.stem, item.originalname)
            if seen[series] % every:
                item.add_marker(pytest.mark.slow)
            seen[series] += 1
    if hasattr(config, "workerinput"):
        rank = {stem: at for at, stem in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture
def nothing_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process the package has no model of its own."""
    for module in ("resolve", "inventory"):
        monkeypatch.setattr(f"gpt2cli.hub.{module}.builtin_directory", lambda: tmp_path / "nothing-built-in")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 257 byte tokens, context 64, 2 layers, 32 wide, that tests only read."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny-random")
