"""The sdist, the wheel and the editable install, with and without a C compiler.

They are built without isolation, by what the ``dev`` extra installs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import warnings
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import REPOSITORY

LIBRARIES = tuple(f"gpt2cli/core/native/_gpt2{suffix}" for suffix in (".so", ".dylib", ".dll"))
SOURCES = ("gpt2cli/core/native/CMakeLists.txt", "gpt2cli/core/native/src/")
NO_COMPILER = {"CC": "/nonexistent/cc"}
QUICK = {"SKBUILD_CMAKE_BUILD_TYPE": "Debug"}
"""Compiles without optimising, where only the place of the library matters."""
MAN_PAGE = "data/share/man/man1/gpt2cli.1"
LEFT_OUT = "the native library is left out"
COMPILER = any(map(shutil.which, (os.environ.get("CC", "cc"), "cc", "gcc", "clang")))

needs_compiler = pytest.mark.skipif(not COMPILER, reason="there is no C compiler")


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command, its two streams in one, as an environment without our variables sees it."""
    ours = ("GPT2CLI_", "CFLAGS", "CMAKE_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**kept, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def build(source: Path, out: Path, kind: str, **environ: str) -> tuple[Path, str]:
    """Build an ``sdist`` or a ``wheel``; the file, and what was printed."""
    pytest.importorskip("build")
    pytest.importorskip("scikit_build_core")
    command = (sys.executable, "-P", "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out)
    done = run(*command, cwd=source, **environ)
    assert done.returncode == 0, done.stdout
    (file,) = out.iterdir()
    return file, done.stdout


def names_in(wheel: Path) -> set[str]:
    """The files of the package in a wheel, which also holds its metadata and the man page."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert [name.partition(".data/")[2] for name in names if ".data/" in name] == [MAN_PAGE]
    return {name for name in names if ".dist-info/" not in name and ".data/" not in name}


def tag_of(wheel: Path) -> str:
    return wheel.stem.removeprefix("gpt2cli-").partition("-")[2]


def without_sources(names: set[str]) -> set[str]:
    return {name for name in names if not name.startswith(SOURCES)}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, tmp_path_factory.mktemp("sdist"), "sdist")[0]


@pytest.fixture
def source(sdist: Path, tmp_path: Path) -> Path:
    """The sdist unpacked: what a user without git has."""
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (directory,) = (tmp_path / "unpacked").iterdir()
    return directory


def package_of(source: Path) -> set[str]:
    """The paths of the package in a source tree, from its root."""
    files = (path for path in (source / "gpt2cli").rglob("*") if path.is_file())
    return {path.relative_to(source).as_posix() for path in files}


@pytest.mark.slow
@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a git checkout")
def test_sdist_holds_what_git_does(sdist: Path) -> None:
    """Nothing that was built, and no file of the checkout's root that is only for its development."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY).stdout
    expected = {name for name in listed.splitlines() if (REPOSITORY / name).exists()}
    expected -= {name for name in expected if name.startswith(".") and name != ".gitignore"}
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert names == expected | {"PKG-INFO"}


@pytest.mark.slow
@needs_compiler
def test_wheel_of_the_sdist(source: Path, tmp_path: Path) -> None:
    """One library more than the Python files, no C source; any Python 3 of this platform takes it."""
    wheel, _ = build(source, tmp_path / "wheel", "wheel")
    assert tag_of(wheel).startswith("py3-none-") and not tag_of(wheel).endswith("-any")
    libraries = names_in(wheel) - package_of(source)
    assert len(libraries) == 1 and libraries < set(LIBRARIES)
    assert names_in(wheel) - libraries == without_sources(package_of(source))
    with zipfile.ZipFile(wheel) as file:
        library = file.extract(*libraries, tmp_path)
        (entry_points,) = (name for name in file.namelist() if name.endswith("entry_points.txt"))
        assert "gpt2cli = gpt2cli.__main__:run" in file.read(entry_points).decode()
    loaded = run(sys.executable, "-c", f"import ctypes; ctypes.CDLL({library!r})", cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stdout


@pytest.mark.slow
def test_wheel_without_a_compiler(source: Path, tmp_path: Path) -> None:
    """It says so in one line, and the package is whole but for the library."""
    wheel, output = build(source, tmp_path / "wheel", "wheel", **NO_COMPILER)
    assert output.count(LEFT_OUT) == 1
    assert names_in(wheel) == without_sources(package_of(source))


@pytest.mark.slow
def test_wheel_where_the_library_is_not_wanted(source: Path, tmp_path: Path) -> None:
    """Then it fits every platform, and no compiler is looked for."""
    wheel, output = build(source, tmp_path / "wheel", "wheel", GPT2CLI_NATIVE="0")
    assert tag_of(wheel) == "py3-none-any" and "CMake" not in output
    assert names_in(wheel) == without_sources(package_of(source))


@pytest.mark.slow
@needs_compiler
def test_source_that_does_not_compile_is_an_error(source: Path, tmp_path: Path) -> None:
    """A library that fails to build is not left out silently; the way around it is named."""
    (source / "gpt2cli" / "core" / "native" / "src" / "broken.c").write_text("int f(void) { return }")
    command = (sys.executable, "-P", "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "out")
    done = run(*command, cwd=source, **QUICK)
    assert done.returncode != 0
    assert "GPT2CLI_NATIVE=0 installs without the native library" in done.stdout


@pytest.mark.slow
@needs_compiler
def test_editable_install(source: Path, tmp_path: Path) -> None:
    """The library lies beside the sources that are imported; a compiler that comes later is found."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    base = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    packages, scripts = (Path(sysconfig.get_path(name, "venv", base)) for name in ("purelib", "scripts"))
    (packages / "first.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    install = (scripts / "python", "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", source)
    where = (scripts / "python", "-P", "-c", "import gpt2cli; print(gpt2cli.__file__)")
    for environ, libraries in ((NO_COMPILER, 0), (QUICK, 1)):
        done = run(*install, cwd=tmp_path, **environ)
        assert done.returncode == 0, done.stdout
        assert run(*where, cwd=tmp_path).stdout.strip() == str(source / "gpt2cli" / "__init__.py")
        assert len(package_of(source) & set(LIBRARIES)) == libraries
    # What CMake left in the source tree goes into no wheel.
    wheel, _ = build(source, tmp_path / "wheel", "wheel", **QUICK)
    assert len(names_in(wheel) & set(LIBRARIES)) == 1
    assert not [name for name in names_in(wheel) if "cmake" in name.lower() or "ninja" in name]


def test_constraints_pin_what_is_asked_for() -> None:
    """`.ci/constraints.txt` has one version of each requirement, and it is one that pyproject admits."""
    file = REPOSITORY / ".ci" / "constraints.txt"
    if not file.exists():
        pytest.skip("the sdist has no .ci")
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(pins) == len(lines)
    document = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    project, extras = document["project"], document["project"]["optional-dependencies"]
    for text in [*document["build-system"]["requires"], *project["dependencies"], *chain(*extras.values())]:
        requirement = Requirement(text)
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_warnings_of_ours_are_errors() -> None:
    """The two sides of pyproject's ``filterwarnings``, for a warning that names a line of ours."""
    with pytest.raises(RuntimeWarning):
        warnings.warn("a product overflowed", RuntimeWarning, stacklevel=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("an argument has a new name", FutureWarning, stacklevel=1)
        warnings.warn("an argument has a new name", DeprecationWarning, stacklevel=1)
    assert [item.category for item in caught] == [FutureWarning, DeprecationWarning]
