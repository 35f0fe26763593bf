"""The options of ``train``, ``finetune`` and ``distill``, each written once.

An option comes from its flag, else from the recipe file (``--config``), else it has the default of
`gpt2cli.train.options`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from gpt2cli.cli import param_kinds, params
from gpt2cli.train.options import (
    DataOptions,
    DistillOptions,
    ExportOptions,
    LoraOptions,
    ShapeOptions,
    TrainOptions,
)

_DATA, _SHAPE, _TRAIN, _RUN, _RESULT = "Data", "Model", "Training", "Run", "Result"
_LORA, _DISTILL = "LoRA", "Distillation"

Parameters = tuple[inspect.Parameter, ...]


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _of(
    options: type, field: str, panel: str, help: str, metavar: str | None = "N", flag: str | None = None
) -> inspect.Parameter:
    """The flag of one field: its type and default are the field's."""
    kind = _flag_type(get_type_hints(options)[field])
    default = next(f.default for f in fields(options) if f.name == field)
    name = flag or field
    if kind is bool:
        metavar = ""
    elif isinstance(default, str | int | float) and default != "":
        help = f"{help} Default: {param_kinds.shown_default(default)}."
    info: Any = typer.Option(
        f"--{name.replace('_', '-')}",
        help=help,
        metavar=None if get_origin(kind) is Literal else metavar,
        rich_help_panel=panel,
        show_default=False,
    )
    return _parameter(name, Annotated[kind | None, info])


def _flag_type(hint: Any) -> Any:
    """The type of a flag's value: the field's, without the None of a field that may be left open."""
    inner = [kind for kind in get_args(hint) if kind is not type(None)]
    optional = len(inner) < len(get_args(hint))
    return inner[0] if optional else hint


Data = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="DATA",
        help="Text files, JSONL files, or folders of them; - is stdin, which is plain text unless "
        "--field is given.",
        show_default=False,
    ),
]


def _paths(flag: str, help: str) -> inspect.Parameter:
    info: Any = typer.Option(flag, metavar="PATH", help=help, rich_help_panel=_DATA, show_default=False)
    return _parameter(flag.strip("-").replace("-", "_"), Annotated[list[Path] | None, info])


DATA: Parameters = (
    _parameter("data", Data),
    _of(DataOptions, "field", _DATA, "The field of a JSONL object that holds the text.", "NAME"),
    _of(
        DataOptions,
        "separator",
        _DATA,
        "The text that separates the documents in a file; if empty, a file is one document.",
        "TEXT",
    ),
    _of(DataOptions, "validation", _DATA, "The share of the text that is held back for validation.", "SHARE"),
    _paths("--validation-data", "Validate on this text instead; may be given several times."),
    _paths("--test-data", "Score this text at the end; it is never trained on. May be given several times."),
)

SHAPE: Parameters = (
    _of(ShapeOptions, "layers", _SHAPE, "The number of transformer layers."),
    _of(ShapeOptions, "width", _SHAPE, "The size of the hidden states (n_embd)."),
    _of(ShapeOptions, "heads", _SHAPE, "The number of attention heads."),
    _of(ShapeOptions, "context", _SHAPE, "The context: the most tokens that the model sees at once."),
    _of(ShapeOptions, "vocab_size", _SHAPE, "The vocabulary size of the new tokenizer."),
)

TRAINING: Parameters = (
    _of(TrainOptions, "steps", _TRAIN, "The number of optimizer steps."),
    _of(
        TrainOptions,
        "epochs",
        _TRAIN,
        "The number of passes over the text, instead of --steps. Default: 1.",
        "X",
    ),
    _of(TrainOptions, "batch_size", _TRAIN, "Windows per step."),
    _of(TrainOptions, "micro_batch_size", _TRAIN, "Windows computed at a time; fewer need less memory."),
    _of(TrainOptions, "window", _TRAIN, "Tokens per window. Default: the context, at most 1024."),
    _of(
        TrainOptions,
        "short_window",
        _TRAIN,
        "Begin with windows of N tokens: as many tokens per step, but faster.",
    ),
    _of(TrainOptions, "short_share", _TRAIN, "The share of the steps that use --short-window.", "SHARE"),
    _of(TrainOptions, "learning_rate", _TRAIN, "The highest learning rate.", "X"),
    _of(TrainOptions, "schedule", _TRAIN, "How the learning rate falls to 0."),
    _of(TrainOptions, "warmup", _TRAIN, "The steps over which the learning rate rises."),
    _of(
        TrainOptions,
        "decay",
        _TRAIN,
        "With a constant schedule, the share of the steps over which the learning rate falls at the end.",
        "SHARE",
    ),
    _of(
        TrainOptions,
        "optimizer",
        _TRAIN,
        "muon: Muon for the weight matrices of the layers, AdamW for the rest.",
    ),
    _of(TrainOptions, "muon_scale", _TRAIN, "Muon's learning rate, as a multiple of --learning-rate.", "X"),
    _of(TrainOptions, "weight_decay", _TRAIN, "Weight decay for weight matrices.", "X"),
    _of(
        TrainOptions,
        "dropout",
        _TRAIN,
        "The dropout probability. Default: the model's own; 0 for a new model.",
        "X",
    ),
    _of(TrainOptions, "clip", _TRAIN, "Clip the gradients to this norm; 0 turns this off.", "X"),
    _of(TrainOptions, "seed", _TRAIN, "The same seed gives the same training.", "S"),
    _of(
        TrainOptions,
        "patience",
        _TRAIN,
        "Stop after N evaluations without improvement, and keep the best model.",
    ),
)

BASE: Parameters = (
    _parameter("model", params.Model),
    _parameter("revision", params.Revision),
)

TEACHER: Parameters = (
    _parameter(
        "teacher",
        Annotated[
            str | None,
            typer.Option(
                "--teacher",
                metavar="NAME|DIR",
                rich_help_panel=_DISTILL,
                show_default=False,
                help="The model to learn from: a directory, or a name.",
            ),
        ],
    ),
    _parameter("revision", params.Revision),
)

LORA: Parameters = (
    _parameter(
        "lora",
        Annotated[
            bool | None,
            typer.Option(
                "--lora",
                help="Train low-rank adapters only; they are merged into the model at the end.",
                metavar="",
                rich_help_panel=_LORA,
                show_default=False,
            ),
        ],
    ),
    _of(LoraOptions, "rank", _LORA, "The rank of the adapters.", flag="lora_rank"),
    _of(LoraOptions, "alpha", _LORA, "Scale the adapters' update by alpha / rank.", "X", flag="lora_alpha"),
    _of(LoraOptions, "dropout", _LORA, "The dropout probability of the adapters.", "X", flag="lora_dropout"),
    _of(
        LoraOptions,
        "keep",
        _LORA,
        "Also write them as an adapter that peft loads, into DIR/adapter of --output DIR.",
        flag="keep_adapter",
    ),
)

DISTILL: Parameters = (
    _of(
        DistillOptions,
        "layers",
        _DISTILL,
        "The number of the student's layers. Default: half of the teacher's.",
        flag="student_layers",
    ),
    _of(
        DistillOptions,
        "temperature",
        _DISTILL,
        "The temperature of the soft targets.",
        "T",
        flag="distill_temperature",
    ),
    _of(DistillOptions, "soft_weight", _DISTILL, "The weight of the loss on the soft targets.", "X"),
    _of(DistillOptions, "lm_weight", _DISTILL, "The weight of the language-modelling loss.", "X"),
    _of(
        DistillOptions, "cosine_weight", _DISTILL, "The weight of the cosine loss on the hidden states.", "X"
    ),
    _of(DistillOptions, "random_init", _DISTILL, "Start from random weights, not from the teacher's layers."),
)

RUN: Parameters = (
    _of(TrainOptions, "evaluate_every", _RUN, "Steps between evaluations. Default: a tenth of all."),
    _of(
        TrainOptions,
        "save_every",
        _RUN,
        "Steps between checkpoints. Default, and always with --patience: as between evaluations.",
    ),
    _of(
        TrainOptions,
        "sample_every",
        _RUN,
        "Steps between samples; 0 draws none. Default: as between evaluations.",
    ),
    _of(TrainOptions, "log_every", _RUN, "Steps between progress reports."),
    _of(
        TrainOptions,
        "precision",
        _RUN,
        "The precision of matrix products; auto is bf16 if the hardware supports it.",
    ),
    _of(TrainOptions, "device", _RUN, "The device to train on."),
    _of(TrainOptions, "threads", _RUN, "The number of CPU threads. Default: one per core."),
    _parameter(
        "resume",
        Annotated[
            bool,
            typer.Option(
                "--resume",
                help="Continue the training in the directory --output, or that of --name.",
                metavar="",
                rich_help_panel=_RUN,
                show_default=False,
            ),
        ],
        False,
    ),
    _parameter(
        "config",
        Annotated[
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE",
                rich_help_panel=_RUN,
                show_default=False,
                help="Read options from a TOML file, as in learning-rate = 1e-3. Flags override it.",
            ),
        ],
    ),
)

RESULT: Parameters = (
    _parameter(
        "output",
        Annotated[
            Path | None,
            typer.Option(
                "--output",
                "-o",
                metavar="DIR",
                file_okay=False,
                rich_help_panel=_RESULT,
                show_default=False,
                help="The directory for the new model; until it is finished, for its checkpoints.",
            ),
        ],
    ),
    _parameter(
        "name",
        Annotated[
            str | None,
            typer.Option(
                "--name",
                metavar="NAME",
                rich_help_panel=_RESULT,
                show_default=False,
                help="Put the model into the store under this name, for gpt2cli generate -m NAME.",
            ),
        ],
    ),
    _of(ExportOptions, "save_precision", _RESULT, "The precision of the saved weights."),
    _of(
        ExportOptions,
        "samples",
        _RESULT,
        "The number of sample texts in the model card, with the seeds 1, 2, …",
    ),
    _of(ExportOptions, "sample_tokens", _RESULT, "Tokens per sample text."),
    _of(ExportOptions, "sample_prompt", _RESULT, "The prompt of the sample texts. Default: none.", "TEXT"),
    _of(
        ExportOptions,
        "temperature",
        _RESULT,
        "The model's default temperature.",
        "T",
        flag="default_temperature",
    ),
    _of(
        ExportOptions,
        "repetition_penalty",
        _RESULT,
        "The model's default repetition penalty.",
        "X",
        flag="default_repetition_penalty",
    ),
    _of(
        ExportOptions,
        "no_repeat_ngram_size",
        _RESULT,
        "The model's default for --no-repeat-ngram-size.",
        "N",
        flag="default_no_repeat_ngram_size",
    ),
    _of(ExportOptions, "title", _RESULT, "The title of the model card.", "TEXT"),
    _of(ExportOptions, "license", _RESULT, "The licence named in the model card.", "NAME"),
    _of(ExportOptions, "description", _RESULT, "A paragraph of description for the model card.", "TEXT"),
    _parameter(
        "keep_checkpoints",
        Annotated[
            bool | None,
            typer.Option(
                "--keep-checkpoints",
                metavar="",
                rich_help_panel=_RESULT,
                show_default=False,
                help="Keep the checkpoints when the training is finished.",
            ),
        ],
    ),
    _parameter(
        "plot",
        Annotated[
            Path | None,
            typer.Option(
                "--plot",
                metavar="FILE",
                rich_help_panel=_RESULT,
                show_default=False,
                help="Plot the loss curve in an .svg or .png file.",
            ),
        ],
    ),
    _parameter("jsonl", params.Events, False),
    _parameter("quiet", params.Quiet),
    _parameter("debug", params.Debug, False),
)


def with_options(*groups: Parameters) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the parameters of ``groups``; it reads them from ``ctx.params``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [parameter for group in groups for parameter in group]
        own = [
            p
            for p in inspect.signature(command, eval_str=True).parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        dynamic: Any = command
        dynamic.__signature__ = inspect.Signature([*own, *parameters])
        dynamic.__annotations__ = {p.name: p.annotation for p in (*own, *parameters)}
        return command

    return decorate
