"""``gpt2cli batch``: a file of prompts, on one machine or many."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from gpt2cli.cli import params, sampling_params
from gpt2cli.cli.batch_flags import OPTION_NAMES, BatchFlags, Job, row_defaults
from gpt2cli.cli.flags import load_options, output_file, read_flags, read_settings
from gpt2cli.cli.loading import FoundModel, check_model, model_hash, resolve_model
from gpt2cli.cli.presets import Prompts, use_preset
from gpt2cli.cli.remote import Place, check_local_flags, find_place
from gpt2cli.cli.sources import says_jsonl
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.jobs.shards import Shard
from gpt2cli.options import MAX_SEED
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.remote.client import Client

EXAMPLES = """Examples:

  gpt2cli batch prompts.txt -o texts.jsonl --simple --max-new-tokens 40

  gpt2cli batch -m gpt2 requests.jsonl -o answers.jsonl

  seq 4 | xargs -P 4 -I I gpt2cli batch in.jsonl --seed 7 --shard I/4 -o out.I.jsonl

  gpt2cli batch --merge out.*.jsonl -o out.jsonl

  gpt2cli batch in.jsonl -o out.jsonl --ray auto
"""
SLOTS = 32
_ROWS, _JOB = "Rows", "Many machines"


def _option(panel: str, *names: str, help: str, metavar: str | None = "") -> typer.models.OptionInfo:
    info: typer.models.OptionInfo = typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False
    )
    return info


def batch(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN",
            help="A file of prompts: OpenAI's batch form, JSON objects with a prompt and options, or plain "
            "lines. - is stdin. With --merge, the outputs of all shards.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        _option(
            "Output",
            "--output",
            "-o",
            metavar="FILE",
            help="Append a line to FILE for each row as it ends; rows that are there are not run again. "
            "Without this option, or with -, lines go to stdout.",
        ),
    ] = None,
    simple: Annotated[
        bool,
        _option(
            "Output",
            "--simple",
            "--text",
            help="Write the id, the text and a few figures of each row.",
        ),
    ] = False,
    lines: Annotated[
        bool, _option(_ROWS, "--lines", help="Each line of IN is a prompt, as it stands.")
    ] = False,
    from_jsonl: Annotated[
        bool,
        _option(
            _ROWS,
            "--from-jsonl",
            help="Each line of IN is a JSON object. Default: as the file's name or its first line says.",
        ),
    ] = False,
    retry_errors: Annotated[
        bool, _option(_ROWS, "--retry-errors", help="Run the rows again that ended with an error.")
    ] = False,
    shard: Annotated[
        str | None,
        _option(_JOB, "--shard", metavar="I/N", help="Run only part I of N; the parts need no other link."),
    ] = None,
    merge: Annotated[
        bool, _option(_JOB, "--merge", help="Put the outputs of all shards together, into the file of -o.")
    ] = False,
    ray: Annotated[
        str | None,
        _option(
            _JOB,
            "--ray",
            metavar="local|auto|ADDRESS",
            help="Run on a Ray cluster: a new one on this machine, the one it is in, or one at ADDRESS.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        _option(
            _JOB,
            "--workers",
            metavar="N",
            help="The number of engines on Ray. Default: one for each GPU, else for each machine.",
        ),
    ] = None,
    preset: params.Preset = None,
    field: params.TemplateField = None,
    field_file: params.FieldFile = None,
    model: params.RemoteModel = None,
    endpoint: params.Endpoint = None,
    api_key_file: params.ApiKeyFile = None,
    timeout: params.Timeout = None,
    adapter: params.Adapter = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    max_new_tokens: sampling_params.MaxNewTokens = None,
    max_sentences: sampling_params.MaxSentences = None,
    stop: sampling_params.Stop = None,
    ignore_eos: sampling_params.IgnoreEos = None,
    temperature: sampling_params.Temperature = None,
    top_k: sampling_params.TopK = None,
    top_p: sampling_params.TopP = None,
    min_p: sampling_params.MinP = None,
    typical_p: sampling_params.TypicalP = None,
    repetition_penalty: sampling_params.RepetitionPenalty = None,
    no_repeat_ngram_size: sampling_params.NoRepeatNgramSize = None,
    presence_penalty: sampling_params.PresencePenalty = None,
    frequency_penalty: sampling_params.FrequencyPenalty = None,
    logit_bias: sampling_params.LogitBias = None,
    greedy: sampling_params.Greedy = None,
    num_return_sequences: sampling_params.NumReturnSequences = None,
    seed: Annotated[
        int | None,
        _option(
            "Sampling",
            "--seed",
            metavar="S",
            help="Each row without a seed gets one, made of S and its id. Default: a random one, which is "
            "reported, and kept beside the output.",
        ),
    ] = None,
    quiet: params.Quiet = None,
    device: params.DeviceName = None,
    precision: params.PrecisionName = None,
    threads: params.Threads = None,
    slots: Annotated[
        int,
        _option("Engine", "--slots", metavar="N", help=f"The most texts that run at once. Default: {SLOTS}."),
    ] = SLOTS,
    debug: params.Debug = False,
) -> None:
    """Answer a file of prompts: many at once, resumed after any end, on one machine or many."""
    flags = read_flags(BatchFlags, ctx.params)
    terminal: Terminal = ctx.obj
    settings = read_settings(terminal, flags.quiet)
    flags, prompts = use_preset(terminal, flags, command="batch")
    part = flags.check()
    output_file(terminal, flags.output)
    if flags.merge:
        _merge(terminal, flags)
    else:
        _run(_read_job(terminal, settings, flags, part, prompts))


def _merge(terminal: Terminal, flags: BatchFlags) -> None:
    from gpt2cli.cli.batch_merge import merge

    assert flags.target is not None
    rows = merge(flags.files, flags.target)
    terminal.note(f"{flags.target}: {rows:,} rows of {len(flags.files)} shards")


def _read_job(
    terminal: Terminal, settings: Settings, flags: BatchFlags, shard: Shard | None, prompts: Prompts
) -> Job:
    """Check everything that can be checked without loading the model. Raises `Gpt2cliError`."""
    defaults = row_defaults(settings, flags)
    model: FoundModel | Client
    place = find_place(terminal, settings, flags.model, flags)
    if place is not None:
        model, defaults = _ask_server(terminal, flags, place, defaults)
        load = None
    else:
        load = load_options(settings, flags)
        if flags.ray is not None:
            from gpt2cli.batch.cluster import check_installed

            check_installed()
        model = check_model(resolve_model(terminal, settings, flags, load), load)
    if flags.target is None:
        return Job(terminal, flags, shard, model, defaults, _seed(flags, shard, None), None, prompts)
    from gpt2cli.jobs.manifest import Manifest, read_manifest

    target = flags.target
    there = target.exists() and target.stat().st_size > 0
    earlier = read_manifest(target) if there else None
    if there and earlier is None:
        raise UsageError(
            f"{target} is there, and no manifest beside it says what its rows are",
            hint="give another file, or remove it",
        )
    seed = _seed(flags, shard, earlier.seed if earlier else None)
    options = {
        **defaults,
        **prompts.document(),
        "precision": load and load.precision,
        "device": load and load.device,
        "form": flags.form,
    }
    manifest = Manifest(
        job="batch",
        model=model.name,
        model_hash=model_hash(model) if isinstance(model, FoundModel) else model.name,
        options=options,
        seed=seed,
        shard=str(shard) if shard else None,
    ).normal()
    if earlier is not None:
        manifest.check_against(earlier, target)
    return Job(terminal, flags, shard, model, defaults, seed, manifest, prompts)


def _ask_server(
    terminal: Terminal, flags: BatchFlags, place: Place, defaults: Mapping[str, Any]
) -> tuple[Client, Mapping[str, Any]]:
    """The model of a server, and what a row has that does not say otherwise, by the server's names.

    Raises `Gpt2cliError`.
    """
    from gpt2cli.cli.generate_remotely import warn_of

    check_local_flags(flags)
    if flags.ray is not None:
        raise UsageError("--ray is for a model on this machine", hint="leave it out: the server has its own")
    client = place.client(terminal.note)
    names = {name: OPTION_NAMES.get(name, name) for name in defaults}
    warn_of(terminal, client, frozenset(names.values()) - {"num_return_sequences"})
    body = {client.kind.names.get(names[name], name): value for name, value in defaults.items()}
    for name in names.values():
        body.update(client.kind.beside.get(name, {}))
    return client, body


def _seed(flags: BatchFlags, shard: Shard | None, earlier: int | None) -> int:
    """The run's: the one that is asked for, that of the rows that are there, or any."""
    if flags.seed is not None:
        return flags.seed
    if earlier is not None:
        return earlier
    if shard is not None:
        raise UsageError("--shard needs --seed", hint="all shards of a job have the same, as --seed 7")
    return secrets.randbelow(MAX_SEED + 1)


def _run(job: Job) -> None:
    """Read the input, leave out what is done, and run the rest."""
    terminal, flags = job.terminal, job.flags
    with terminal.signals.deferred():
        from gpt2cli.batch.rows import Defaults
        from gpt2cli.batch.source import Source, says_json
        from gpt2cli.cli.batch_session import Session
        from gpt2cli.jobs.rowfile import RowFile

    with _input(job) as file, contextlib.ExitStack() as stack:
        path = flags.files[0]
        as_json = not flags.lines and (flags.from_jsonl or says_jsonl(path) or says_json(file))
        name = "standard input" if str(path) == "-" else str(path)
        source = Source(file, name, Defaults(job.defaults, job.seed, job.fill), as_json=as_json)
        rows = stack.enter_context(RowFile(flags.target)) if flags.target is not None else None
        Session(job, source, rows).run()


@contextlib.contextmanager
def _input(job: Job) -> Iterator[BinaryIO]:
    """The input as a file that can be read from any place. Raises `UsageError`, `Gpt2cliError`."""
    path = job.flags.files[0]
    try:
        opened = None if str(path) == "-" else path.open("rb")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    with contextlib.ExitStack() as stack:
        if opened is not None:
            stack.enter_context(opened)
            if path.is_file():
                yield opened
                return
        # What comes through a pipe is kept on the disk, beside the output, as long as this runs.
        target = job.flags.target
        try:
            spool = stack.enter_context(tempfile.TemporaryFile(dir=target.parent if target else None))
            if opened is not None:
                shutil.copyfileobj(opened, spool)
            else:
                while block := job.terminal.read_stdin(2**20):
                    spool.write(block)
            spool.flush()
        except OSError as error:
            raise Gpt2cliError(f"cannot keep the input: {error.strerror or error}") from None
        yield spool
