"""``gpt2cli bench``: what it measures is there, and adds up; no speed is asserted."""

from __future__ import annotations

import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cli import call
from gguf_file import write_gguf
from support import make_model

from gpt2cli.bench import machine
from gpt2cli.bench.peers import parse_llama_bench
from gpt2cli.bench.processes import milestones_within, run_process
from gpt2cli.bench.report import Contender, Figure, Report, as_json, evenness, times_as_fast
from gpt2cli.bench.settled import Sizes
from gpt2cli.checkpoint import ModelConfig
from gpt2cli.errors import Gpt2cliError

SETTLED = ("--rounds", "1", "--no-processes")
PROCESSES = ("--rounds", "1", "--no-settled")

FAKE_COMPLETION = """
import sys, time
tokens = int(sys.argv[sys.argv.index("-n") + 1])
if "broken" in sys.argv[sys.argv.index("-m") + 1]:
    print("loading", file=sys.stderr)
    sys.exit("no such architecture")
for n in range(tokens):
    print(" word", end="", flush=True)
    time.sleep(0.001)
"""
FAKE_BENCH = """
import json, sys
sizes = {flag: int(sys.argv[sys.argv.index(flag) + 1]) for flag in ("-p", "-n", "-r", "-t")}
assert sizes["-r"] == 1 and sys.argv[-2:] == ["-o", "json"]
tokens = sizes["-p"] or sizes["-n"]
test = {"backends": "CPU", "build_commit": "abc1234", "model_type": "gpt2 0.1B Q8_0"}
print(json.dumps([{**test, "samples_ns": [tokens * 1_000_000]}]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), n_positions=256)


def bench(model: Path, *arguments: str, **environ: str) -> Any:
    """The document of a run without error."""
    return call("bench", "-m", str(model), "--json", *arguments, **environ).document


def check_figures(engine: dict[str, Any], *measures: str) -> None:
    assert set(measures) <= set(engine["figures"])
    for measure, figure in engine["figures"].items():
        # Of a random text nothing may have been guessed right.
        assert figure["low"] > 0 or measure == "draft_share"
        assert figure["low"] <= figure["median"] <= figure["high"]


def test_whole_processes(model: Path) -> None:
    document = bench(model, "--precision", "auto", *PROCESSES)
    assert document["import_torch_s"]["median"] > 0 and document["rounds"] == 1
    (engine,) = document["engines"]
    times = ("first_token_s", "token_50_s", "exit_s", "first_run_first_token_s", "first_run_token_50_s")
    check_figures(engine, *times)
    assert "token_300_s" not in engine["figures"], "the context has room for 216 tokens"
    assert engine["first_token_to_import_torch"] > 0 and engine["kernels"]
    arrivals = engine["arrivals_s"]
    assert len(arrivals) == 50 and all(a <= b for a, b in pairwise(arrivals))
    figures = engine["figures"]
    assert arrivals[0] == round(figures["first_token_s"]["median"], 4)
    assert arrivals[-1] == round(figures["token_50_s"]["median"], 4)
    if sys.platform == "linux":
        assert 5e6 < figures["private_bytes"]["median"] < 5e9
        assert 5e6 < figures["mapped_bytes"]["median"] < 5e9
        assert figures["first_run_private_bytes"]["median"] > 5e6


@pytest.mark.slow
def test_nothing_is_left_behind(model: Path, tmp_path: Path) -> None:
    """Conversions are made in folders that go; the settings and the cache of the user are left alone."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text("max_new_tokens = 3\nrng = 'transformers'\n")
    environ = {"GPT2CLI_HOME": str(home), "GPT2CLI_MAX_NEW_TOKENS": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        (engine,) = bench(model, "--precision", "int8", *PROCESSES)["engines"]
    assert len(engine["arrivals_s"]) == 50
    assert [path for path in home.rglob("*") if path.is_file()] == [home / "config.toml"]
    assert not list(home.rglob(".bench-*"))


def test_settled_rates(model: Path) -> None:
    document = bench(model, "--precision", "auto", "--precision", "int8", *SETTLED)
    assert document["model"] == str(model) and document["machine"]["threads"] >= 1
    assert document["machine"]["kernels"] and document["machine"]["device"] == "cpu"
    assert [engine["name"] for engine in document["engines"]] == ["auto", "int8"]
    for engine in document["engines"]:
        assert engine["kernels"] and engine["times_as_fast"] == {} and engine["arrivals_s"] == []
        check_figures(engine, "prefill_32", "decode_1", "decode_8", "decode_long", "step_ratio")


def test_settled_rates_against_transformers(model: Path) -> None:
    arguments = ("--against", "transformers", "--precision", "fp32", "--rounds", "2", "--no-processes")
    document = bench(model, *arguments)
    ours, theirs = document["engines"]
    assert theirs["name"] == theirs["kind"] == "transformers" and theirs["times_as_fast"] == {}
    assert set(ours["times_as_fast"]["transformers"]) >= {"decode_1", "decode_8", "prefill_32"}
    assert {"torch", "transformers"} <= set(document["machine"])


@pytest.mark.slow
def test_everything_against_transformers(model: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    arguments = ("--against", "transformers", "--precision", "auto", "--rounds", "1", "--busy")
    ours, theirs = bench(model, *arguments, "--plot", str(plot))["engines"]
    assert len(theirs["arrivals_s"]) == 50
    check_figures(
        theirs, "first_token_s", "token_50_s", "decode_1", "busy_decode_ratio", "busy_prefill_ratio"
    )
    check_figures(ours, "busy_decode_ratio", "busy_prefill_ratio")
    assert {"first_token_s", "token_50_s"} <= set(ours["times_as_fast"]["transformers"])
    assert plot.read_text("utf-8").startswith("<?xml")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with two small scripts under the names of llama.cpp's programs."""
    if sys.platform == "win32":
        pytest.skip("a script is no program there")
    for name, code in (("llama-completion", FAKE_COMPLETION), ("llama-bench", FAKE_BENCH)):
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def gguf(path: Path) -> str:
    """A file that begins as one."""
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.mark.slow
def test_what_llama_cpp_writes_is_read(model: Path, fakes: Path) -> None:
    """Each of its tokens takes a millisecond."""
    files = ("--gguf", gguf(fakes / "small.Q8_0.gguf"), "--gguf", gguf(fakes / "small.F16.gguf"))
    arguments = ("--precision", "auto", "--against", "llama.cpp", *files, "--rounds", "1", "--busy")
    document = bench(model, *arguments)
    ours, *theirs = document["engines"]
    assert [each["name"] for each in theirs] == ["llama.cpp small.Q8_0", "llama.cpp small.F16"]
    for each in theirs:
        assert each["kernels"] == ["CPU, build abc1234", "gpt2 0.1B Q8_0"]
        figures = each["figures"]
        assert "decode_8" not in figures and figures["busy_decode_ratio"]["median"] == pytest.approx(1)
        for measure in ("prefill_32", "decode_1", "decode_long"):
            assert figures[measure]["median"] == pytest.approx(1000)
        assert 0 < figures["first_token_s"]["median"] < figures["token_50_s"]["median"]
        assert ours["times_as_fast"][each["name"]]["token_50_s"] > 0


def test_a_process_that_fails_is_named(model: Path, fakes: Path) -> None:
    file = gguf(fakes / "broken.gguf")
    result = call("bench", "-m", str(model), "--precision", "auto", "--against", "llama.cpp", "--gguf", file)
    assert result.code == 1
    assert "error: llama.cpp broken: its process ended with 1: no such architecture\n" in result.err


@pytest.mark.skipif(
    not shutil.which("llama-completion") or not shutil.which("llama-bench"), reason="no llama.cpp"
)
def test_llama_cpp(model: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model)
    arguments = ("--precision", "fp32", "--against", "llama.cpp", "--gguf", str(file), "--rounds", "1")
    _, theirs = bench(model, *arguments)["engines"]
    check_figures(theirs, "first_token_s", "token_50_s", "exit_s", "prefill_32", "decode_1", "decode_long")
    assert "gpt2" in theirs["kernels"][1]


def test_tabs_in_a_pipe(model: Path) -> None:
    result = call("bench", "-m", str(model), "--precision", "fp32", *SETTLED)
    assert result.code == 0 and "\x1b" not in result.out
    header, row = (line.split("\t") for line in result.out.splitlines())
    assert header[:2] == ["engine", "decode_1"] and row[0] == "fp32" and len(header) == len(row)
    assert all(float(value) > 0 for value in row[1:])
    assert "round 1 of 1" in result.err


def test_tables_on_a_terminal_and_in_markdown(model: Path) -> None:
    arguments = ("bench", "-m", str(model), "--precision", "fp32", "--against", "transformers", *SETTLED)
    shown = call(*arguments, tty="out")
    assert shown.code == 0 and "times as fast as transformers" in shown.out and "prefill 32" in shown.out
    result = call(*arguments, "--markdown")
    assert result.code == 0
    first, *lines = result.out.splitlines()
    assert first.startswith(f"{model} on ") and "transformers" in first
    tables = [line for line in lines if line.startswith("|")]
    assert tables[0].startswith("| | decode | 8 at once |") and tables[1].startswith("|---|--:|")
    assert tables[2].startswith("| fp32 | ") and "x) |" in tables[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--precision", "fp8"), "fp8"),
        (("--rounds", "0"), "rounds"),
        (("--against", "llama"), "against"),
        (("--plot", "plot.gif"), ".svg"),
        (("--against", "llama.cpp"), "needs --gguf"),
        (("--against", "llama.cpp", "--gguf", "absent.gguf"), "absent.gguf"),
        (("--against", "llama.cpp", "--gguf", __file__), "not a GGUF"),
        (("--gguf", "a.gguf"), "--against llama.cpp"),
        (("--json", "--markdown"), "--markdown"),
        (("--busy", "--no-settled"), "--busy"),
        (("--no-processes", "--no-settled"), "nothing"),
    ],
)
def test_wrong_usage(model: Path, arguments: tuple[str, ...], says: str) -> None:
    result = call("bench", "-m", str(model), *arguments)
    assert result.code == 2 and says in result.err and result.err.count("\n") <= 2


def test_llama_cpp_that_is_not_there(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = gguf(tmp_path / "a.gguf")
    result = call("bench", "-m", str(model), "--against", "llama.cpp", "--gguf", file)
    assert result.code == 2 and "llama-completion and llama-bench not found on PATH" in result.err
    assert "hint: " in result.err


def test_a_model_without_tokenizer_has_settled_rates(tmp_path: Path) -> None:
    model = make_model(tmp_path, tokenizer=None)
    result = call("bench", "-m", str(model), "--json", "--precision", "fp32", "--rounds", "1")
    check_figures(result.document["engines"][0], "prefill_32", "decode_1", "decode_8")
    assert "whole processes are left out" in result.err


def test_lines_of_a_process_have_the_time_of_their_end() -> None:
    code = "import sys, time; w = sys.stdout.write; f = sys.stdout.flush;"
    code += "w('one\\ntw'); f(); time.sleep(0.2); w('o\\n'); f(); time.sleep(0.1)"
    finished = run_process("it", [sys.executable, "-c", code], os.environ)
    (first, one), (second, two) = finished.lines()
    assert (one, two) == (b"one", b"two") and second >= first + 0.2 and finished.exit_s >= 0.1


@pytest.mark.parametrize("code", ["pass", "import sys; sys.exit('oh')", "import os; os.abort()"])
def test_a_process_without_output_is_an_error(code: str) -> None:
    with pytest.raises(Gpt2cliError, match="it: its process ended with"):
        run_process("it", [sys.executable, "-c", code], os.environ)


def test_a_program_that_cannot_be_started() -> None:
    with pytest.raises(Gpt2cliError, match=r"it: .* cannot be started"):
        run_process("it", ["/nowhere/at/all"], os.environ)


@pytest.mark.parametrize("output", [b"", b"[]", b"{}", b'[{"backends": "CPU"}]', b"[1]"])
def test_what_is_not_from_llama_bench(output: bytes) -> None:
    with pytest.raises(Gpt2cliError, match="not understood"):
        parse_llama_bench(output)


def test_the_ratio_is_taken_round_by_round() -> None:
    """A machine that slows down between rounds slows both down."""
    ours, theirs = Contender("auto"), Contender("transformers", "transformers")
    for speed in (1.0, 0.2, 1.0):
        ours.add("decode_1", 40 * speed)
        theirs.add("decode_1", 10 * speed)
        ours.add("token_50_s", 1 / speed)
        theirs.add("token_50_s", 5 / speed)
        ours.add("step_ratio", 1.2)
        theirs.add("step_ratio", 1.1)
    assert times_as_fast(ours, theirs, "decode_1") == 4 and times_as_fast(ours, theirs, "token_50_s") == 5
    assert (
        times_as_fast(ours, theirs, "decode_8") is None and times_as_fast(ours, theirs, "step_ratio") is None
    )
    assert ours.figures["decode_1"] == Figure(40, 8, 40)
    report = Report({}, [ours, theirs])
    assert report.yardstick is theirs
    assert as_json(report)["engines"][0]["times_as_fast"]["transformers"] == {"decode_1": 4, "token_50_s": 5}


def test_evenness() -> None:
    steady = [1 + 0.1 * n for n in range(60)]
    assert evenness(steady) == {"early_ratio": pytest.approx(1), "slowest_ratio": pytest.approx(1)}
    assert evenness(steady[:49]) == {} and evenness([1.0] * 60) == {}
    late = [0.2 * n for n in range(20)] + [4 + 0.1 * n for n in range(40)]
    assert evenness(late)["early_ratio"] == pytest.approx(0.5)
    stalls = [*steady[:30], *(seconds + 1 for seconds in steady[30:])]
    assert evenness(stalls) == {"early_ratio": pytest.approx(1), "slowest_ratio": pytest.approx(0.5)}


def test_the_typical_run_is_the_median_one() -> None:
    contender = Contender("auto")
    for end in (3.0, 1.0, 2.0):
        contender.add_run([0.5, end], (1,))
    assert contender.typical_run == [0.5, 2.0] and contender.values["first_token_s"] == [0.5] * 3


def test_spoiled() -> None:
    assert not Report({}, []).spoiled and not Report({}, [], others=0.1).spoiled
    assert Report({}, [], others=1.0).spoiled


def test_processes_of_our_own_are_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody else used the machine: what a process that has ended took is counted as our own."""
    monkeypatch.setattr(machine, "_busy_seconds", lambda: sum(os.times()[:4]))
    report = Report({}, [])
    started = os.times()
    with machine.others_watched(report):
        code = "import time\nwhile time.process_time() < 0.5: pass\nprint(1)"
        run_process("it", [sys.executable, "-c", code], os.environ)
    ended = os.times()
    # The system counts in ticks, of a hundredth of a second mostly.
    assert sum(ended[:4]) - sum(started[:4]) >= 0.45
    assert report.others == pytest.approx(0, abs=0.1)


def test_other_programs_get_the_environment_of_the_user() -> None:
    """What we set for the libraries of our own process would change theirs, too."""
    code = (
        "from gpt2cli.cli.environment import prepare_environment, users_environment; import os;"
        "prepare_environment(); names = ('GOMP_SPINCOUNT', 'OPENBLAS_NUM_THREADS');"
        "print(*(env.get(name) for env in (os.environ, users_environment()) for name in names))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environ["OPENBLAS_NUM_THREADS"] = "3"
    finished = run_process("it", [sys.executable, "-c", code], environ)
    assert finished.lines()[0][1] == b"50000 3 None 3"


def test_sizes() -> None:
    assert Sizes.of(ModelConfig()) == Sizes((32, 512), 32, 32, 984)
    small = Sizes.of(ModelConfig(n_positions=64))
    assert small == Sizes((32,), 21, 32, 41) and small.long + small.steps < 64
    for context in range(4, 40):
        sizes = Sizes.of(ModelConfig(n_positions=context))
        assert 1 <= sizes.short <= sizes.long and sizes.long + sizes.steps + 1 <= max(context, 4)


def test_milestones() -> None:
    assert milestones_within(1000) == (1, 50, 300) and milestones_within(299) == (1, 50)
    assert milestones_within(3) == (1,)
