"""What lies on the disk and no model needs: cut-off downloads, half-removed models, old revisions.

Nothing younger than an hour is taken without being told to, since another process may be at it; nor a
partial download whose lock another process holds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError
from gpt2cli.hub.converted import unused_converted
from gpt2cli.hub.manifest import read_manifest
from gpt2cli.hub.store import INCOMING_PREFIX, LOCAL_REVISION, StoredModel, remove, remove_tree, stored_models
from gpt2cli.hub.usage import last_used

PARTIAL_DAYS = 7
TOKENS_DAYS = 30
PARTIAL_FOLDER = ".partial"
_DAY_S = 86_400.0
_SETTLED_S = 3600.0


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something to delete. ``kind``: ``partial``, ``unfinished``, ``revision``, ``tokens``, ``weights``."""

    kind: str
    path: Path
    size: int
    model: StoredModel | None = None


def find_garbage(*, days: float = PARTIAL_DAYS, everything: bool = False) -> list[Garbage]:
    """What can go.

    Partial downloads, and revisions that no branch or tag leads to any more, once unused for ``days``;
    what an import, a pull or a removal left unfinished, after an hour; token caches and converted weights
    of directories unused for 30 days.
    With ``everything`` age does not count.
    """
    now = time.time()

    def older(path: Path, seconds: float) -> bool:
        return everything or now - _touched(path) > seconds

    found = [
        Garbage("partial", path, path.lstat().st_size)
        for path in _partial_files()
        if older(path, days * _DAY_S) and not _in_use(path)
    ]
    found += [Garbage("unfinished", p, tree_size(p)) for p in _unfinished() if older(p, _SETTLED_S)]
    for model in _superseded(list(stored_models())):
        used = last_used(model)
        times = [_touched(model.directory), used.timestamp() if used else 0.0]
        if everything or now - max(times) > days * _DAY_S:
            found.append(Garbage("revision", model.directory, tree_size(model.directory), model))
    tokens = _entries(paths.cache_dir() / "tokens")
    found += [Garbage("tokens", p, tree_size(p)) for p in tokens if older(p, TOKENS_DAYS * _DAY_S)]
    found += [Garbage("weights", p, tree_size(p)) for p in unused_converted(everything=everything)]
    return found


def discard(garbage: Garbage) -> None:
    """Delete it. Raises `Gpt2cliError`."""
    if garbage.model is not None:
        remove(garbage.model)
        return
    try:
        remove_tree(garbage.path)
    except OSError as error:
        raise Gpt2cliError(f"cannot remove {garbage.path}: {error.strerror or error}") from None
    if garbage.kind == "partial":
        with contextlib.suppress(OSError):
            for folder in garbage.path.parents:
                if folder.name == PARTIAL_FOLDER:
                    break
                folder.rmdir()


def tree_size(path: Path) -> int:
    """The bytes of a file, or of all files below a directory; links are not followed."""
    total = 0
    with contextlib.suppress(OSError):
        total = 0 if path.is_dir() else path.lstat().st_size
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _partial_files() -> Iterator[Path]:
    """The files of cut-off downloads. Locks stay: to delete one lets two processes in."""
    for folder, _, names in os.walk(paths.store_dir() / PARTIAL_FOLDER):
        yield from (Path(folder, name) for name in sorted(names) if not name.endswith(".lock"))


def _unfinished() -> Iterator[Path]:
    """Directories that were being filled, revisions without a manifest, manifests without a revision."""
    for folder in _entries(paths.store_dir()):
        if folder.name.startswith(INCOMING_PREFIX):
            yield folder
        if folder.name.startswith(".") or not folder.is_dir() or folder.is_symlink():
            continue
        for path in _entries(folder):
            bare = path.is_dir() and not path.with_name(f"{path.name}.json").exists()
            orphan = path.suffix == ".json" and not path.with_suffix("").exists()
            if bare or (orphan and read_manifest(path)):
                yield path


def _superseded(models: list[StoredModel]) -> Iterator[StoredModel]:
    """Revisions that no branch or tag leads to, of models that another revision has one of.

    One that was pulled by its commit is among them, too.
    """
    leads_to: dict[tuple[str, str], StoredModel] = {}
    for model in sorted(models, key=lambda m: m.created):
        leads_to.update({(model.name, ref): model for ref in model.refs})
    alive = {(m.name, m.revision) for m in leads_to.values()}
    names = {name for name, _ in alive}
    for model in models:
        old = model.name in names and (model.name, model.revision) not in alive
        if old and model.revision != LOCAL_REVISION:
            yield model


def _touched(path: Path) -> float:
    """When something was last read, written or moved; the newest of what a directory holds."""
    newest = 0.0
    for each in (path, *_entries(path)):
        with contextlib.suppress(OSError):
            status = each.lstat()
            read = 0.0 if path.is_dir() else status.st_atime
            newest = max(newest, read, status.st_mtime, status.st_ctime if path.is_dir() else 0.0)
    return newest


def _in_use(path: Path) -> bool:
    """Whether another process holds the lock of the model that a partial download belongs to."""
    try:
        import fcntl
    except ImportError:
        # On Windows an open file cannot be deleted anyway.
        return False
    root = paths.store_dir() / PARTIAL_FOLDER
    try:
        with (root / f"{path.relative_to(root).parts[0]}.lock").open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
