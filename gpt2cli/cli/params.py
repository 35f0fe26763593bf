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
    DEFAULT_SUGGESTED_TOKENS,
    Device,
    GenerateOptions,
    LoadOptions,
    Overflow,
    Precision,
    Rng,
)

_MODEL, _LENGTH, _SAMPLING, _TEXT = "Model", "Length", "Sampling", "Text"
_PRESET = "Preset"
_TEXTS, _OUTPUT, _ENGINE, _SERVER = "Texts", "Output", "Engine", "Model on a server"

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
        help="A model directory, or a name (gpt2, owner/name); a model that is not on this disk "
        "is pulled first. Default: the model setting, else the built-in model.",
    ),
]
RemoteModel = Annotated[
    str | None,
    _option(
        _MODEL,
        "--model",
        "-m",
        metavar="NAME|DIR|URL",
        help="A model directory, or a name (gpt2, owner/name); a model that is not on this disk "
        "is pulled first. http://HOST:PORT/v1#NAME is a model on a server. Default: the model setting, else "
        "the built-in model.",
    ),
]
Adapter = Annotated[
    str | None,
    _option(
        _MODEL,
        "--adapter",
        metavar="DIR|NAME",
        help="Apply a LoRA adapter to the model: a directory, or a name (owner/name). -m MODEL+ADAPTER is "
        "the same.",
    ),
]
Adapters = Annotated[
    list[str] | None,
    _option(
        _MODEL,
        "--adapter",
        metavar="DIR|NAME",
        help="Also take each model with this LoRA adapter, as -m MODEL+ADAPTER does; may be given several "
        "times.",
    ),
]
Endpoint = Annotated[
    str | None,
    _option(
        _SERVER,
        "--endpoint",
        metavar="URL",
        help="A server that speaks OpenAI's API (vLLM, llama.cpp, ollama, gpt2cli serve); -m then names one "
        "of its models.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    _option(
        _SERVER,
        "--api-key-file",
        metavar="FILE",
        help="Send the server the first key in FILE. Default: what GPT2CLI_API_KEY holds.",
    ),
]
Timeout = Annotated[
    float | None,
    _option(
        _SERVER,
        "--timeout",
        metavar="S",
        help="Give up when the server says nothing for S seconds. Default: 300.",
    ),
]
Revision = Annotated[
    str | None, _option(_MODEL, "--revision", metavar="REV", help="A branch, tag or commit of the model.")
]
Offline = Annotated[bool | None, _flag(_MODEL, "--offline", help="Never use the network.")]
AllowPickle = Annotated[
    bool | None,
    _flag(
        _MODEL,
        "--allow-pickle",
        help="Also read .bin checkpoints; only plain tensors are unpickled (weights_only).",
    ),
]

ConvertPickle = Annotated[
    bool,
    _flag(
        _MODEL,
        "--allow-pickle",
        help="Convert .bin weights to safetensors; only plain tensors are unpickled.",
    ),
]

Preset = Annotated[
    str | None,
    _option(
        _PRESET,
        "--preset",
        metavar="NAME",
        help="Take what no flag says from this preset; gpt2cli preset list shows them.",
    ),
]
TemplateField = Annotated[
    list[str] | None,
    _option(
        _PRESET,
        "--field",
        metavar="KEY=VALUE",
        help="The value of a field of the preset's template; may be given several times.",
    ),
]
FieldFile = Annotated[
    list[str] | None,
    _option(
        _PRESET,
        "--field-file",
        metavar="KEY=FILE",
        help="The same from a file, of which one final newline is dropped.",
    ),
]
GoOn = Annotated[
    bool,
    _flag(
        _TEXT,
        "--continue",
        "-c",
        help="Go on with the text of the last run in the log, with its model and options and a new seed; "
        "words that are given come after it.",
    ),
]

MaxNewTokens = Annotated[
    int | None,
    _option(
        _LENGTH,
        "--max-new-tokens",
        metavar="N",
        help="Generate at most N tokens.",
        default_of="max_new_tokens",
    ),
]
SuggestedTokens = Annotated[
    int | None,
    _option(
        _LENGTH,
        "--max-new-tokens",
        metavar="N",
        help=f"The length of a suggestion, at most N tokens. Default: {DEFAULT_SUGGESTED_TOKENS}.",
    ),
]
MaxLength = Annotated[
    int | None,
    _option(
        _LENGTH,
        "--max-length",
        metavar="N",
        help="Limit the prompt and its continuation together to N tokens.",
    ),
]
Stop = Annotated[
    list[str] | None,
    _option(_LENGTH, "--stop", metavar="TEXT", help="Stop before TEXT; may be given several times."),
]
IgnoreEos = Annotated[
    bool | None, _flag(_LENGTH, "--ignore-eos", help="Keep generating after an end-of-text token.")
]
MaxSentences = Annotated[
    int | None,
    _option(
        _LENGTH,
        "--max-sentences",
        metavar="N",
        help="End the text after N sentences: after . ! ? and white space, or a line end.",
    ),
]
OverflowMode = Annotated[
    Overflow | None,
    _option(
        _LENGTH,
        "--overflow",
        help="What to do when the context is full. error: refuse a prompt that leaves no room; "
        "the text ends where the context does. truncate: drop the oldest tokens of the "
        "prompt. slide: also move the window on while generating.",
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
        help="Below 1 is more predictable, above 1 more varied; 0 is greedy.",
        default_of="temperature",
    ),
]
TopK = Annotated[
    int | None,
    _option(
        _SAMPLING,
        "--top-k",
        metavar="K",
        help="Sample from the K most likely tokens; 0 turns this off.",
        default_of="top_k",
    ),
]
TopP = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--top-p",
        metavar="P",
        help="Sample from the most likely tokens whose probabilities add up to P; 1 turns this off.",
    ),
]
MinP = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--min-p",
        metavar="P",
        help="Drop tokens less likely than P times the most likely one; 0 turns this off.",
    ),
]
TypicalP = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--typical-p",
        metavar="P",
        help="Sample from the most typical tokens whose probabilities add up to P; 1 turns this off.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--repetition-penalty",
        metavar="X",
        help="Above 1, tokens that are already in the text become less likely; 1 turns this off.",
    ),
]
NoRepeatNgramSize = Annotated[
    int | None,
    _option(
        _SAMPLING,
        "--no-repeat-ngram-size",
        metavar="N",
        help="Never repeat a sequence of N tokens; 0 turns this off.",
    ),
]
PresencePenalty = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--presence-penalty",
        metavar="X",
        help="Above 0, tokens that the continuation already has become less likely, however often they are "
        "there; -2 to 2, 0 turns this off.",
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--frequency-penalty",
        metavar="X",
        help="The same for each time that the token is there; -2 to 2, 0 turns this off.",
    ),
]
LogitBias = Annotated[
    list[str] | None,
    _option(
        _SAMPLING,
        "--logit-bias",
        metavar="ID=X",
        help="Add X, from -100 to 100, to the score of the token ID; may be given several times.",
    ),
]
Greedy = Annotated[
    bool | None,
    _flag(_SAMPLING, "--greedy", help="Always take the most likely token (the same as --temperature 0)."),
]
NumReturnSequences = Annotated[
    int | None,
    _option(
        _SAMPLING,
        "--num-return-sequences",
        "-n",
        metavar="N",
        help="Generate N texts.",
        default_of="num_return_sequences",
    ),
]
Seed = Annotated[
    int | None,
    _option(
        _SAMPLING,
        "--seed",
        metavar="S",
        help="The same seed gives the same text; with -n, the texts have the seeds S, S+1, … "
        "Default: a random seed, which is reported.",
    ),
]
Suggest = Annotated[
    bool | None,
    _flag(
        _TEXT,
        "--suggest",
        help="Show what the model would type next, dim, when you pause; → takes it. Default: the suggest "
        "setting, else off.",
    ),
]
RngKind = Annotated[
    Rng | None,
    _option(
        _SAMPLING,
        "--rng",
        help="The random numbers. transformers: sample exactly as transformers does after set_seed.",
        default_of="rng",
    ),
]

SpecialTokens = Annotated[
    bool | None,
    _flag(
        _TEXT, "--special-tokens", help="Read <|endoftext|> in the prompt as the special token, not as text."
    ),
]
Strict = Annotated[
    bool,
    _flag(
        _TEXT,
        "--strict",
        help="Refuse a prompt with invalid bytes; otherwise they are replaced, with a warning.",
    ),
]
Sanitize = Annotated[
    bool,
    _flag(
        _TEXT, "--sanitize", help="Remove control characters from the text; a terminal never receives them."
    ),
]

ShardPart = Annotated[
    str | None,
    _option(
        _TEXTS,
        "--shard",
        metavar="I/N",
        help="Take only part I of N of the lines; gpt2cli batch --merge puts the outputs together.",
    ),
]
Lines = Annotated[bool, _flag(_TEXTS, "--lines", help="Treat each line as a separate text.")]
FromJsonl = Annotated[
    bool,
    _flag(
        _TEXTS,
        "--from-jsonl",
        help="Each line is a JSON object that holds a text; its id is kept. Files named .jsonl "
        "are always read so.",
    ),
]
Field = Annotated[
    str | None,
    _option(
        _TEXTS,
        "--field",
        metavar="NAME",
        help="The field that holds the text. Default: text, or else prompt.",
    ),
]
Bos = Annotated[
    bool,
    _flag(
        _TEXTS,
        "--bos",
        help="Put the model's bos token before each text. An empty text always starts from it; a "
        "model without one refuses an empty text.",
    ),
]

Json = Annotated[bool, _flag(_OUTPUT, "--json", help="Print one JSON document.")]
Jsonl = Annotated[
    bool, _flag(_OUTPUT, "--jsonl", help="Print JSON events, one per line: start, token, end, summary.")
]
Events = Annotated[bool, _flag(_OUTPUT, "--jsonl", help="Print JSON events, one per line.")]
Csv = Annotated[
    bool,
    _flag(
        _OUTPUT,
        "--csv",
        help="Print a table; a cell that a spreadsheet would take for a formula gets an apostrophe.",
    ),
]
Html = Annotated[bool, _flag(_OUTPUT, "--html", help="Write a single HTML page that needs no other file.")]
Svg = Annotated[bool, _flag(_OUTPUT, "--svg", help="Write an SVG picture of the screen, 80 columns wide.")]
ThemeName = Annotated[
    Literal["light", "dark"] | None,
    _option(_OUTPUT, "--theme", help="The colours of an SVG. Default: light."),
]
Echo = Annotated[
    bool, _flag(_OUTPUT, "--echo", help="Print the prompt before the text (a terminal always shows it).")
]
Logprobs = Annotated[
    int | None,
    _option(
        _OUTPUT,
        "--logprobs",
        metavar="K",
        help="With --json or --jsonl: add the log-probability of each token and of the K most likely ones.",
    ),
]
OutputFile = Annotated[
    Path | None,
    _option(
        _OUTPUT,
        "--output",
        "-o",
        metavar="FILE",
        help="Write to FILE, completely or not at all; - is stdout.",
    ),
]
RecordFile = Annotated[
    Path | None,
    _option(
        _OUTPUT,
        "--record",
        metavar="FILE",
        help="Also write FILE, from which gpt2cli replay gives the same text, here or elsewhere.",
    ),
]
NoResume = Annotated[
    bool,
    _flag(
        _OUTPUT,
        "--no-resume",
        help="Read a long file from its beginning, not from where an interrupted run stopped.",
    ),
]
NoStream = Annotated[bool, _flag(_OUTPUT, "--no-stream", help="Print the text only when it is complete.")]
Quiet = Annotated[bool | None, _flag(_OUTPUT, "--quiet", "-q", help="Print no notes or warnings on stderr.")]
Debug = Annotated[bool, _flag(_OUTPUT, "--debug", help="Show a traceback if there is an error.")]

DeviceName = Annotated[
    Device | None, _option(_ENGINE, "--device", help="The device to run on.", default_of="device")
]
PrecisionName = Annotated[
    Precision | None,
    _option(
        _ENGINE,
        "--precision",
        help="The precision of the weights; auto is lossless in practice.",
        default_of="precision",
    ),
]
Threads = Annotated[
    int | None,
    _option(_ENGINE, "--threads", metavar="N", help="The number of CPU threads. Default: one per core."),
]
Draft = Annotated[
    str | None,
    _option(
        _ENGINE,
        "--draft",
        metavar="auto|off|lookup|MODEL",
        help="Guess tokens ahead and check several at once: the same text, sooner. lookup: from the text "
        "itself. auto: likewise, where it pays. MODEL: by a smaller model with the same vocabulary.",
        default_of="draft",
    ),
]
BatchTokens = Annotated[
    int | None, _option(_ENGINE, "--batch-tokens", metavar="N", help="How many tokens to compute at once.")
]
