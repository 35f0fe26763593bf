"""Names: what a user may call a model, the repository that is meant, and what is known of it.

A name from outside (command line, settings, a server) is checked here, once, by `parse_name`;
behind it, names are safe to build paths from. What is known of the published models stands in
`PUBLISHED`, and where each fact comes from in `SOURCES`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gpt2cli.errors import UsageError
from gpt2cli.options import shown

BUILTIN = "tiny"

ALIASES: dict[str, str] = {
    "gpt2": "openai-community/gpt2",
    "small": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
    "distil": "distilbert/distilgpt2",
}

OTHER_ALIASES: dict[str, str] = {
    "openai-gpt": "openai-community/openai-gpt",
    "gpt1": "openai-community/openai-gpt",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
}
"""Of models of other families."""

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?:{_PART}/)?{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A valid name, as the user wrote it, and the repository it stands for."""

    given: str
    repository: str

    @property
    def spellings(self) -> tuple[str, ...]:
        """The names under which the model may lie on disk: the repository's, and older or local ones."""
        if self.repository not in ALIASES.values():
            return (self.repository,)
        return tuple(dict.fromkeys((self.repository, self.given, self.repository.rpartition("/")[2])))


def is_name(text: str) -> bool:
    """Whether ``text`` can be the name of a model."""
    return bool(_NAME.fullmatch(text)) and ".." not in text and "--" not in text


def refuse_address(text: str) -> None:
    """Raise `UsageError` for the address of a server; it may hold a password, and is not shown."""
    if text.lower().startswith(("http://", "https://")):
        raise UsageError(
            "this needs the model itself, and the address of a server was given",
            hint="generate, chat, batch and compare talk to servers; else name a model of this machine",
        )


def parse_name(text: str) -> ModelName:
    """A checked name: ``gpt2``, ``owner/name`` or a local one. Raises `UsageError`."""
    refuse_address(text)
    if not is_name(text):
        raise UsageError(
            f"{shown(text)} is neither a directory nor a model name",
            hint="a name is like gpt2, distilgpt2 or owner/name",
        )
    return ModelName(text, ALIASES.get(text) or OTHER_ALIASES.get(text, text))


def parse_revision(text: str) -> str:
    """A checked branch, tag or commit. Raises `UsageError`."""
    if not _REVISION.fullmatch(text) or ".." in text or "//" in text or text.endswith("/"):
        raise UsageError(f"{shown(text)} is not a revision", hint="a revision is a branch, a tag or a commit")
    return text


def parse_reference(text: str) -> tuple[ModelName, str | None]:
    """A checked ``NAME`` or ``NAME@REVISION``. Raises `UsageError`."""
    name, at, revision = text.partition("@")
    return parse_name(name), parse_revision(revision) if at else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """What is known of a published model. Shape fields are named as in ``config.json``."""

    name: str
    repository: str
    published_parameters: str
    """As the authors counted them."""
    parameters: int
    """Counted from the shapes; the head is the token embedding, counted once."""
    n_layer: int
    n_embd: int
    n_head: int
    n_positions: int = 1024
    training_data: str = "WebText, 40 GB"
    licence: str = "modified MIT (OpenAI)"
    paper: str | None = "Radford et al. 2019, Language Models are Unsupervised Multitask Learners"
    wikitext103_perplexity: float | None = None
    """On the test set, after fine-tuning on the training set."""

    @property
    def download_size(self) -> int:
        """About how many bytes its weights take: fp32, and a mask in each layer, as these files have it."""
        return 4 * (self.parameters + self.n_layer * self.n_positions**2)


PUBLISHED: tuple[PublishedModel, ...] = (
    PublishedModel(
        name="gpt2",
        repository="openai-community/gpt2",
        published_parameters="117M",
        parameters=124_439_808,
        n_layer=12,
        n_embd=768,
        n_head=12,
        wikitext103_perplexity=16.3,
    ),
    PublishedModel(
        name="gpt2-medium",
        repository="openai-community/gpt2-medium",
        published_parameters="345M",
        parameters=354_823_168,
        n_layer=24,
        n_embd=1024,
        n_head=16,
    ),
    PublishedModel(
        name="gpt2-large",
        repository="openai-community/gpt2-large",
        published_parameters="762M",
        parameters=774_030_080,
        n_layer=36,
        n_embd=1280,
        n_head=20,
    ),
    PublishedModel(
        name="gpt2-xl",
        repository="openai-community/gpt2-xl",
        published_parameters="1.5B",
        parameters=1_557_611_200,
        n_layer=48,
        n_embd=1600,
        n_head=25,
    ),
    PublishedModel(
        name="distilgpt2",
        repository="distilbert/distilgpt2",
        published_parameters="82M",
        parameters=81_912_576,
        n_layer=6,
        n_embd=768,
        n_head=12,
        training_data="OpenWebTextCorpus, distilled from gpt2",
        licence="Apache-2.0",
        paper=None,
        wikitext103_perplexity=21.1,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherModel:
    """What is known of a published model of another family than GPT-2."""

    name: str
    repository: str
    parameters: str
    """As its card or paper has it."""
    context: int
    """Tokens."""
    about_bytes: int
    """About the size of its weights, which depends on the revision."""
    licence: str
    talks: bool
    """Whether it was trained to answer, and has a chat template."""


OTHERS: tuple[OtherModel, ...] = (
    OtherModel(
        name="openai-gpt",
        repository="openai-community/openai-gpt",
        parameters="117M",
        context=512,
        about_bytes=479_000_000,
        licence="MIT",
        talks=False,
    ),
    OtherModel(
        name="smollm2-135m",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        parameters="135M",
        context=8192,
        about_bytes=269_000_000,
        licence="Apache-2.0",
        talks=True,
    ),
    OtherModel(
        name="smollm2-360m",
        repository="HuggingFaceTB/SmolLM2-360M-Instruct",
        parameters="360M",
        context=8192,
        about_bytes=724_000_000,
        licence="Apache-2.0",
        talks=True,
    ),
    OtherModel(
        name="qwen2.5-0.5b",
        repository="Qwen/Qwen2.5-0.5B-Instruct",
        parameters="0.49B",
        context=32_768,
        about_bytes=988_000_000,
        licence="Apache-2.0",
        talks=True,
    ),
    OtherModel(
        name="qwen3-0.6b",
        repository="Qwen/Qwen3-0.6B",
        parameters="0.6B",
        context=32_768,
        about_bytes=1_500_000_000,
        licence="Apache-2.0",
        talks=True,
    ),
)
"""No revision and no hash of theirs is known here: a pull takes what the Hub has, and vouches for no more."""

_PAPER = "Radford et al. 2019, Language Models are Unsupervised Multitask Learners"
_CARD = "model card of distilbert/distilgpt2 (README.md at revision 9851938d078d6b457355cdbe866dd9fa2ed3b210)"

SOURCES: Mapping[str, str] = {
    "published_parameters": f"{_PAPER}; distilgpt2: {_CARD}",
    "parameters": "counted from the shapes that layers, width, vocabulary (50,257) and context give",
    "n_layer": f"{_PAPER}; distilgpt2: config.json of the repository",
    "n_embd": f"{_PAPER}; distilgpt2: config.json of the repository",
    "n_head": "config.json of each repository",
    "n_positions": f"{_PAPER}; config.json of each repository",
    "training_data": f"{_PAPER}; distilgpt2: {_CARD}",
    "licence": f"the licence of OpenAI's release of GPT-2; distilgpt2: {_CARD}",
    "paper": "the authors",
    "wikitext103_perplexity": f"{_CARD}, after fine-tuning on WikiText-103",
    "download_size": "counted: 4 bytes a parameter, and for each layer a mask of 1024 x 1024",
}
"""Where each field of a `PublishedModel` comes from."""


def published_model(name: str) -> PublishedModel | None:
    """What is known of the model of that name or repository, None where it is not a published one."""
    repository = ALIASES.get(name, name)
    return next((model for model in PUBLISHED if model.repository == repository), None)
