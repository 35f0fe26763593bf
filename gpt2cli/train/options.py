"""What can be asked of a training: frozen dataclasses, checked when they are made. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2cli.checkpoint import MAX_EMBD, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB
from gpt2cli.errors import InvalidOption
from gpt2cli.options import (
    MAX_SEED,
    Device,
    SamplingOptions,
    check_choice,
    check_number,
    check_whole,
)

Optimizer = Literal["adamw", "muon"]
Schedule = Literal["cosine", "linear", "constant"]
TrainPrecision = Literal["auto", "fp32", "bf16"]
SavePrecision = Literal["fp32", "fp16", "bf16"]

POSITIVE = "a positive whole number"
MIN_VOCAB = 257
"""One token for each byte, and end-of-text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Where the text comes from, and how it is divided. Raises `InvalidOption`."""

    data: tuple[Path, ...]
    """Files and folders: text, or JSONL with a ``field``; ``-`` is stdin."""
    field: str = "text"
    """The field of a JSONL object that holds the document."""
    separator: str = "<|endoftext|>"
    """Stands between two documents of a text file; empty: a file is one document."""
    validation: float = 0.02
    """The share of the text held back for validation, in (0, 0.5]."""
    validation_data: tuple[Path, ...] = ()
    """Files and folders to validate on, instead of a share of ``data``."""
    test_data: tuple[Path, ...] = ()
    """Files scored one by one when the training is done; never trained on."""

    def __post_init__(self) -> None:
        if not self.data:
            raise InvalidOption("data", "no file or folder is given")
        # Line ends are read as "\n".
        object.__setattr__(self, "separator", self.separator.replace("\r\n", "\n"))
        if not self.field:
            raise InvalidOption("field", "a name of at least one character")
        check_number("validation", self.validation, "more than 0, up to 0.5", lambda v: 0 < v <= 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeOptions:
    """The model that ``train`` makes. Raises `InvalidOption`."""

    layers: int = 6
    width: int = 256
    heads: int = 4
    context: int = 512
    vocab_size: int = 4096
    """Entries of the byte-level BPE trained on the data, the end-of-text token included."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("layers", 1, MAX_LAYERS),
            ("width", 1, MAX_EMBD),
            ("heads", 1, MAX_EMBD),
            ("context", 2, MAX_POSITIONS),
            ("vocab_size", MIN_VOCAB, MAX_VOCAB),
        ):
            check_whole(name, getattr(self, name), low, high, f"{low} to {high}")
        if self.width % self.heads:
            raise InvalidOption("heads", f"the width {self.width} is not divisible by {self.heads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685). Raises `InvalidOption`."""

    rank: int = 8
    alpha: int = 16
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    keep: bool = False
    """Leave the adapters as an adapter in peft's format, too, beside the model that they are merged into."""

    def __post_init__(self) -> None:
        check_whole("lora_rank", self.rank, 1, MAX_EMBD, f"1 to {MAX_EMBD}")
        check_whole("lora_alpha", self.alpha, 1, None, POSITIVE)
        check_number("lora_dropout", self.dropout, "0 up to 1", lambda v: 0 <= v < 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """Knowledge distillation as DistilGPT2's (Sanh et al. 2019, arXiv 1910.01108). Raises `InvalidOption`.

    The loss is a weighted sum: the Kullback-Leibler divergence from the teacher's distribution, both at
    ``temperature`` (times its square), the language-modelling loss, and one minus the cosine of the last
    hidden states. The weights' defaults are those of the authors' released recipe.
    """

    layers: int | None = None
    """The student's layers; half the teacher's when not given."""
    temperature: float = 2.0
    soft_weight: float = 5.0
    lm_weight: float = 2.0
    cosine_weight: float = 1.0
    random_init: bool = False
    """Start from random weights, not from the teacher's alternate layers."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            check_whole("student_layers", self.layers, 1, MAX_LAYERS, f"1 to {MAX_LAYERS}")
        check_number("distill_temperature", self.temperature, "more than 0", lambda v: v > 0)
        weights = ("soft_weight", "lm_weight", "cosine_weight")
        for name in weights:
            check_number(name, getattr(self, name), "0 and more", lambda v: v >= 0)
        if not any(getattr(self, name) for name in weights):
            raise InvalidOption("soft_weight", "at least one weight must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How a model is trained. Raises `InvalidOption`."""

    steps: int | None = None
    """Optimizer steps."""
    epochs: float | None = None
    """Passes over the training text, instead of ``steps``; 1 when neither is given."""
    batch_size: int = 16
    """Windows a step."""
    micro_batch_size: int | None = None
    """Windows at a time; gradients add up to a batch. The batch itself when not given."""
    window: int | None = None
    """Tokens a window; the model's context when not given."""
    short_window: int | None = None
    """Train with this window first (Press et al. 2020, arXiv 2012.15832): as many tokens a step, cheaper."""
    short_share: float = 0.75
    """The share of the steps that ``short_window`` is for."""
    learning_rate: float = 1e-3
    """The highest learning rate."""
    schedule: Schedule = "cosine"
    """How the learning rate falls to 0: over all steps, or over the last ``decay`` of them for constant."""
    warmup: int = 100
    """Steps in which the learning rate rises."""
    decay: float = 0.4
    """The share of the steps in which a ``constant`` learning rate falls to 0."""
    optimizer: Optimizer = "adamw"
    """``muon`` for the matrices of the layers (Jordan et al. 2024), AdamW for the rest."""
    muon_scale: float = 1.0
    """The matrices' learning rate under ``muon``, as a multiple of ``learning_rate``."""
    weight_decay: float = 0.1
    dropout: float | None = None
    """For embeddings, attention and residuals; the model's own when not given (0 for a new model)."""
    clip: float = 1.0
    """Gradients are scaled down to this norm; 0 is off."""
    seed: int = 0
    precision: TrainPrecision = "auto"
    """The precision of matrix products; the weights stay fp32. ``auto`` is bf16 where the hardware has it."""
    device: Device = "auto"
    threads: int | None = None
    evaluate_every: int | None = None
    """Steps between two evaluations; a tenth of all when not given."""
    save_every: int | None = None
    """Steps between two checkpoints; as ``evaluate_every`` when not given."""
    sample_every: int | None = None
    """Steps between two samples of text; as ``evaluate_every`` when not given, 0 is never."""
    log_every: int = 10
    patience: int | None = None
    """Stop after this many evaluations without a better one; the best weights are kept."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise InvalidOption("epochs", "not together with steps")
        for name in ("steps", "micro_batch_size", "evaluate_every", "save_every", "patience"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, None, POSITIVE)
        for name in ("batch_size", "log_every"):
            check_whole(name, getattr(self, name), 1, None, POSITIVE)
        for name in ("warmup", "sample_every"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 0, None, "0 or a positive whole number")
        for name in ("window", "short_window"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 2, MAX_POSITIONS, f"2 to {MAX_POSITIONS}")
        if self.epochs is not None:
            check_number("epochs", self.epochs, "more than 0", lambda v: v > 0)
        check_number("learning_rate", self.learning_rate, "more than 0, up to 1", lambda v: 0 < v <= 1)
        check_number("muon_scale", self.muon_scale, "more than 0, up to 100", lambda v: 0 < v <= 100)
        check_number("weight_decay", self.weight_decay, "0 to 1", lambda v: 0 <= v <= 1)
        check_number("clip", self.clip, "0 (off) and more", lambda v: v >= 0)
        check_number("decay", self.decay, "0 to 1", lambda v: 0 <= v <= 1)
        check_number("short_share", self.short_share, "0 to 1", lambda v: 0 <= v <= 1)
        if self.dropout is not None:
            check_number("dropout", self.dropout, "0 up to 1", lambda v: 0 <= v < 1)
        check_whole("seed", self.seed, 0, MAX_SEED, f"0 to {MAX_SEED}")
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_choice("optimizer", self.optimizer, get_args(Optimizer))
        check_choice("precision", self.precision, get_args(TrainPrecision))
        check_choice("device", self.device, get_args(Device))
        if self.threads is not None:
            check_whole("threads", self.threads, 1, 1024, "1 to 1024")
        self._check_batches()

    def _check_batches(self) -> None:
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro:
            raise InvalidOption("micro_batch_size", f"the batch of {self.batch_size} is not divisible by it")
        if self.short_window is not None and self.window is not None and self.window % self.short_window:
            raise InvalidOption("short_window", f"the window of {self.window} is not divisible by it")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What the finished model looks like. Raises `InvalidOption`."""

    save_precision: SavePrecision = "fp32"
    samples: int = 3
    """Texts in the model card, with the seeds 1, 2, …; none is left out."""
    sample_tokens: int = 150
    sample_prompt: str = ""
    """What samples continue; empty: a text from its beginning."""
    temperature: float | None = None
    """The model's default temperature, in its generation_config.json."""
    repetition_penalty: float | None = None
    """Likewise its default repetition penalty."""
    no_repeat_ngram_size: int | None = None
    """Likewise the n-grams that no text of it has twice."""
    title: str | None = None
    license: str | None = None
    description: str | None = None
    """A paragraph for the model card."""

    def __post_init__(self) -> None:
        check_choice("save_precision", self.save_precision, get_args(SavePrecision))
        check_whole("samples", self.samples, 0, 1000, "0 to 1000")
        check_whole("sample_tokens", self.sample_tokens, 1, MAX_POSITIONS, f"1 to {MAX_POSITIONS}")
        if self.temperature is not None:
            check_number("temperature", self.temperature, "0.001 and more", lambda v: v >= 1e-3)
        SamplingOptions(**self.sampling)

    @property
    def sampling(self) -> dict[str, Any]:
        """What a text is drawn by unless its request says otherwise, without what is left open."""
        names = ("temperature", "repetition_penalty", "no_repeat_ngram_size")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training, as it is written into ``training/run.json``."""

    command: Literal["train", "finetune", "distill"]
    data: DataOptions
    train: TrainOptions
    export: ExportOptions = field(default_factory=ExportOptions)
    shape: ShapeOptions | None = None
    lora: LoraOptions | None = None
    distill: DistillOptions | None = None
    base: Path | None = None
    """The directory of the model that is fine-tuned, or of the teacher."""
    base_name: str | None = None
