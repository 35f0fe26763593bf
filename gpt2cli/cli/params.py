"""The options that commands share, each written once; those of lengths and sampling are in `sampling_params`.

All are None when not given, so that settings and the model's own defaults can stand in; the ranges
and the defaults are those of `gpt2cli.options`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from gpt2cli.cli.param_kinds import ENGINE, MODEL, OUTPUT, PRESET, SERVER, TEXT, TEXTS, flag, option
from gpt2cli.options import Device, Precision

Model = Annotated[
    str | None,
    option(
        MODEL,
        "--model",
        "-m",
        metavar="NAME|DIR",
        help="A model directory, or a name (gpt2, owner/name); a model that is not on this disk "
        "is pulled first. Default: the model setting, else the built-in model.",
    ),
]
RemoteModel = Annotated[
    str | None,
    option(
        MODEL,
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
    option(
        MODEL,
        "--adapter",
        metavar="DIR|NAME",
        help="Apply a LoRA adapter to the model: a directory, or a name (owner/name). -m MODEL+ADAPTER is "
        "the same.",
    ),
]
Adapters = Annotated[
    list[str] | None,
    option(
        MODEL,
        "--adapter",
        metavar="DIR|NAME",
        help="Also take each model with this LoRA adapter, as -m MODEL+ADAPTER does; may be given several "
        "times.",
    ),
]
Endpoint = Annotated[
    str | None,
    option(
        SERVER,
        "--endpoint",
        metavar="URL",
        help="A server that speaks OpenAI's API (vLLM, llama.cpp, ollama, gpt2cli serve); -m then names one "
        "of its models.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    option(
        SERVER,
        "--api-key-file",
        metavar="FILE",
        help="Send the server the first key in FILE. Default: what GPT2CLI_API_KEY holds.",
    ),
]
Timeout = Annotated[
    float | None,
    option(
        SERVER,
        "--timeout",
        metavar="S",
        help="Give up when the server says nothing for S seconds. Default: 300.",
    ),
]
Revision = Annotated[
    str | None, option(MODEL, "--revision", metavar="REV", help="A branch, tag or commit of the model.")
]
Offline = Annotated[bool | None, flag(MODEL, "--offline", help="Never use the network.")]
AllowPickle = Annotated[
    bool | None,
    flag(
        MODEL,
        "--allow-pickle",
        help="Also read .bin checkpoints; only plain tensors are unpickled (weights_only).",
    ),
]

ConvertPickle = Annotated[
    bool,
    flag(
        MODEL,
        "--allow-pickle",
        help="Convert .bin weights to safetensors; only plain tensors are unpickled.",
    ),
]

Preset = Annotated[
    str | None,
    option(
        PRESET,
        "--preset",
        metavar="NAME",
        help="Take what no flag says from this preset; gpt2cli preset list shows them.",
    ),
]
TemplateField = Annotated[
    list[str] | None,
    option(
        PRESET,
        "--field",
        metavar="KEY=VALUE",
        help="The value of a field of the preset's template; may be given several times.",
    ),
]
FieldFile = Annotated[
    list[str] | None,
    option(
        PRESET,
        "--field-file",
        metavar="KEY=FILE",
        help="The same from a file, of which one final newline is dropped.",
    ),
]
GoOn = Annotated[
    bool,
    flag(
        TEXT,
        "--continue",
        "-c",
        help="Go on with the text of the last run in the log, with its model and options and a new seed; "
        "words that are given come after it.",
    ),
]

SpecialTokens = Annotated[
    bool | None,
    flag(
        TEXT, "--special-tokens", help="Read <|endoftext|> in the prompt as the special token, not as text."
    ),
]
Strict = Annotated[
    bool,
    flag(
        TEXT,
        "--strict",
        help="Refuse a prompt with invalid bytes; otherwise they are replaced, with a warning.",
    ),
]
Sanitize = Annotated[
    bool,
    flag(TEXT, "--sanitize", help="Remove control characters from the text; a terminal never receives them."),
]

ShardPart = Annotated[
    str | None,
    option(
        TEXTS,
        "--shard",
        metavar="I/N",
        help="Take only part I of N of the lines; gpt2cli batch --merge puts the outputs together.",
    ),
]
Lines = Annotated[bool, flag(TEXTS, "--lines", help="Treat each line as a separate text.")]
FromJsonl = Annotated[
    bool,
    flag(
        TEXTS,
        "--from-jsonl",
        help="Each line is a JSON object that holds a text; its id is kept. Files named .jsonl "
        "are always read so.",
    ),
]
Field = Annotated[
    str | None,
    option(
        TEXTS,
        "--field",
        metavar="NAME",
        help="The field that holds the text. Default: text, or else prompt.",
    ),
]
Bos = Annotated[
    bool,
    flag(
        TEXTS,
        "--bos",
        help="Put the model's bos token before each text. An empty text always starts from it; a "
        "model without one refuses an empty text.",
    ),
]

Json = Annotated[bool, flag(OUTPUT, "--json", help="Print one JSON document.")]
Jsonl = Annotated[
    bool, flag(OUTPUT, "--jsonl", help="Print JSON events, one per line: start, token, end, summary.")
]
Events = Annotated[bool, flag(OUTPUT, "--jsonl", help="Print JSON events, one per line.")]
Csv = Annotated[
    bool,
    flag(
        OUTPUT,
        "--csv",
        help="Print a table; a cell that a spreadsheet would take for a formula gets an apostrophe.",
    ),
]
Html = Annotated[bool, flag(OUTPUT, "--html", help="Write a single HTML page that needs no other file.")]
Svg = Annotated[bool, flag(OUTPUT, "--svg", help="Write an SVG picture of the screen, 80 columns wide.")]
ThemeName = Annotated[
    Literal["light", "dark"] | None,
    option(OUTPUT, "--theme", help="The colours of an SVG. Default: light."),
]
Echo = Annotated[
    bool, flag(OUTPUT, "--echo", help="Print the prompt before the text (a terminal always shows it).")
]
Logprobs = Annotated[
    int | None,
    option(
        OUTPUT,
        "--logprobs",
        metavar="K",
        help="With --json or --jsonl: add the log-probability of each token and of the K most likely ones.",
    ),
]
OutputFile = Annotated[
    Path | None,
    option(
        OUTPUT,
        "--output",
        "-o",
        metavar="FILE",
        help="Write to FILE, completely or not at all; - is stdout.",
    ),
]
RecordFile = Annotated[
    Path | None,
    option(
        OUTPUT,
        "--record",
        metavar="FILE",
        help="Also write FILE, from which gpt2cli replay gives the same text, here or elsewhere.",
    ),
]
NoResume = Annotated[
    bool,
    flag(
        OUTPUT,
        "--no-resume",
        help="Read a long file from its beginning, not from where an interrupted run stopped.",
    ),
]
NoStream = Annotated[bool, flag(OUTPUT, "--no-stream", help="Print the text only when it is complete.")]
Quiet = Annotated[bool | None, flag(OUTPUT, "--quiet", "-q", help="Print no notes or warnings on stderr.")]
Debug = Annotated[bool, flag(OUTPUT, "--debug", help="Show a traceback if there is an error.")]

DeviceName = Annotated[
    Device | None, option(ENGINE, "--device", help="The device to run on.", default_of="device")
]
PrecisionName = Annotated[
    Precision | None,
    option(
        ENGINE,
        "--precision",
        help="The precision of the weights; auto is lossless in practice.",
        default_of="precision",
    ),
]
Threads = Annotated[
    int | None,
    option(ENGINE, "--threads", metavar="N", help="The number of CPU threads. Default: one per core."),
]
Draft = Annotated[
    str | None,
    option(
        ENGINE,
        "--draft",
        metavar="auto|off|lookup|MODEL",
        help="Guess tokens ahead and check several at once: the same text, sooner. lookup: from the text "
        "itself. auto: likewise, where it pays. MODEL: by a smaller model with the same vocabulary.",
        default_of="draft",
    ),
]
BatchTokens = Annotated[
    int | None, option(ENGINE, "--batch-tokens", metavar="N", help="How many tokens to compute at once.")
]
