"""Scoring one text of any length or many texts, with progress, and going on where a run was broken off."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from gpt2cli.analysis.score import Scorer, WindowScore
from gpt2cli.analysis.surprisal import Surprisal
from gpt2cli.analysis.totals import Totals
from gpt2cli.analysis.windows import Window, WindowOptions, from_token, windows
from gpt2cli.cli import score_output as show
from gpt2cli.cli.loading import FoundModel, encode_text, tokenizer_of
from gpt2cli.cli.row_output import Rows
from gpt2cli.cli.score_options import Job
from gpt2cli.cli.score_standing import keep_manifest, manifest_of, standing_of
from gpt2cli.cli.sources import Record, at_record, read_lines, read_records, some_records
from gpt2cli.core.engine import Engine
from gpt2cli.errors import ModelFileError, UsageError
from gpt2cli.files import write_atomically
from gpt2cli.jobs.standing import Standing
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.plots import Panel, save_panels
from gpt2cli.terminal.progress import Meter, make_meter
from gpt2cli.text.pieces import read_pieces
from gpt2cli.text.reading import bad_bytes

METER_AFTER_S = 1.0


def run_texts(job: Job, found: FoundModel, engine: Engine, options: WindowOptions) -> None:
    """Score what the source holds, and put it out. Raises `Gpt2cliError`."""
    TextRun(job, found, engine, options).run()


class TextRun:
    """One run: where it is in the source, what was summed, what was put out."""

    def __init__(self, job: Job, found: FoundModel, engine: Engine, options: WindowOptions) -> None:
        self._job, self._found, self._engine, self._windows = job, found, engine, options
        self._options, self._terminal, self._source = job.options, job.terminal, job.source
        self._tokenizer = tokenizer_of(engine)
        self._text_of = show.text_of(engine.tokenizer)
        self._started = time.perf_counter()
        self._rows = Rows(job.terminal, None if self._options.json else self._row_file())
        self._texts: list[dict[str, Any]] = []
        """The documents of the texts so far, for --json."""
        self._tokens: list[dict[str, Any]] = []
        """The documents of the current text's tokens, for --json with --tokens."""
        self._aligned = job.terminal.stdout_is_terminal and self._options.output is None
        self._meter: Meter | None = None
        self._resumed = False
        self._empty = False
        """Whether the one text is empty."""
        self._state = self._fresh()
        self._current = Totals()
        self._marks: deque[tuple[int, int]] = deque()
        """Where the pieces of one text begin, in bytes and in tokens; the first is the one being scored."""

    def _row_file(self) -> Any:
        return self._options.output if self._has_rows else None

    @property
    def _has_rows(self) -> bool:
        return self._options.many or self._options.tokens

    @staticmethod
    def _fresh() -> dict[str, Any]:
        """Nothing is done yet. ``offset`` is in bytes, ``index`` counts texts, the rest tokens of one."""
        cursor = {"offset": 0, "index": 0, "token": 0, "begin": 0, "held": 0}
        return {"cursor": cursor, "totals": {}, "texts": 0, "bad": 0, "rows": 0, "surprisal": None}

    def run(self) -> None:
        """Do it all."""
        progress = self._progress()
        self._resume(progress)
        self._total = Totals(**self._state["totals"])
        plot = Surprisal(self._state["surprisal"]) if self._options.plot else None
        if not self._options.many:
            self._current = Totals(**self._state["totals"])
        scorer = Scorer(
            self._engine,
            details=self._options.tokens,
            top=self._options.top,
            batch_tokens=self._options.batch_tokens,
        )
        if not self._resumed:
            self._open_rows()
        done = False
        try:
            found = self._many() if self._options.many else self._one()
            for group in scorer.groups(found, whole_texts=self._options.many):
                for part in group:
                    self._take(part, plot)
                self._move(group[-1], plot)
                if progress is not None:
                    progress.save(self._save)
            done = True
        finally:
            if self._meter is not None:
                self._meter.stop()
            if not done:
                if progress is not None and self._state["totals"]:
                    progress.save(self._save, now=True)
                self._rows.abandon(keep=progress is not None)
        self._finish(plot)
        if progress is not None:
            progress.remove()

    def _open_rows(self) -> None:
        self._rows.begin()
        if self._aligned and not (self._options.json or self._options.jsonl):
            if self._options.tokens:
                self._rows.write(show.TOKEN_HEADER + "\n")
            elif self._options.many:
                self._rows.write(show.TEXT_HEADER + "\n")

    # Going on.

    def _progress(self) -> Standing | None:
        """Where the run's state is kept; None for what cannot be read or written again from the middle."""
        options, path = self._options, self._source.path
        if path is None or (self._has_rows and (options.json or options.output is None)):
            return None
        beside = self._rows.partial if self._has_rows else None
        return standing_of(self._job, self._found, self._engine, self._windows, beside)

    def _resume(self, progress: Standing | None) -> None:
        if progress is None:
            return
        state = progress.load()
        if state is None:
            return
        if not self._options.resume or not self._rows.begin(int(state["rows"]) if self._has_rows else None):
            progress.remove()
            return
        self._state, self._resumed = state, True
        offset = state["cursor"]["offset"]
        assert self._source.seek is not None
        self._source.seek(offset)
        scored = state["totals"]["tokens"]
        self._terminal.note(
            f"{self._source.name}: going on after {scored:,} tokens (--no-resume begins anew)"
        )

    def _save(self) -> dict[str, Any]:
        self._rows.flush()
        return self._state

    def _move(self, last: WindowScore, plot: Surprisal | None) -> None:
        """The state after a group."""
        window: Window = last.window
        cursor = dict(self._state["cursor"])
        if self._options.many:
            cursor.update(offset=window.tag.end, index=window.tag.index + 1)
        else:
            begin = window.begin + self._windows.stride
            cursor.update(begin=begin, held=window.begin + len(window.ids))
            while len(self._marks) > 1 and self._marks[1][1] <= begin:
                self._marks.popleft()
            if self._marks:
                cursor.update(offset=self._marks[0][0], token=self._marks[0][1])
        self._state = {
            "cursor": cursor,
            "totals": asdict(self._total),
            "texts": self._count,
            "bad": self._bad,
            "rows": self._rows.size,
            "surprisal": plot.state() if plot else None,
        }
        self._show_progress(self._reached(cursor))

    # Reading.

    @property
    def _specials(self) -> tuple[list[int], list[int]]:
        """What stands before and after each text."""
        config = self._engine.config
        before = [config.bos_token_id] if self._options.bos and config.bos_token_id is not None else []
        return before, list(config.eos_token_ids[:1]) if self._options.eos else []

    def _encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(
            text, special_tokens=self._options.special_tokens, template=not self._options.bos
        )
        if ids and max(ids) >= self._engine.config.vocab_size:
            raise ModelFileError(
                f"{self._engine.checkpoint.directory}: its tokenizer gives id {max(ids)}, "
                f"and the model's vocabulary has {self._engine.config.vocab_size}"
            )
        return ids

    def _note_bad(self, bad: int) -> None:
        if bad and self._options.strict:
            raise UsageError(bad_bytes(self._source.name, bad))
        self._bad += bad

    def _one(self) -> Iterator[Window]:
        """The windows of the one text, read and tokenised piece by piece."""
        cursor = self._state["cursor"]
        self._count, self._bad = 0, self._state["bad"]
        tag = Record(0, "")
        chunks = from_token(self._chunks(cursor), cursor["begin"] - cursor["token"])
        return windows(tag, chunks, self._windows, begin=cursor["begin"], held=cursor["held"])

    def _chunks(self, cursor: dict[str, int]) -> Iterator[Sequence[int]]:
        before, after = self._specials
        at = cursor["token"]
        if not self._resumed:
            self._marks.append((0, 0))
            at = len(before)
            yield before
        pieces = read_pieces(
            self._source.read,
            self._tokenizer,
            offset=cursor["offset"],
            keep_end=self._source.typed or self._options.keep_newline,
        )
        self._empty = not self._resumed
        for piece in pieces:
            self._empty = False
            self._note_bad(piece.bad)
            if at > 0 or self._resumed:
                self._marks.append((piece.offset, at))
            ids = self._encode(piece.text)
            at += len(ids)
            yield ids
        if self._empty and not before:
            yield encode_text(self._engine, "")
        yield after

    def _many(self) -> Iterator[Window]:
        """The windows of all texts, one after the other."""
        cursor = self._state["cursor"]
        self._count, self._bad = self._state["texts"], self._state["bad"]
        _, after = self._specials
        for record in self._records(cursor["offset"], cursor["index"]):
            self._note_bad(record.bad)
            with at_record(record):
                ids = encode_text(
                    self._engine,
                    record.text,
                    bos=self._options.bos,
                    special_tokens=self._options.special_tokens,
                )
            yield from windows(record, [ids, after], self._windows)

    def _records(self, offset: int, index: int) -> Iterator[Record]:
        source, name = self._source.read, self._source.name
        if self._options.records:
            found = read_records(source, name, self._options.field, offset=offset, index=index)
        else:
            found = read_lines(source, name, offset=offset, index=index)
        found = found if self._resumed else some_records(found, name)
        shard = self._options.shard
        return found if shard is None else (record for record in found if record.index in shard)

    # Putting out.

    def _take(self, part: WindowScore, plot: Surprisal | None) -> None:
        """One window's scores."""
        window, options = part.window, self._options
        self._current.add(part.totals)
        self._total.add(part.totals)
        place = window.begin + window.first
        if plot is not None and len(part.scores):
            plot.add(place, part.scores.logprobs)
        if options.tokens:
            for n, score in enumerate(part.scores):
                self._put_token(window.tag, show.token_document(place + n, score, self._text_of))
        if window.last:
            self._count += 1
            self._put_text(window.tag, self._current)
            self._current = Totals()

    def _put_token(self, record: Record, document: dict[str, Any]) -> None:
        if self._options.json:
            self._tokens.append(document)
        elif self._options.jsonl:
            self._rows.write(json_line({"event": "token", "index": record.index, **document}))
        else:
            self._rows.write(show.token_line(document, aligned=self._aligned))

    def _put_text(self, record: Record, totals: Totals) -> None:
        options = self._options
        if options.json:
            document = show.text_document(record, totals, with_text=options.many)
            self._texts.append({**document, **({"token_scores": self._tokens} if options.tokens else {})})
            self._tokens = []
        elif options.many and options.jsonl:
            document = show.text_document(record, totals, with_text=True)
            self._rows.write(json_line({"event": "text", **document}))
        elif options.many and not options.tokens:
            width = self._terminal.width
            self._rows.write(show.text_line(record, totals, aligned=self._aligned, width=width))
        elif options.many:
            self._rows.write("\n")

    def _finish(self, plot: Surprisal | None) -> None:
        options, totals = self._options, self._total
        if self._bad:
            self._terminal.warn(f"{bad_bytes(self._source.name, self._bad)}; replaced")
        if not options.many and not totals.tokens and not self._empty:
            raise UsageError(
                f"{self._source.name} has a single token, and the first of a text cannot be scored",
                hint="give a longer text" if options.bos else "--bos puts the model's bos token before it",
            )
        document = self._document()
        shown = document["options"] if totals.windows > self._count else None
        if options.json:
            self._write_whole(json_line({**self._found.head(), **document}))
        elif options.jsonl:
            self._put_last(json_line({"event": "summary", **self._found.head(), **document}))
        elif options.many or options.tokens:
            for line in show.totals_lines(totals, shown):
                self._terminal.note(line.rstrip("\n"))
        else:
            self._put_last("".join(show.totals_lines(totals, shown)))
        if self._has_rows and not options.json:
            self._rows.finish()
            self._keep_manifest()
        if plot is not None and options.plot is not None:
            save_panels(options.plot, _panels(self._source.name, plot))

    def _keep_manifest(self) -> None:
        """For whoever puts shards together."""
        if self._options.shard is not None:
            manifest = manifest_of(self._job, self._found, self._engine, self._windows)
            keep_manifest(self._job, manifest, self._total, self._count)

    def _put_last(self, text: str) -> None:
        if self._has_rows:
            self._rows.write(text)
        else:
            self._write_whole(text)

    def _write_whole(self, text: str) -> None:
        if self._options.output is not None:
            write_atomically(self._options.output, text)
        else:
            self._terminal.write(text)

    def _document(self) -> dict[str, Any]:
        options = self._options
        seconds = time.perf_counter() - self._started
        document: dict[str, Any] = {
            "source": self._source.name,
            "options": {
                "window": self._windows.size,
                "stride": self._windows.stride,
                "bos": options.bos,
                "eos": options.eos,
                "special_tokens": options.special_tokens,
            },
        }
        if options.json:
            document["texts"] = self._texts
        return {
            **document,
            "total": {"texts": self._count, **self._total.document()},
            "resumed": self._resumed,
            "timings": {"load_s": round(self._engine.load_s, 4), "score_s": round(seconds, 4)},
            "engine": asdict(self._engine.info),
        }

    # Progress.

    def _reached(self, cursor: dict[str, int]) -> int:
        """About how far the source is scored, in bytes."""
        if len(self._marks) < 2:
            return cursor["offset"]
        (offset, token), (next_offset, next_token) = self._marks[0], self._marks[1]
        share = (cursor["begin"] - token) / (next_token - token)
        return offset + round(share * (next_offset - offset))

    def _show_progress(self, offset: int) -> None:
        if time.perf_counter() - self._started < METER_AFTER_S:
            return
        size = self._source.size
        if size is None:
            rate = self._total.tokens / (time.perf_counter() - self._started)
            self._terminal.live(f"{self._total.tokens:,} tokens · {rate:,.0f} tokens/s")
        elif self._meter is None and offset < size:
            self._meter = make_meter(self._terminal)
            self._meter.start(self._source.name, size, offset)
        elif self._meter is not None:
            self._meter.move(offset)


def _panels(name: str, plot: Surprisal) -> list[Panel]:
    stretch = plot.stretch
    which = "" if stretch == 1 else f", geometric mean of {stretch} tokens"
    return [
        Panel({name: plot.distribution()}, "Surprisal of the tokens", "bits", "share of the tokens"),
        Panel({name: plot.by_place()}, "Probability by position", "token", f"probability{which}"),
    ]
