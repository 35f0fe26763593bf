"""What kinds of servers there are, what their models are, and which of our options each one knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gpt2cli.errors import UsageError
from gpt2cli.remote.pieces import Json, whole
from gpt2cli.text.sanitize import one_line

STANDARD: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
    "stop": "stop",
    "seed": "seed",
    "logprobs": "logprobs",
}
"""Our options that OpenAI's API has, by its names."""
EXTRA: Mapping[str, str] = {
    name: name
    for name in (
        *("top_k", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "ignore_eos"),
        "max_sentences",
    )
}
"""Those it has not, by the names that vLLM and our own server gave them."""
LOCAL: Mapping[str, str] = {
    "max_length": "use --max-new-tokens: only the server knows how many tokens the prompt has",
    "overflow": "leave it out, and shorten the prompt where it is too long",
    "special_tokens": "leave it out: the server decides how it reads a prompt",
    "rng": "leave it out: the server draws by its own random numbers, which --seed determines",
    "draft": "leave it out: the server runs its model in its own way",
}
"""Options that no server can be told of, and what to do instead."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server."""

    name: str
    names: Mapping[str, str]
    """Options and what they are called there."""
    known: bool = True
    """Whether it is known what the server does not know."""
    several: bool = False
    """Whether ``n`` draws text *i* from the seed plus *i*; else each text is a request."""
    token_ids: bool = False
    """Whether it tells the ids of tokens, and lets them be asked for."""
    beside: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    """What is sent beside an option, so that it means what ours does."""


def _without(*left_out: str, **other: str) -> dict[str, str]:
    return {
        name: other.get(name, there) for name, there in {**STANDARD, **EXTRA}.items() if name not in left_out
    }


OURS = Kind("gpt2cli", _without(), several=True, token_ids=True)
VLLM = Kind(
    "vLLM", _without("typical_p", "no_repeat_ngram_size", "max_sentences"), several=True, token_ids=True
)
LLAMA_CPP = Kind(
    "llama.cpp",
    _without("no_repeat_ngram_size", "max_sentences", repetition_penalty="repeat_penalty"),
    # Else it looks at the last 64 tokens only; -1 is refused.
    beside={"repetition_penalty": {"repeat_last_n": 2**16}},
)
OLLAMA = Kind("ollama", _without(*EXTRA, "logit_bias"))
UNKNOWN = Kind("a server of a kind that is not known here", _without(), known=False)

_OWNERS = {"gpt2cli": OURS, "vllm": VLLM, "llamacpp": LLAMA_CPP, "library": OLLAMA}


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a server."""

    name: str
    context: int | None = None
    """The most tokens of prompt and text, where the server says it."""
    chat_format: str | None = None
    """How our own server makes one text of a conversation."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself."""

    kind: Kind
    models: tuple[Model, ...]

    def names(self, most: int = 8) -> str:
        """Its models, for an error."""
        shown = [one_line(model.name)[:80] for model in self.models[:most]]
        return ", ".join(shown) + (", …" if len(self.models) > most else "")


def read_server(document: object) -> Server:
    """What the answer of ``/models`` says; what is not understood of it is left out."""
    found: list[Model] = []
    owners: list[str] = []
    data = document.get("data") if isinstance(document, dict) else None
    for entry in data if isinstance(data, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            continue
        meta, form = entry.get("meta"), entry.get("chat_format")
        # llama.cpp tells it among what it knows of the file.
        context = entry.get("max_model_len", meta.get("n_ctx") if isinstance(meta, dict) else None)
        if not isinstance(context, int) or isinstance(context, bool) or context < 1:
            context = None
        found.append(Model(whole(entry["id"]), context, form if isinstance(form, str) else None))
        owners.append(str(entry.get("owned_by")))
    return Server(_OWNERS.get(owners[0], UNKNOWN) if owners else UNKNOWN, tuple(found))


def check_sendable(names: Iterable[str]) -> None:
    """Raise `UsageError` for an option that no server can be told of."""
    for name in names:
        if name in LOCAL:
            raise UsageError(f"{flag(name)} is for a model on this machine", hint=LOCAL[name])


def check_options(kind: Kind, names: Iterable[str]) -> list[str]:
    """The options among those that were set which the server may or may not know.

    Raises `UsageError` for one that it certainly does not know.
    """
    for name in names:
        if name not in kind.names:
            raise UsageError(f"{flag(name)}: {kind.name} has no such option", hint="leave it out")
    return [flag(name) for name in names if name in EXTRA and not kind.known]


def flag(name: str) -> str:
    """An option as the command line has it."""
    return "--" + name.replace("_", "-")
