"""The options that commands share, each written once.

All are None when not given, so that settings and the model's own defaults can stand in; the ranges
and the defaults are those of `gpt2cli.options`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

import typer

from gpt2cli.options import (
    DEFAULT_MAX_NEW_TOKENS,
    Device,
    GenerateOptions,
    LoadOptions,
    Overflow,
    Precision,
    Rng,
)

_MODEL, _LENGTH, _SAMPLING, _TEXT = "Model", "Length", "Sampling", "Text"
_TEXTS, _OUTPUT, _ENGINE = "Texts", "Output", "Engine"

_DEFAULTS = {field.name: field.default for field in (*fields(GenerateOptions), *fields(LoadOptions))}
_DEFAULTS["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS


def _option(
    panel: str, *names: str, help: str, metavar: str | None = None, default_of: str | None = None
) -> typer.models.OptionInfo:
    """An option whose default stands in `gpt2cli.options`, under the field ``default_of``."""
    if default_of is not None:
        help = f"{help} Default: {shown_default(_DEFAULTS[default_of])}."
    info: typer.models.OptionInfo = typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False
    )
    return info


def shown_default(default: object) -> str:
    """``default`` as a help page has it."""
    return f"{default:g}" if isinstance(default, float) else str(default)


def _flag(panel: str, *names: str, help: str) -> typer.models.OptionInfo:
    """An option without a value."""
    return _option(panel, *names, help=help, metavar="")


Model = Annotated[
    str | None,
    _option(
        _MODEL,
        "--model",
        "-m",
        metavar="NAME|DIR",
        help="A model directory, or a name (gpt2, owner/name); one that is not on this disk is pulled. "
        "Default: the setting model, else the built-in model.",
    ),
]
Revision = Annotated[
    str | None, _option(_MODEL, "--revision", metavar="REV", help="A branch, tag or commit of the model.")
]
Offline = Annotated[bool | None, _flag(_MODEL, "--offline", help="Never use the network.")]
AllowPickle = Annotated[
    bool | None,
    _flag(_MODEL, "--allow-pickle", help="Read .bin checkpoints too, plain tensors only (weights_only)."),
]

ConvertPickle = Annotated[
    bool, _flag(_MODEL, "--allow-pickle", help="Convert .bin weights to safetensors, plain tensors only.")
]

MaxNewTokens = Annotated[
    int | None,
    _option(
        _LENGTH,
        "--max-new-tokens",
        metavar="N",
        help="The most tokens generated.",
        default_of="max_new_tokens",
    ),
]
MaxLength = Annotated[
    int | None,
    _option(
        _LENGTH, "--max-length", metavar="N", help="The most tokens of prompt and continuation together."
    ),
]
Stop = Annotated[
    list[str] | None,
    _option(_LENGTH, "--stop", metavar="TEXT", help="End before TEXT; may be given several times."),
]
IgnoreEos = Annotated[bool | None, _flag(_LENGTH, "--ignore-eos", help="Go on after an end-of-text token.")]
OverflowMode = Annotated[
    Overflow | None,
    _option(
        _LENGTH,
        "--overflow",
        help="When the context is full. error: refuse a prompt that leaves no room; the text ends where "
        "the context does. truncate: drop the prompt's oldest tokens. slide: moreover, move the window on "
        "while generating.",
        default_of="overflow",
    ),
]

Temperature = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--temperature",
        "--temp",
        metavar="T",
        help="Below 1 sharper, above 1 wilder; 0 is greedy.",
        default_of="temperature",
    ),
]
TopK = Annotated[
    int | None,
    _option(
        _SAMPLING, "--top-k", metavar="K", help="Draw from the K likeliest; 0 is off.", default_of="top_k"
    ),
]
TopP = Annotated[
    float | None,
    _option(
        _SAMPLING, "--top-p", metavar="P", help="Draw from the likeliest that reach P together; 1 is off."
    ),
]
MinP = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--min-p",
        metavar="P",
        help="Drop what is less likely than P times the likeliest; 0 is off.",
    ),
]
TypicalP = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--typical-p",
        metavar="P",
        help="Draw from the most typical that reach P together; 1 is off.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    _option(
        _SAMPLING, "--repetition-penalty", metavar="X", help="Above 1, make tokens already there less likely."
    ),
]
NoRepeatNgramSize = Annotated[
    int | None,
    _option(
        _SAMPLING, "--no-repeat-ngram-size", metavar="N", help="Never repeat N tokens in a row; 0 is off."
    ),
]
Greedy = Annotated[
    bool | None, _flag(_SAMPLING, "--greedy", help="Always take the likeliest token (temperature 0).")
]
NumReturnSequences = Annotated[
    int | None,
    _option(
        _SAMPLING,
        "--num-return-sequences",
        "-n",
        metavar="N",
        help="Draw N texts.",
        default_of="num_return_sequences",
    ),
]
Seed = Annotated[
    int | None,
    _option(
        _SAMPLING,
        "--seed",
        metavar="S",
        help="The same seed gives the same text; text i of N has seed S+i. Default: drawn.",
    ),
]
RngKind = Annotated[
    Rng | None,
    _option(
        _SAMPLING, "--rng", help="transformers: the draws of transformers after set_seed.", default_of="rng"
    ),
]

SpecialTokens = Annotated[
    bool | None,
    _flag(_TEXT, "--special-tokens", help="Read <|endoftext|> in the prompt as the token, not as text."),
]
Strict = Annotated[
    bool,
    _flag(_TEXT, "--strict", help="Bad bytes in the prompt are an error, not replaced with a warning."),
]
Sanitize = Annotated[
    bool,
    _flag(_TEXT, "--sanitize", help="Drop control characters from the text; a terminal never gets them."),
]

Lines = Annotated[bool, _flag(_TEXTS, "--lines", help="Each line is a text of its own.")]
FromJsonl = Annotated[
    bool,
    _flag(
        _TEXTS,
        "--from-jsonl",
        help="Each line is a JSON object with a text; its id is kept. So are files named .jsonl.",
    ),
]
Field = Annotated[
    str | None,
    _option(_TEXTS, "--field", metavar="NAME", help="The field of the text. Default: text, or prompt."),
]
Bos = Annotated[
    bool,
    _flag(
        _TEXTS,
        "--bos",
        help="Put the model's bos token before each text. An empty text starts from it anyway; a model "
        "without one takes no empty text.",
    ),
]

Json = Annotated[bool, _flag(_OUTPUT, "--json", help="One JSON document.")]
Jsonl = Annotated[
    bool, _flag(_OUTPUT, "--jsonl", help="JSON events, one a line: start, token, end, summary.")
]
Events = Annotated[bool, _flag(_OUTPUT, "--jsonl", help="JSON events, one a line.")]
Csv = Annotated[
    bool, _flag(_OUTPUT, "--csv", help="A table; what a spreadsheet takes for a formula gets an apostrophe.")
]
Html = Annotated[bool, _flag(_OUTPUT, "--html", help="One page with nothing outside itself.")]
Svg = Annotated[bool, _flag(_OUTPUT, "--svg", help="A picture of the screen, 80 columns wide.")]
ThemeName = Annotated[
    Literal["light", "dark"] | None, _option(_OUTPUT, "--theme", help="Of an SVG. Default: light.")
]
Echo = Annotated[
    bool, _flag(_OUTPUT, "--echo", help="Put the prompt before the text (a terminal always shows it).")
]
Logprobs = Annotated[
    int | None,
    _option(
        _OUTPUT,
        "--logprobs",
        metavar="K",
        help="With --json or --jsonl: log-probabilities, and those of the K likeliest.",
    ),
]
OutputFile = Annotated[
    Path | None,
    _option(
        _OUTPUT, "--output", "-o", metavar="FILE", help="Write to FILE, whole or not at all; - is stdout."
    ),
]
NoStream = Annotated[bool, _flag(_OUTPUT, "--no-stream", help="Print the text when it is complete.")]
Quiet = Annotated[bool | None, _flag(_OUTPUT, "--quiet", "-q", help="No notes and warnings on stderr.")]
Debug = Annotated[bool, _flag(_OUTPUT, "--debug", help="Show a traceback with an error.")]

DeviceName = Annotated[Device | None, _option(_ENGINE, "--device", help="Where to run.", default_of="device")]
PrecisionName = Annotated[
    Precision | None,
    _option(
        _ENGINE,
        "--precision",
        help="Of the weights; auto is lossless in practice.",
        default_of="precision",
    ),
]
Threads = Annotated[
    int | None, _option(_ENGINE, "--threads", metavar="N", help="CPU threads. Default: one a core.")
]
BatchTokens = Annotated[
    int | None, _option(_ENGINE, "--batch-tokens", metavar="N", help="Tokens that are computed at once.")
]
