"""Of which model, options and version the rows of a file are: a small JSON file beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt2cli import __version__
from gpt2cli.adapter import fingerprint
from gpt2cli.checkpoint import weight_files
from gpt2cli.errors import UsageError
from gpt2cli.files import write_atomically
from gpt2cli.options import shown

FORMAT = 1
MAX_BYTES = 2**20
SUFFIX = ".manifest.json"
_BESIDE_WEIGHTS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
    *("merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja"),
)
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What all rows of a file have in common."""

    job: str
    """The command."""
    model: str
    """Its name, for people; ``model_hash`` says which it is."""
    model_hash: str
    options: Mapping[str, Any]
    """All that the rows depend on beside the model and themselves, as JSON."""
    seed: int | None = None
    shard: str | None = None
    version: str = __version__
    source: str | None = None
    """The SHA-256 of what was read, to tell shards of one job from others; a run may go on with more rows."""
    rows: int | None = None
    """How many rows the job has, or its part."""
    complete: bool = False
    """Whether all of them were there when the last run ended."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Where a job stands that reads its rows in their order."""

    def check_against(self, earlier: Manifest, path: Path) -> None:
        """Raise `UsageError` unless ``earlier``, of the rows in ``path``, is of the same job."""
        reason = self._difference(earlier)
        if reason is not None:
            raise UsageError(
                f"{path} was begun with another {reason}",
                hint=f"give another file, or remove {path.name} and {manifest_path(path).name} to begin anew",
            )

    def _difference(self, earlier: Manifest) -> str | None:
        for name, what in _COMPARED.items():
            ours, theirs = getattr(self, name), getattr(earlier, name)
            if ours != theirs:
                return f"{what}: {_brief(theirs)}, now {_brief(ours)}"
        for name in sorted({*self.options, *earlier.options}):
            ours, theirs = self.options.get(name), earlier.options.get(name)
            if ours != theirs:
                return f"{name.replace('_', '-')}: {_brief(theirs)}, now {_brief(ours)}"
        return None

    def normal(self) -> Manifest:
        """As it is when it was written and read again."""
        return replace(self, options=json.loads(json.dumps(self.options)))


_COMPARED = {
    "job": "command",
    "model_hash": "model",
    "seed": "seed",
    "shard": "shard",
    "version": "version of gpt2cli",
}


def _brief(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else "none" if value is None else shown(value)


def manifest_path(path: Path) -> Path:
    """Where the manifest of the rows in ``path`` is."""
    return path.with_name(path.name + SUFFIX)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Put it beside ``path``. Raises `Gpt2cliError`."""
    document = {"format": FORMAT, **asdict(manifest)}
    write_atomically(manifest_path(path), json.dumps(document, indent=2) + "\n")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest beside ``path``; None where there is none. Raises `UsageError` for one that is damaged."""
    beside = manifest_path(path)
    try:
        if not beside.exists():
            return None
        if beside.stat().st_size > MAX_BYTES:
            raise ValueError
        raw = json.loads(beside.read_bytes())
        if raw.pop("format") != FORMAT or not isinstance(raw["options"], dict):
            raise ValueError
        return Manifest(**raw)
    except OSError as error:
        raise UsageError(f"cannot read {beside}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(
            f"{beside}: it is no manifest of this version", hint="remove it and its rows to begin anew"
        ) from None


def remove_manifest(path: Path) -> None:
    """The manifest is not needed any more."""
    with contextlib.suppress(OSError):
        manifest_path(path).unlink()


def model_hash(
    directory: Path,
    known: Mapping[str, str] | None = None,
    hash_file: Callable[[Path], str] | None = None,
    *,
    adapter: Path | None = None,
) -> str:
    """The SHA-256 of a model's files: their names and contents. ``known`` are hashes of some, by name, and
    ``hash_file`` gives those of the others. With an ``adapter`` it is the hash of both.

    Raises `ModelFileError`, `OSError`, and what ``hash_file`` raises.
    """
    hash_file = hash_file or _file_hash
    files = [directory / name for name in _BESIDE_WEIGHTS if (directory / name).is_file()]
    whole = hashlib.sha256()
    for path in sorted([*files, *weight_files(directory)], key=lambda path: path.name):
        content = (known or {}).get(path.name) or hash_file(path)
        whole.update(f"{path.name}\0{content}\0".encode())
    if adapter is not None:
        whole.update(f"adapter\0{fingerprint(adapter)}\0".encode())
    return whole.hexdigest()


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
