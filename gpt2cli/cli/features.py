"""``gpt2cli features``: a model's hidden states of given texts, as files for other programs."""

from __future__ import annotations

import io
import json as json_module
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2cli.cli import params
from gpt2cli.cli.flags import ModelFlags, output_file, read_flags, read_settings
from gpt2cli.cli.loading import (
    FoundModel,
    encode_text,
    load_engine,
    model_hash,
    model_to_measure,
    tokenizer_of,
)
from gpt2cli.cli.row_output import Rows
from gpt2cli.cli.sources import (
    Record,
    Source,
    TextsFlags,
    at_record,
    open_source,
    read_lines,
    read_records,
    some_records,
)
from gpt2cli.errors import PromptTooLong, UsageError
from gpt2cli.files import write_atomically
from gpt2cli.jobs.manifest import Manifest, write_manifest
from gpt2cli.jobs.shards import Shard
from gpt2cli.jobs.standing import Standing, fingerprint
from gpt2cli.options import check_whole
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.pieces import read_pieces
from gpt2cli.text.reading import bad_bytes

if TYPE_CHECKING:
    from gpt2cli.analysis.features import FeatureOptions, Features
    from gpt2cli.core.engine import Engine

PoolName = Literal["none", "mean", "last"]
SUFFIXES = (".npz", ".safetensors", ".jsonl")

EXAMPLES = """Examples:

  gpt2cli features "A sentence" --pool mean

  gpt2cli features --lines -f sentences.txt --layer -1 --pool mean -o features.npz

  gpt2cli features -m gpt2 --layers all --attention all -o one.safetensors "The cat sat"
"""


def features(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="The text; words are joined by spaces. A final - reads stdin, which is also read "
            "when no text is given.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read the text from FILE.", show_default=False),
    ] = None,
    model: params.Model = None,
    adapter: params.Adapter = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    lines: params.Lines = False,
    from_jsonl: params.FromJsonl = False,
    field: params.Field = None,
    bos: params.Bos = False,
    truncate: Annotated[
        bool,
        typer.Option(
            "--truncate",
            metavar="",
            help="Keep only the last tokens of a text that is longer than the context.",
            rich_help_panel="Texts",
        ),
    ] = False,
    special_tokens: params.SpecialTokens = None,
    strict: params.Strict = False,
    layers: Annotated[
        str,
        typer.Option(
            "--layer",
            "--layers",
            metavar="N,…",
            help="The layers, counted as in transformers: 0 is the embeddings, 1 the output of the "
            "first block, -1 the last layer after the final norm. A list, a range such as 2-4, "
            "or all.",
            rich_help_panel="Features",
        ),
    ] = "-1",
    pool: Annotated[
        PoolName,
        typer.Option(
            "--pool",
            help="Write one vector per text: the mean over its tokens, or the last token's. none: "
            "one vector per token.",
            rich_help_panel="Features",
        ),
    ] = "none",
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention",
            metavar="N,…",
            help="Also write the attention weights of these blocks: 1 is the first, -1 the last; or all.",
            rich_help_panel="Features",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write an .npz, .safetensors or .jsonl file; without this option JSON lines go to stdout.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    no_resume: params.NoResume = False,
    shard: params.ShardPart = None,
    quiet: params.Quiet = None,
    device: params.DeviceName = None,
    precision: params.PrecisionName = None,
    threads: params.Threads = None,
    batch_tokens: params.BatchTokens = None,
    debug: params.Debug = False,
) -> None:
    """Write hidden states and attention weights, the same numbers as transformers' GPT2Model."""
    flags = read_flags(FeaturesFlags, ctx.params)
    terminal: Terminal = ctx.obj
    settings = read_settings(terminal, flags.quiet)
    target = output_file(terminal, flags.output)
    if target is not None and target.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{target}: features are written as {', '.join(SUFFIXES)}")
    if flags.batch_tokens is not None:
        check_whole("batch_tokens", flags.batch_tokens, 1, 10**7, f"1 to {10**7}")
    flags.check()
    part = Shard.parse(flags.shard)
    as_rows = target is None or target.suffix.lower() == ".jsonl"
    if part is not None and not (flags.many and as_rows):
        raise UsageError("--shard is for --lines or --from-jsonl, to stdout or a .jsonl file")
    with open_source(terminal, flags, lines=flags.many) as source:
        found = model_to_measure(terminal, settings, flags)
        engine = load_engine(terminal, found, to_look_inside=True)
        _Run(terminal, flags, source, found, engine, target, part).run()


@dataclass(frozen=True, kw_only=True)
class FeaturesFlags(ModelFlags, TextsFlags):
    """The flags of `features`."""

    bos: bool
    truncate: bool
    special_tokens: bool | None
    layers: str
    pool: PoolName
    attention: str | None
    output: Path | None
    no_resume: bool
    shard: str | None
    quiet: bool | None
    batch_tokens: int | None


@dataclass(frozen=True, slots=True)
class _Run:
    terminal: Terminal
    flags: FeaturesFlags
    source: Source
    found: FoundModel
    engine: Engine
    output: Path | None
    shard: Shard | None

    def run(self) -> None:
        """Read, compute, write."""
        from gpt2cli.analysis.features import FeatureOptions, extract, parse_layers

        depth = self.engine.config.n_layer
        wanted = self.flags.attention
        options = FeatureOptions(
            layers=parse_layers(self.flags.layers, depth),
            pool=self.flags.pool,
            attention=() if wanted is None else parse_layers(wanted, depth, first=1),
        )
        batch_tokens = self.flags.batch_tokens
        model = self.engine.model

        def computed(after: int = -1) -> Iterator[Features]:
            return extract(model, self._texts(after), options, batch_tokens=batch_tokens)

        if self.output is None:
            for features in computed():
                self.terminal.write(_line(features))
        elif self.output.suffix.lower() == ".jsonl":
            self._write_rows(self.output, computed)
        else:
            self._write(self.output, list(computed()), options)

    def _write_rows(self, path: Path, computed: Callable[[int], Iterator[Features]]) -> None:
        """A line for each text, into a file that appears when it is whole; a run that was ended goes on."""
        rows = Rows(self.terminal, path)
        standing = self._standing(rows)
        state = standing.load() if standing is not None and not self.flags.no_resume else None
        if state is not None and rows.begin(int(state["rows"])):
            after = int(state["last"])
            self.terminal.note(
                f"{self.source.name}: going on at line {after + 2:,} (--no-resume begins anew)"
            )
        else:
            after = -1
            rows.begin()
        count, done = int(state["texts"]) if state is not None and after >= 0 else 0, False
        try:
            for features in computed(after):
                rows.write(_line(features))
                count, after = count + 1, features.tag.index
                if standing is not None:
                    standing.save(partial(self._state, rows, after, count))
            done = True
        finally:
            if not done:
                if standing is not None and count:
                    standing.save(partial(self._state, rows, after, count), now=True)
                rows.abandon(keep=standing is not None)
        rows.finish()
        if standing is not None:
            standing.remove()
        if self.shard is not None:
            size = None if self.source.size is None else str(self.source.size)
            write_manifest(path, replace(self._manifest(), source=size, rows=count, complete=True))

    @staticmethod
    def _state(rows: Rows, last: int, texts: int) -> dict[str, int]:
        rows.flush()
        return {"rows": rows.size, "last": last, "texts": texts}

    def _standing(self, rows: Rows) -> Standing | None:
        """Where the run stands; None for what cannot be read or written again from the middle."""
        if self.source.path is None or rows.partial is None or not self.flags.many:
            return None
        manifest, source = self._manifest(), fingerprint(self.source.path)
        return Standing(rows.partial, replace(manifest, options={**manifest.options, "source": source}))

    def _manifest(self) -> Manifest:
        """What all rows have in common, on any machine."""
        flags, info = self.flags, self.engine.info
        names = ("bos", "truncate", "special_tokens", "layers", "pool", "attention", "field", "as_records")
        return Manifest(
            job="features",
            model=self.found.resolved.name,
            model_hash=model_hash(self.found),
            options={
                **{name: getattr(flags, name) for name in names},
                "precision": info.precision,
                "device": info.device,
            },
            shard=str(self.shard) if self.shard is not None else None,
        )

    def _texts(self, after: int = -1) -> Iterator[tuple[Record, list[int]]]:
        """The texts, as ids that fit the context. Raises `UsageError`, `PromptTooLong`."""
        config, bad = self.engine.config, 0
        special = bool(self.flags.special_tokens)
        for record in some_records(self._records(), self.source.name):
            if record.index <= after or (self.shard is not None and record.index not in self.shard):
                continue
            bad += record.bad
            if record.bad and self.flags.strict:
                raise UsageError(bad_bytes(f"{self.source.name}: {record.place}", record.bad))
            with at_record(record):
                ids = encode_text(self.engine, record.text, bos=self.flags.bos, special_tokens=special)
            if self.flags.truncate:
                ids = ids[-config.n_positions :]
            if len(ids) > config.n_positions:
                raise PromptTooLong(
                    f"{record.place} has {len(ids)} tokens; the model's context is {config.n_positions}",
                    hint="shorten the text, or keep its end with --truncate",
                )
            yield record, ids
        if bad:
            self.terminal.warn(f"{bad_bytes(self.source.name, bad)}; replaced")

    def _records(self) -> Iterator[Record]:
        source, flags = self.source, self.flags
        if flags.as_records:
            return read_records(source.read, source.name, flags.field)
        if flags.lines:
            return read_lines(source.read, source.name)
        pieces = list(read_pieces(source.read, tokenizer_of(self.engine), keep_end=source.typed))
        bad = sum(piece.bad for piece in pieces)
        return iter([Record(0, "".join(piece.text for piece in pieces), bad=bad)])

    def _write(self, path: Path, found: Sequence[Features], options: FeatureOptions) -> None:
        kind = path.suffix.lower()
        from gpt2cli.analysis.features import arrays

        tensors = arrays(found, options)
        about = {
            **self.found.head(),
            "pool": options.pool,
            "texts": [{"index": features.tag.index, "id": features.tag.id} for features in found],
        }
        if kind == ".safetensors":
            from safetensors.numpy import save

            write_atomically(path, save(tensors, {"format": "np", "gpt2cli": json_module.dumps(about)}))
            return
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, about=np.array(json_module.dumps(about)), **tensors)
        write_atomically(path, buffer.getvalue())


def _line(features: Features) -> str:
    """One text as a line of JSON."""
    record: Record = features.tag
    document: dict[str, Any] = {"index": record.index}
    if record.id is not None:
        document["id"] = record.id
    document["token_ids"] = list(features.tokens)
    document["layers"] = {str(layer): states.tolist() for layer, states in features.layers.items()}
    if features.attention:
        document["attention"] = {str(n): weights.tolist() for n, weights in features.attention.items()}
    return json_line(document)
