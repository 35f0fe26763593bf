"""The sidecar of a saved file: who wrote which span of it.

It is named as the file with ``.provenance.json`` behind it, and holds one JSON object (docs/write.md)::

    {"gpt2cli_provenance": 1, "file": "story.txt", "sha256": "…", "bytes": 120,
     "draws": [{"number": 1, "model": "gpt2", "revision": null, "seed": 7, "options": {…}}],
     "spans": [{"start": 0, "end": 80, "by": "user"}, {"start": 80, "end": 120, "by": "model", "draw": 1}]}

``start`` and ``end`` count bytes of the file; the spans follow each other and are all of it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from pathlib import Path
from typing import Any

from gpt2cli.editor.records import MODEL, draw_of, draw_record, origin_of
from gpt2cli.editor.spans import Draw, Run, Runs, draws_in, joined
from gpt2cli.editor.textfile import Form, encoded
from gpt2cli.errors import ModelFileError
from gpt2cli.untrusted import read_json

VERSION = 1
MAX_BYTES = 64 * 2**20


def sidecar_of(path: Path) -> Path:
    """Where the provenance of ``path`` stands."""
    return path.with_name(f"{path.name}.provenance.json")


def provenance(name: str, text: str, form: Form, runs: Runs) -> bytes:
    """The content of the sidecar of a file called ``name``."""
    data = encoded(text, form)
    spans: list[dict[str, Any]] = []
    at = place = 0
    head = len(codecs.BOM_UTF8) if form.mark else 0
    for run in runs:
        part = text[at : at + run.length]
        size = len(part.encode("utf-8")) + (part.count("\n") if form.crlf else 0)
        start = place
        place += size + (head if not at else 0)
        at += run.length
        by: dict[str, Any] = {"by": run.origin}
        if isinstance(run.origin, Draw):
            by = {"by": MODEL, "draw": run.origin.number}
        spans.append({"start": start, "end": place, **by})
    if spans and place < len(data):
        # The final newline belongs to what stands before it.
        spans[-1]["end"] = len(data)
    document = {
        "gpt2cli_provenance": VERSION,
        "file": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "draws": [draw_record(draw) for draw in draws_in(runs)],
        "spans": spans,
    }
    return (json.dumps(document, indent=1, ensure_ascii=True) + "\n").encode("ascii")


def read_provenance(path: Path, data: bytes, text: str, form: Form) -> Runs | None:
    """The runs of ``text``, which are ``data`` in the file ``path``, by its sidecar; None without a sidecar.

    Raises ValueError where the sidecar is damaged or belongs to another content.
    """
    sidecar = sidecar_of(path)
    if not sidecar.exists():
        return None
    try:
        found = read_json(sidecar, MAX_BYTES)
    except ModelFileError as error:
        raise ValueError(str(error)) from None
    if found.get("gpt2cli_provenance") != VERSION:
        raise ValueError(f"{sidecar}: it is no provenance of version {VERSION}")
    if found.get("sha256") != hashlib.sha256(data).hexdigest():
        raise ValueError(f"{sidecar} belongs to another content of the file")
    try:
        return _runs(found, data, text, form)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{sidecar} is damaged: {error}") from None


def _runs(found: dict[str, Any], data: bytes, text: str, form: Form) -> Runs:
    draws = {draw.number: draw for draw in map(draw_of, found["draws"])}
    runs: list[Run] = []
    place = 0
    for span in found["spans"]:
        start, end = span["start"], span["end"]
        origin = origin_of(span["draw"] if span["by"] == MODEL else span["by"], draws)
        if type(end) is not int or start != place or not start < end <= len(data):
            raise ValueError("the spans do not follow each other")
        part = data[start:end]
        if not place and form.mark:
            part = part.removeprefix(codecs.BOM_UTF8)
        length = len(part.decode("utf-8")) - (part.count(b"\r\n") if form.crlf else 0)
        runs += [Run(length, origin)] if length else []
        place = end
    length = sum(run.length for run in runs)
    if runs and form.final_newline and length == len(text) + 1:
        last = runs.pop()
        runs += [Run(last.length - 1, last.origin)] if last.length > 1 else []
        length -= 1
    if place != len(data) or length != len(text):
        raise ValueError("the spans are not those of the file")
    return joined(runs)
