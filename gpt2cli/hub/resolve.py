"""A name or a path to a model directory, for cli and repl alike."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2cli.adapter import check_is_adapter, is_adapter
from gpt2cli.errors import ModelNotFound, Unavailable, UsageError
from gpt2cli.hub.hfcache import cached_models, find_cached, find_cached_adapter
from gpt2cli.hub.registry import (
    ALIASES,
    BUILTIN,
    ModelName,
    is_name,
    parse_name,
    parse_reference,
    parse_revision,
    refuse_address,
)
from gpt2cli.hub.store import StoredModel, check_sizes, find_stored, stored_models


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model directory, the name that led to it, and the revision where it has one.

    ``stored`` says more of a model that has a name. With the directory of an ``adapter``, ``name`` is
    ``MODEL+ADAPTER``.
    """

    name: str
    directory: Path
    revision: str | None = None
    stored: StoredModel | None = None
    adapter: Path | None = None
    parts: tuple[str, str] = ("", "")
    """With an adapter, what the model and the adapter were called."""

    @property
    def base(self) -> str:
        """The name without its adapter."""
        return self.name if self.adapter is None else self.parts[0]

    @property
    def reference(self) -> str:
        """What `resolve` finds it again by, from any working directory."""
        own = self.base if self.stored is not None else str(self.directory.resolve())
        if self.adapter is None:
            return own
        return f"{own}+{self.adapter.resolve() if self._adapter_is_path else self.parts[1]}"

    @property
    def label(self) -> str:
        """Its name for others, whose business the path of a directory is not."""
        own = self.base if self.stored is not None else self.directory.resolve().name
        if self.adapter is None:
            return own
        return f"{own}+{self.adapter.resolve().name if self._adapter_is_path else self.parts[1]}"

    @property
    def _adapter_is_path(self) -> bool:
        return os.path.isdir(os.path.expanduser(self.parts[1]))

    def is_called(self, name: str) -> bool:
        """Whether ``name`` means the model without its adapter, here or where it was trained."""
        if self.stored is not None:
            return ALIASES.get(name, name) in (ALIASES.get(self.base, self.base), self.stored.name)
        return Path(name).name == self.directory.resolve().name


def resolve(model: str | None, *, revision: str | None = None, offline: bool = False) -> ResolvedModel:
    """The directory of ``model``: a directory, a name in our store or in a Hugging Face cache.

    None stands for the built-in model. A model directory comes before a name, and what looks like a
    path is never taken for a name. ``MODEL+ADAPTER`` is a model with an adapter (`with_adapter`). Raises
    `ModelNotFound`, `Unavailable` (``offline``), `UsageError`, and `ModelFileError` when a stored file has
    not the size of its manifest.
    """
    model, adapter = split_adapter(model)
    found = locate(model, revision=revision, offline=offline)
    if found.stored is not None:
        check_sizes(found.stored)
    return found if adapter is None else with_adapter(found, adapter)


def split_adapter(model: str | None) -> tuple[str | None, str | None]:
    """``MODEL`` and ``ADAPTER`` of ``MODEL+ADAPTER``; what is a directory as a whole has none."""
    if model is None or "+" not in model or os.path.isdir(os.path.expanduser(model)):
        return model, None
    places = [at for at, char in enumerate(model) if char == "+" and 0 < at < len(model) - 1]
    directories = [at for at in places if os.path.isdir(os.path.expanduser(model[:at]))]
    named = [at for at in places if is_name(model[:at])]
    at = next(iter((*reversed(directories), *named)), None)
    return (model, None) if at is None else (model[:at], model[at + 1 :])


def with_adapter(model: ResolvedModel, adapter: str) -> ResolvedModel:
    """``model`` with an adapter: a directory, or a ``NAME`` or ``NAME@REVISION`` on this disk.

    Raises `ModelNotFound`, `ModelFileError` for a pickle or a damaged file, `UsageError` for a second one.
    """
    if model.adapter is not None:
        raise UsageError(
            f"{model.name} has an adapter, and {adapter} would be a second one",
            hint="merge the first one: gpt2cli export MODEL+ADAPTER DIR",
        )
    directory = _adapter_directory(adapter)
    name = f"{model.name}+{adapter}"
    return replace(model, name=name, adapter=directory, parts=(model.name, adapter))


def _adapter_directory(adapter: str) -> Path:
    path = Path(os.path.expanduser(adapter))
    if not os.path.isdir(path):
        stored = _stored_adapter(adapter)
        if stored is None:
            raise ModelNotFound(
                f"{adapter}: no such adapter directory, and no adapter of that name on this disk",
                hint="an adapter is a directory with adapter_config.json, as peft writes it",
            )
        check_sizes(stored)
        path = stored.directory
    check_is_adapter(path)
    return path


def _stored_adapter(text: str) -> StoredModel | None:
    if not is_name(text.partition("@")[0]):
        return None
    name, revision = parse_reference(text)
    return find_stored(name, revision) or find_cached_adapter(name, revision)


def resolve_name(name: str, *, revision: str | None = None) -> ResolvedModel:
    """As `resolve`, for a name that somebody else gives: a directory of that name is not looked at.

    Of a model whose ``revision`` is not there another one will do.
    """
    if name == BUILTIN:
        return _builtin(given=True)
    if "+" in name:
        raise ModelNotFound(
            f"{name}: a model with an adapter is not looked for by its name",
            hint="name both: -m MODEL+ADAPTER",
        )
    parsed = parse_name(name)
    found = None
    if revision is not None:
        wanted = parse_revision(revision)
        found = find_stored(parsed, wanted) or find_cached(parsed, wanted)
    found = found or find_stored(parsed, None) or find_cached(parsed, None)
    if found is None:
        raise ModelNotFound(
            f"{name}: no model of that name on this disk", hint=f"gpt2cli pull {name}; or another one with -m"
        )
    check_sizes(found)
    return ResolvedModel(name, found.directory, found.revision, found)


def locate(model: str | None, *, revision: str | None = None, offline: bool = False) -> ResolvedModel:
    """As `resolve`, but a damaged model is found too."""
    if model is not None:
        refuse_address(model)
    if revision is not None:
        revision = parse_revision(revision)
    if model is None or model == BUILTIN:
        return _without_revision(_builtin(given=model is not None), revision)
    path = Path(os.path.expanduser(model))
    # The path of an empty text would be the working directory.
    is_directory = bool(model) and os.path.isdir(path)
    is_path = model.startswith((".", "/", "~")) or not model
    if is_directory and (is_path or os.path.exists(path / "config.json") or not is_name(model)):
        return _without_revision(ResolvedModel(model, path), revision)
    if is_path:
        what = "not a directory" if model and os.path.exists(path) else "no such directory"
        raise ModelNotFound(f"{model or '(empty)'}: {what}", hint=_hint())
    name = parse_name(model)
    found = find_stored(name, revision) or find_cached(name, revision)
    if found is not None:
        return ResolvedModel(model, found.directory, found.revision, found)
    if is_directory:
        return _without_revision(ResolvedModel(model, path), revision)
    raise _not_found(name, revision, offline)


def locate_reference(text: str) -> ResolvedModel:
    """As `locate`, of ``NAME``, ``NAME@REVISION`` or a directory."""
    name, at, revision = text.rpartition("@")
    if at and is_name(name) and not os.path.isdir(text):
        return locate(name, revision=revision)
    return locate(text)


def _without_revision(model: ResolvedModel, revision: str | None) -> ResolvedModel:
    if revision is not None:
        raise UsageError(f"{model.name}: a directory has no revisions", hint="leave --revision out")
    return model


def local_names() -> list[str]:
    """The names that ``-m`` takes for models on this disk, aliases first where one exists."""
    alias_of = {repository: alias for alias, repository in reversed(ALIASES.items())}
    models = (m for m in (*stored_models(), *cached_models()) if not is_adapter(m.directory))
    names = [alias_of.get(m.name, m.name) for m in models]
    if builtin_directory().is_dir():
        names.insert(0, BUILTIN)
    return list(dict.fromkeys(names))


def builtin_directory() -> Path:
    """Where the model that ships in the package lies."""
    return Path(__file__).resolve().parent.parent / "builtin"


def _builtin(*, given: bool) -> ResolvedModel:
    directory = builtin_directory()
    if not (directory / "config.json").is_file():
        what = f"{BUILTIN}: the files of" if given else "no model given, and the files of"
        raise ModelNotFound(
            f"{what} the built-in model are missing from {directory}",
            hint="install gpt2cli again, or name a model: gpt2cli config set model DIR_OR_NAME",
        )
    return ResolvedModel(BUILTIN, directory, stored=StoredModel(BUILTIN, "", directory, "builtin"))


def _not_found(name: ModelName, revision: str | None, offline: bool) -> ModelNotFound | Unavailable:
    wanted = name.given if revision is None else f"{name.given} at revision {revision}"
    if offline:
        return Unavailable(f"{wanted}: not on this disk, and offline", hint=_hint())
    return ModelNotFound(f"{wanted}: no such directory, and no model of that name on this disk", hint=_hint())


def _hint() -> str:
    names = local_names()
    if names:
        more = ", …" if len(names) > 5 else ""
        return f"on this disk: {', '.join(names[:5])}{more}; or give a directory"
    return "to get a model: gpt2cli pull gpt2; or give a directory with -m DIR"
