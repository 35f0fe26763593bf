"""A text that is open: its document, the file that it came from, its sidecar and its recovery file."""

from __future__ import annotations

from pathlib import Path

from gpt2cli.editor.document import Document
from gpt2cli.editor.provenance import provenance, read_provenance, sidecar_of
from gpt2cli.editor.recovery import Recovered, Recovery
from gpt2cli.editor.spans import BEFORE, run_of
from gpt2cli.editor.textfile import MAX_BYTES, Form, decoded, differs, encoded, read_bytes, too_large
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import check_writable, write_atomically
from gpt2cli.options import shown


class OpenText:
    """The text of a file, or one without a name.

    ``disk`` are the bytes that the file had when it was read or saved last, None for no file.
    ``keeps_provenance`` says whether a sidecar is written: it was asked for, or there is one already.
    ``notes`` are what the user should know once. With ``keeps_recovery`` the recovery file stays at the end.
    """

    def __init__(self, path: Path | None, recovery: Recovery, *, with_provenance: bool) -> None:
        self.path, self.recovery, self.keeps_provenance = path, recovery, with_provenance
        self.document, self.form = Document(), Form()
        self.disk: bytes | None = None
        self.notes: list[str] = []
        self.keeps_recovery = False

    @classmethod
    def open(cls, path: Path | None, *, with_provenance: bool = False) -> OpenText:
        """Read ``path``, which need not exist yet, and lock its recovery file.

        Raises `UsageError` for what is no text or cannot be saved there, `Gpt2cliError` where another
        process has it open.
        """
        text, form, data = "", Form(), None
        if path is not None:
            check_writable(path)
            data = read_bytes(path)
            if data is not None:
                text, form = decoded(data, str(path))
        opened = cls(path, Recovery.of(path), with_provenance=with_provenance)
        opened.form, opened.disk = form, data
        opened.document = opened._with_sidecar(text, data)
        return opened

    def _with_sidecar(self, text: str, data: bytes | None) -> Document:
        runs = None
        if self.path is not None and data is not None:
            try:
                runs = read_provenance(self.path, data, text, self.form)
            except ValueError as error:
                self.notes.append(f"provenance begins anew: {error}")
                self.keeps_provenance = True
        self.keeps_provenance = self.keeps_provenance or runs is not None
        return Document(text, run_of(text, BEFORE) if runs is None else runs)

    @property
    def name(self) -> str:
        """As it is shown."""
        return self.path.name if self.path is not None else "unnamed"

    def recovered(self) -> Recovered | None:
        """What a program that was killed left unsaved; None where there is nothing to recover.

        Then changes are kept from now on.
        """
        found = self.recovery.read()
        if found is None or found.document.text == self.document.text:
            self.discard()
            return None
        return found

    def restore(self, found: Recovered) -> None:
        """Go on with what was recovered; of a file that has changed since, `changed_elsewhere` tells."""
        self.document, self.form = found.document, found.form
        if self.disk is not None or found.base:
            self.disk = encoded(found.base, found.form)
        self.document.changed = self.recovery.add

    def discard(self) -> None:
        """Go on with the text of the file."""
        self.recovery.begin(self.document, self.form)
        self.document.changed = self.recovery.add

    def changed_elsewhere(self) -> bool:
        """Whether the file's content is not what was read or saved last. Raises `Gpt2cliError`."""
        return self.path is not None and differs(self.path, self.disk)

    def save(self) -> None:
        """Write the text whole, or not at all, and then its sidecar. Raises `Gpt2cliError`."""
        if self.path is None:
            raise UsageError("the text has no name yet")
        document = self.document
        try:
            data = encoded(document.text, self.form)
        except UnicodeEncodeError as error:
            raise Gpt2cliError(f"a character cannot be written: {shown(error.object[error.start])}") from None
        if len(data) > MAX_BYTES:
            raise too_large(self.path)
        write_atomically(self.path, data)
        self.disk = data
        if self.keeps_provenance:
            name, runs = self.path.name, document.runs
            write_atomically(sidecar_of(self.path), provenance(name, document.text, self.form, runs))
        document.saved()
        self.recovery.begin(document, self.form)

    def name_as(self, path: Path) -> None:
        """Save a text without a name under one. Raises `Gpt2cliError`, and then nothing has changed."""
        check_writable(path)
        disk = read_bytes(path)
        recovery = Recovery.of(path)
        recovery.warn = self.recovery.warn
        kept = self.keeps_provenance
        self.path, self.disk = path, disk
        self.keeps_provenance = kept or sidecar_of(path).exists()
        try:
            self.save()
        except BaseException:
            self.path, self.disk, self.keeps_provenance = None, None, kept
            recovery.close()
            raise
        # Until the text was saved the old file had the changes.
        self.recovery.close()
        self.recovery = recovery
        self.discard()

    def close(self) -> None:
        """Let go of the recovery file."""
        self.recovery.close(keep=self.keeps_recovery)
