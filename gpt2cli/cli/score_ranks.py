"""Continuations beside each other, and the tasks made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from gpt2cli.analysis.choices import Choice, rank_choices
from gpt2cli.analysis.score import Batcher
from gpt2cli.analysis.tasks import (
    LambadaResult,
    LastWord,
    Passage,
    last_words,
    passage,
    read_cloze,
    score_cloze,
    score_partly,
)
from gpt2cli.cli import score_output as show
from gpt2cli.cli.loading import FoundModel, encode_text, tokenizer_of
from gpt2cli.cli.row_output import Rows
from gpt2cli.cli.score_options import Job
from gpt2cli.cli.sources import Record, at_record, read_lines, read_records, some_records
from gpt2cli.core.engine import Engine
from gpt2cli.errors import UsageError
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.progress import Meter, make_meter
from gpt2cli.terminal.table import aligned, tab_separated
from gpt2cli.text.pieces import read_pieces
from gpt2cli.text.reading import bad_bytes
from gpt2cli.text.visible import quoted

METER_AFTER_S = 1.0


class _Run:
    """What choices and tasks share: reading, encoding, putting out."""

    def __init__(self, job: Job, found: FoundModel, engine: Engine) -> None:
        self.job, self.found, self.engine = job, found, engine
        self.options = job.options
        self.rows = Rows(job.terminal, job.options.output)
        self.batcher = Batcher(engine.model, job.options.batch_tokens)
        self._tokenizer = tokenizer_of(engine)
        self._started = time.perf_counter()
        self._meter: Meter | None = None
        self._bad = 0

    def encode(self, text: str) -> list[int]:
        """The ids of a part of a text; none of an empty one."""
        if not text:
            return []
        ids = self._tokenizer.encode(text, special_tokens=self.options.special_tokens, template=False)
        if ids and max(ids) >= self.engine.config.vocab_size:
            raise UsageError("the tokenizer has more entries than the model's vocabulary")
        return ids

    @property
    def bos(self) -> list[int]:
        """What ``--bos`` puts before each text."""
        bos = self.engine.config.bos_token_id
        return [bos] if self.options.bos and bos is not None else []

    def encode_context(self, text: str) -> list[int]:
        """The ids of a beginning, with bos where it is asked for, or where there is no other."""
        options = self.options
        return encode_text(self.engine, text, bos=options.bos, special_tokens=options.special_tokens)

    def records(self) -> Iterator[Record]:
        """The texts, with their progress on stderr."""
        source = self.job.source
        if self.options.records:
            found = read_records(source.read, source.name, self.options.field)
        elif self.options.many or self.options.task is not None:
            found = (record for record in read_lines(source.read, source.name) if record.text.strip())
        else:
            found = self._whole()
        for record in islice(some_records(found, source.name), self.options.limit):
            self._bad += record.bad
            if record.bad and self.options.strict:
                raise UsageError(bad_bytes(f"{source.name}: {record.place}", record.bad))
            self._show_progress(record.end)
            yield record

    def _whole(self) -> Iterator[Record]:
        source = self.job.source
        keep = source.typed or self.options.keep_newline
        pieces = list(read_pieces(source.read, self._tokenizer, keep_end=keep))
        yield Record(0, "".join(piece.text for piece in pieces), bad=sum(piece.bad for piece in pieces))

    def _show_progress(self, done: int) -> None:
        size = self.job.source.size
        if size is None or time.perf_counter() - self._started < METER_AFTER_S:
            return
        if self._meter is None:
            self._meter = make_meter(self.job.terminal)
            self._meter.start(self.job.source.name, size, done)
        self._meter.move(done)

    def put(self, work: Callable[[], None]) -> None:
        """Run ``work``, which writes rows; they are there when all went well."""
        self.rows.begin()
        done = False
        try:
            work()
            done = True
        finally:
            if self._meter is not None:
                self._meter.stop()
            if not done:
                self.rows.abandon(keep=False)
        self.rows.finish()
        if self._bad:
            self.job.terminal.warn(f"{bad_bytes(self.job.source.name, self._bad)}; replaced")

    def tail(self) -> dict[str, Any]:
        """The last fields of a document."""
        return {
            "timings": {
                "load_s": round(self.engine.load_s, 4),
                "score_s": round(time.perf_counter() - self._started, 4),
            },
            "engine": asdict(self.engine.info),
        }


def run_choices(job: Job, found: FoundModel, engine: Engine) -> None:
    """Rank the choices after each text. Raises `Gpt2cliError`."""
    run = _Run(job, found, engine)
    texts, options = job.options.choices, job.options
    followers = [run.encode(text) for text in texts]

    def ranked() -> Iterator[tuple[Record, list[Choice]]]:
        for record in run.records():
            with at_record(record):
                context = run.encode_context(record.text)
            yield record, rank_choices(engine, context, texts, followers, options.normalize, run.batcher)

    run.put(lambda: _put_choices(run, ranked()))


def _put_choices(run: _Run, found: Iterable[tuple[Record, list[Choice]]]) -> None:
    options, head = run.options, run.found.head()
    documents = []
    for record, choices in found:
        document: dict[str, Any] = {"index": record.index, "text": record.text}
        if record.id is not None:
            document["id"] = record.id
        document["choices"] = [_choice_document(choice) for choice in choices]
        if options.json:
            documents.append(document)
        elif options.jsonl:
            run.rows.write(json_line({"event": "choices", **document}))
        else:
            _put_ranking(run, record, choices)
    settings = {"normalize": options.normalize, "bos": options.bos}
    if options.json:
        run.rows.write(json_line({**head, "options": settings, "texts": documents, **run.tail()}))
    elif options.jsonl:
        run.rows.write(json_line({"event": "summary", **head, "options": settings, **run.tail()}))


def _choice_document(choice: Choice) -> dict[str, Any]:
    return {
        "choice": choice.text,
        "index": choice.index,
        "token_ids": list(choice.tokens),
        "logprob": show.finite(choice.logprob),
        "probability": choice.probability,
        "score": show.finite(choice.score),
        "share": choice.share,
        "token_logprobs": [show.finite(value) for value in choice.token_logprobs],
    }


def _put_ranking(run: _Run, record: Record, choices: list[Choice]) -> None:
    """Best first: probability, its share among the choices, log-probability, tokens, the choice."""
    on_screen = run.job.terminal.stdout_is_terminal and run.options.output is None
    rows = [
        (
            f"{choice.probability:.6g}",
            f"{choice.share:.4f}",
            f"{choice.logprob:.4f}",
            str(len(choice.tokens)),
            quoted(choice.text) if on_screen else show.written_token(choice.text),
        )
        for choice in choices
    ]
    if on_screen:
        header = ("probability", "share", "logprob", "tokens", "choice")
        run.rows.write("\n".join(aligned(header, rows, right=(0, 1, 2, 3))) + "\n")
        return
    name = [str(record.index + 1) if record.id is None else str(record.id)] if run.options.many else []
    run.rows.write(tab_separated([[*name, *row] for row in rows]))


def run_task(job: Job, found: FoundModel, engine: Engine) -> None:
    """Run the task over the file. Raises `Gpt2cliError`."""
    run = _Run(job, found, engine)
    run.put(lambda: _lambada(run) if job.options.task == "lambada" else _cloze(run))


def _lambada(run: _Run) -> None:
    def passages() -> Iterator[Passage]:
        for record in run.records():
            yield passage(run.engine, record, record.text, run.encode, run.bos)

    result = LambadaResult()
    items = []
    for word in last_words(run.batcher, passages()):
        result.add(word)
        if run.options.json or run.options.jsonl:
            items.append(_word_document(word))
        if run.options.jsonl:
            run.rows.write(json_line({"event": "passage", **items.pop()}))
    _put_result(run, "lambada", result.document(), items)


def _word_document(word: LastWord) -> dict[str, Any]:
    record: Record = word.passage.tag
    return {
        "index": record.index,
        **({} if record.id is None else {"id": record.id}),
        "token_ids": list(word.passage.target),
        "logprob": show.finite(word.logprob),
        "correct": word.correct,
        "last_token_correct": word.last_token_correct,
    }


def _cloze(run: _Run) -> None:
    task = run.options.task or "cloze"
    score = score_partly if task == "winograd" else score_cloze
    right = known = count = cut = 0
    items = []
    for record in run.records():
        cloze = read_cloze(record.place, record.data, record.text)
        scored = score(run.batcher, run.engine, cloze, run.encode, run.bos)
        count, known = count + 1, known + (scored.correct is not None)
        right, cut = right + bool(scored.correct), cut + (scored.truncated > 0)
        document: dict[str, Any] = {
            "index": record.index,
            **({} if record.id is None else {"id": record.id}),
            "chosen": scored.chosen,
            "choice": cloze.choices[scored.chosen],
            "answer": cloze.answer,
            "correct": scored.correct,
            "logprobs": [show.finite(value) for value in scored.logprobs],
        }
        if run.options.json:
            items.append(document)
        elif run.options.jsonl:
            run.rows.write(json_line({"event": task, **document}))
    accuracy = right / known if known else None
    result = {"texts": count, "with_answer": known, "accuracy": accuracy, "truncated_texts": cut}
    _put_result(run, task, result, items)


def _put_result(run: _Run, task: str, result: dict[str, Any], items: list[dict[str, Any]]) -> None:
    head = {**run.found.head(), "task": task, "source": run.job.source.name}
    if run.options.json:
        run.rows.write(json_line({**head, "result": result, "items": items, **run.tail()}))
    elif run.options.jsonl:
        run.rows.write(json_line({"event": "summary", **head, "result": result, **run.tail()}))
    else:
        for name, value in result.items():
            shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
            run.rows.write(f"{name.replace('_', ' '):<22} {shown:>12}\n")
