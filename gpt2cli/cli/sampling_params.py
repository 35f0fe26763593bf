"""The options that say how long a text gets and how its tokens are drawn, each written once.

As in `gpt2cli.cli.params`, all are None when not given.
"""

from __future__ import annotations

from typing import Annotated

from gpt2cli.cli.param_kinds import LENGTH, SAMPLING, TEXT, flag, option
from gpt2cli.options import DEFAULT_SUGGESTED_TOKENS, Overflow, Rng

MaxNewTokens = Annotated[
    int | None,
    option(
        LENGTH,
        "--max-new-tokens",
        metavar="N",
        help="Generate at most N tokens.",
        default_of="max_new_tokens",
    ),
]
SuggestedTokens = Annotated[
    int | None,
    option(
        LENGTH,
        "--max-new-tokens",
        metavar="N",
        help=f"The length of a suggestion, at most N tokens. Default: {DEFAULT_SUGGESTED_TOKENS}.",
    ),
]
MaxLength = Annotated[
    int | None,
    option(
        LENGTH,
        "--max-length",
        metavar="N",
        help="Limit the prompt and its continuation together to N tokens.",
    ),
]
Stop = Annotated[
    list[str] | None,
    option(LENGTH, "--stop", metavar="TEXT", help="Stop before TEXT; may be given several times."),
]
IgnoreEos = Annotated[
    bool | None, flag(LENGTH, "--ignore-eos", help="Keep generating after an end-of-text token.")
]
MaxSentences = Annotated[
    int | None,
    option(
        LENGTH,
        "--max-sentences",
        metavar="N",
        help="End the text after N sentences: after . ! ? and white space, or a line end.",
    ),
]
OverflowMode = Annotated[
    Overflow | None,
    option(
        LENGTH,
        "--overflow",
        help="What to do when the context is full. error: refuse a prompt that leaves no room; "
        "the text ends where the context does. truncate: drop the oldest tokens of the "
        "prompt. slide: also move the window on while generating.",
        default_of="overflow",
    ),
]

Temperature = Annotated[
    float | None,
    option(
        SAMPLING,
        "--temperature",
        "--temp",
        metavar="T",
        help="Below 1 is more predictable, above 1 more varied; 0 is greedy.",
        default_of="temperature",
    ),
]
TopK = Annotated[
    int | None,
    option(
        SAMPLING,
        "--top-k",
        metavar="K",
        help="Sample from the K most likely tokens; 0 turns this off.",
        default_of="top_k",
    ),
]
TopP = Annotated[
    float | None,
    option(
        SAMPLING,
        "--top-p",
        metavar="P",
        help="Sample from the most likely tokens whose probabilities add up to P; 1 turns this off.",
    ),
]
MinP = Annotated[
    float | None,
    option(
        SAMPLING,
        "--min-p",
        metavar="P",
        help="Drop tokens less likely than P times the most likely one; 0 turns this off.",
    ),
]
TypicalP = Annotated[
    float | None,
    option(
        SAMPLING,
        "--typical-p",
        metavar="P",
        help="Sample from the most typical tokens whose probabilities add up to P; 1 turns this off.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    option(
        SAMPLING,
        "--repetition-penalty",
        metavar="X",
        help="Above 1, tokens that are already in the text become less likely; 1 turns this off.",
    ),
]
NoRepeatNgramSize = Annotated[
    int | None,
    option(
        SAMPLING,
        "--no-repeat-ngram-size",
        metavar="N",
        help="Never repeat a sequence of N tokens; 0 turns this off.",
    ),
]
PresencePenalty = Annotated[
    float | None,
    option(
        SAMPLING,
        "--presence-penalty",
        metavar="X",
        help="Above 0, tokens that the continuation already has become less likely, however often they are "
        "there; -2 to 2, 0 turns this off.",
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    option(
        SAMPLING,
        "--frequency-penalty",
        metavar="X",
        help="The same for each time that the token is there; -2 to 2, 0 turns this off.",
    ),
]
LogitBias = Annotated[
    list[str] | None,
    option(
        SAMPLING,
        "--logit-bias",
        metavar="ID=X",
        help="Add X, from -100 to 100, to the score of the token ID; may be given several times.",
    ),
]
Greedy = Annotated[
    bool | None,
    flag(SAMPLING, "--greedy", help="Always take the most likely token (the same as --temperature 0)."),
]
NumReturnSequences = Annotated[
    int | None,
    option(
        SAMPLING,
        "--num-return-sequences",
        "-n",
        metavar="N",
        help="Generate N texts.",
        default_of="num_return_sequences",
    ),
]
Seed = Annotated[
    int | None,
    option(
        SAMPLING,
        "--seed",
        metavar="S",
        help="The same seed gives the same text; with -n, the texts have the seeds S, S+1, … "
        "Default: a random seed, which is reported.",
    ),
]
Suggest = Annotated[
    bool | None,
    flag(
        TEXT,
        "--suggest",
        help="Show what the model would type next, dim, when you pause; → takes it. Default: the suggest "
        "setting, else off.",
    ),
]
RngKind = Annotated[
    Rng | None,
    option(
        SAMPLING,
        "--rng",
        help="The random numbers. transformers: sample exactly as transformers does after set_seed.",
        default_of="rng",
    ),
]
