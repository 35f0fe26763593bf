"""Who may call whom, as docs/architecture.md draws it, read from the imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
from cli import command_paths
from support import REPOSITORY, native_available, some_slow

PACKAGE = REPOSITORY / "gpt2cli"
BASE = {"errors", "options", "paths", "files", "untrusted", "model_files", "likelihood"}
MIDDLE = {
    *("settings", "adapter", "adapter_targets", "adapter_config", "checkpoint", "families", "shards", "text")
}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "options": {"errors"},
    "paths": {"errors"},
    "files": {"errors"},
    "model_files": set(),
    "likelihood": set(),
    "untrusted": {"errors", "options"},
    "safetensors_header": BASE,
    "shards": BASE | {"safetensors_header"},
    "settings": BASE,
    "adapter_config": BASE,
    "adapter": BASE | {"adapter_config", "safetensors_header"},
    "adapter_targets": BASE | {"adapter"},
    "families": BASE,
    "checkpoint": BASE | {"adapter", "adapter_targets", "families", "safetensors_header", "shards"},
    "text": BASE,
    "hub": BASE | MIDDLE,
    "core": {
        *("errors", "options", "untrusted"),
        *("adapter", "checkpoint", "families", "safetensors_header", "text"),
    },
    "analysis": BASE | MIDDLE | {"core"},
    "train": BASE | MIDDLE | {"core", "__init__"},
    "bench": BASE | MIDDLE | {"core"},
    "terminal": {"errors", "files", "text"},
    "presets": BASE | {"settings", "text"},
    "remote": BASE | {"text", "hub", "__init__"},
    "jobs": BASE | {"adapter", "checkpoint", "__init__"},
    "runs": BASE | {"text", "core", "jobs"},
}
# It is handed an engine, and writes nothing.
ALLOWED["suggest"] = {"errors", "options", "text", "core"}
EVERYTHING_BELOW = {*ALLOWED}
ALLOWED["repl"] = EVERYTHING_BELOW
# Of chat it needs the terminal, the loader, and files of JSON lines.
ALLOWED["editor"] = EVERYTHING_BELOW | {"repl"}
# Of chat they need the formats; they write nothing themselves.
ALLOWED["api"] = BASE | MIDDLE - {"settings"} | {"core", "repl", "__init__"}
ALLOWED["serve"] = ALLOWED["api"] | {"api"}
ALLOWED["batch"] = ALLOWED["api"] | {"api", "jobs", "hub", "remote"}
ALLOWED["cli"] = EVERYTHING_BELOW | {"repl", "editor", "api", "serve", "batch", "__init__"}
ALLOWED["__init__"] = {"core", "errors", "options"}
ALLOWED["__main__"] = {"cli", "terminal"}

ONLY_IN = {
    "typer": {"cli"},
    "matplotlib": {"terminal"},
    "rich": {"terminal", "repl"},
    "prompt_toolkit": {"repl", "editor"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "h11": {"serve"},
    "ray": {"batch"},
    "sqlite3": {"runs"},
}
AT_MODULE_LEVEL = {"torch": {"core", "analysis", "train", "bench"}, "transformers": {"train"}}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.AST, *, module_level: bool = False) -> Iterator[str]:
    """The dotted names that are imported; at module level only what runs, not what type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if module_level and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node, module_level=module_level)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_call_only_what_is_below_them(path: Path) -> None:
    room = room_of(path)
    tree = ast.parse(path.read_text("utf-8"))
    for name in imports(tree):
        top, *rest = name.split(".")
        if top == "gpt2cli":
            called = (
                rest[0]
                if rest and ((PACKAGE / rest[0]).exists() or (PACKAGE / f"{rest[0]}.py").exists())
                else "__init__"
            )
            assert called == room or called in ALLOWED[room], f"{room} imports {name}"
        if top in ONLY_IN:
            assert room in ONLY_IN[top], f"{room} imports {name}"
    for name in imports(tree, module_level=True):
        top = name.split(".")[0]
        if top in AT_MODULE_LEVEL:
            assert room in AT_MODULE_LEVEL[top], f"{room} imports {name} at module level"


OF_THE_CORE = [
    {"gpt2cli.core.cuda_graph", "gpt2cli.core.torch_gpt2"},
    {"gpt2cli.core.native", "gpt2cli.core.native.backend"},
]
"""Circles that are left: a type of the one is named in the other."""


def test_no_circles_of_imports() -> None:
    """Imports in functions and those that only a type checker sees count too."""
    sources = {module_name(path): path for path in modules()}
    called = {name: set(imported_modules(path, sources.keys())) - {name} for name, path in sources.items()}
    reached = {name: reachable(name, called) for name in called}
    circles = {frozenset(other for other in reached[name] if name in reached[other]) for name in called}
    assert [sorted(circle) for circle in circles if circle and circle not in OF_THE_CORE] == []


def test_circles_are_found() -> None:
    called = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert reachable("a", called) == {"b", "c"}
    assert reachable("b", called) == {"b", "c"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: Collection[str]) -> Iterator[str]:
    """The modules among ``known`` that a file imports anywhere."""
    for name in imports(ast.parse(path.read_text("utf-8"))):
        module = name if name in known else name.rpartition(".")[0]
        if module in known:
            yield module


def reachable(name: str, called: Mapping[str, set[str]]) -> set[str]:
    """All that ``name`` calls, and what these call."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = called[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_no_click() -> None:
    """Typer carries its own; an installed one is another."""
    for path in modules():
        names = [name.split(".")[0] for name in imports(ast.parse(path.read_text("utf-8")))]
        assert "click" not in names, path


def test_only_terminal_writes() -> None:
    for path in modules():
        if room_of(path) in ("terminal", "repl"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            assert called != "print", path
            stream = isinstance(node, ast.Attribute) and ast.unparse(node)
            assert stream not in ("sys.stdout", "sys.stderr"), path


def modules_loaded_by(*arguments: str | Path, stdin: str = "") -> set[str]:
    """The top-level modules that a run of the command line loads, in a process of its own."""
    code = (
        "import sys; from gpt2cli.cli.app import main; code = main(sys.argv[1:]);"
        "sys.stderr.write('\\nLOADED ' + ' '.join(sorted({n.split('.')[0] for n in sys.modules})));"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(os.fspath, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split())


NOT_FOR_HELP = {
    "torch",
    "transformers",
    "prompt_toolkit",
    "tokenizers",
    "huggingface_hub",
    "starlette",
    "http",
}


@pytest.mark.parametrize("path", some_slow(command_paths(), 8), ids=lambda path: " ".join(path) or "gpt2cli")
def test_help_loads_nothing_heavy(path: tuple[str, ...]) -> None:
    """Help answers at once."""
    loaded = modules_loaded_by(*path, "--help")
    assert loaded.isdisjoint(NOT_FOR_HELP)


HEAVY = {"torch", "transformers", "prompt_toolkit", "httpx", "httpx2", "http"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("config", "list"),
        ("preset", "list"),
        ("completions", "--models"),
        ("list",),
        ("list", "--available"),
        ("verify",),
        ("gc",),
    ],
)
def test_light_commands_stay_light(arguments: tuple[str, ...]) -> None:
    assert modules_loaded_by(*arguments).isdisjoint(HEAVY)


def test_models_are_handled_without_torch(tiny_model: Path, tmp_path: Path) -> None:
    """Copying, hashing and checking a model does not take its weights into memory."""
    for arguments in (
        ("import", tiny_model, "--name", "my-stories"),
        ("list", "--json"),
        ("show", "my-stories"),
        ("verify", "my-stories"),
        ("export", "my-stories", tmp_path / "out"),
        ("rm", "--yes", "my-stories"),
    ):
        assert modules_loaded_by(*arguments).isdisjoint(HEAVY), arguments


NOT_FOR_TOKENS = {"transformers", "prompt_toolkit", "huggingface_hub", "http"}
TOKENS = [
    pytest.param(("generate", "-q", "--max-new-tokens", "1", "ab"), "", id="generate"),
    pytest.param(("generate", "-q", "--max-new-tokens", "3", "-n", "3", "--top-p", "0.9", "ab"), "", id="-n"),
    pytest.param(("chat", "-q", "--max-new-tokens", "1"), "ab\n", id="chat"),
    pytest.param(("batch", "-q", "--max-new-tokens", "1", "-"), "ab\n", id="batch"),
]


@pytest.mark.parametrize(("arguments", "stdin"), TOKENS)
def test_the_token_path_does_not_load_transformers(
    tiny_model: Path, arguments: tuple[str, ...], stdin: str
) -> None:
    """Two seconds that it never pays; a chat template is rendered without transformers."""
    command, *rest = arguments
    assert modules_loaded_by(command, "-m", tiny_model, *rest, stdin=stdin).isdisjoint(NOT_FOR_TOKENS)


@pytest.mark.skipif(not native_available(), reason="the native library is not available")
@pytest.mark.parametrize("precision", ["auto", "fp32", "int8"])
@pytest.mark.parametrize(("arguments", "stdin"), TOKENS)
def test_the_token_path_does_not_load_torch(
    tiny_model: Path, arguments: tuple[str, ...], stdin: str, precision: str
) -> None:
    """On a CPU, with the default random numbers: another second."""
    command, *rest = arguments
    loaded = modules_loaded_by(command, "-m", tiny_model, "--precision", precision, *rest, stdin=stdin)
    assert loaded.isdisjoint({*NOT_FOR_TOKENS, "torch"})


@pytest.mark.slow
@pytest.mark.skipif(not native_available(), reason="the native library is not available")
def test_bench_does_not_load_torch_to_measure_without_it(tiny_model: Path) -> None:
    loaded = modules_loaded_by("bench", "-q", "-m", tiny_model, "--precision", "auto", "--rounds", "1")
    assert loaded.isdisjoint({*NOT_FOR_TOKENS, "torch"})


TORCH_FREE = sorted(
    path.stem
    for path in (PACKAGE / "core").glob("*.py")
    if path.stem
    not in {
        *(
            "torch_gpt2",
            "torch_weights",
            "torch_model",
            "cuda_graph",
            "transformers_lm",
            "transformers_load",
            "transformers_model",
        ),
        *("convert", "converted", "pickles", "__init__"),
    }
)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_the_core_imports_torch_in_its_backend_only(name: str) -> None:
    tree = ast.parse((PACKAGE / "core" / f"{name}.py").read_text("utf-8"))
    names = [*imports(tree, module_level=True)]
    assert not any(each.startswith(("torch", "gpt2cli.core.torch", "gpt2cli.core.cuda")) for each in names)


def test_a_scheduler_runs_without_torch(tiny_model: Path) -> None:
    """What the layering allows, done: the whole way of a token over a backend without torch."""
    code = (
        "import sys; from pathlib import Path; from numpy_gpt2 import load_numpy;"
        "from gpt2cli.options import GenerateOptions;"
        "options = GenerateOptions(seed=1, max_new_tokens=3, num_return_sequences=2, top_p=0.9, logprobs=2);"
        "print(load_numpy(Path(sys.argv[1])).generate('ab', options));"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code, os.fspath(tiny_model)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])},
        check=True,
        capture_output=True,
    )


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, gpt2cli; print(' '.join(n for n in sys.modules if n.startswith('gpt2cli.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
