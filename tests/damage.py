"""Model folders damaged in every way we could think of, from a seed.

``DAMAGES`` names the kinds; each is a function that spoils a good folder. Run as a program it loads
many such folders in one process and prints what that cost.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import make_model, write_json

from gpt2cli.checkpoint import GENERATION_KEYS

Damage = Callable[[random.Random, Path], None]
DAMAGES: dict[str, Damage] = {}

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TEXTS = (CONFIG, "generation_config.json", "tokenizer.json", "vocab.json", "merges.txt")
NUMBERS = [
    *(-1, 0, 1, 2, 3, 31, 33, 65, 257, 300_001, 65_537, 2**31, 2**32, 2**63, 2**64, 10**4000),
    *(0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf),
]
VALUES = [*NUMBERS, None, True, False, "", "32", "../x", "x" * 1000, [], [1], [[]], {}, {"a": 1}]


def damage(function: Damage) -> Damage:
    DAMAGES[function.__name__] = function
    return function


def make_base(base: Path) -> Path:
    """Two good folders, ``single`` and ``sharded``: three merges, and both forms of the tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    for name, shards in (("single", 1), ("sharded", 3)):
        directory = make_model(base / name, shards=shards, vocab_size=260, generation={"temperature": 0.9})
        edit_json(directory / "vocab.json", lambda vocab: vocab.update({"ab": 257, "he": 258, "the": 259}))
        (directory / "merges.txt").write_text("#version: 0.2\na b\nh e\nt he\n")
        vocab = json.loads((directory / "vocab.json").read_text())
        tokenizer = Tokenizer(models.BPE(vocab, [("a", "b"), ("h", "e"), ("t", "he")]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(["<|endoftext|>"])
        tokenizer.save(str(directory / "tokenizer.json"))
    return base


def damaged(base: Path, directory: Path, seed: int) -> str:
    """Copy the good folder ``base`` to ``directory`` and spoil it; the kind of damage."""
    rng = random.Random(seed)
    kind = list(DAMAGES)[seed % len(DAMAGES)]
    shutil.copytree(base / ("sharded" if "shard" in kind else "single"), directory)
    DAMAGES[kind](rng, directory)
    return kind


def read_table(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_table(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def spoil_text(rng: random.Random, path: Path) -> None:
    """Cut, flip, repeat, drop or exchange some bytes of a text file."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    kind = rng.randrange(5)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        for _ in range(rng.randint(1, 9)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[at:at] = data[: rng.randrange(200)]
    elif kind == 3:
        del data[at : at + rng.randrange(200)]
    else:
        data[at : at + 1] = rng.randbytes(rng.randrange(50))
    path.write_bytes(data)


@damage
def truncated_weights(rng: random.Random, directory: Path) -> None:
    path = directory / WEIGHTS
    size = path.stat().st_size
    os.truncate(path, rng.choice([0, 1, 7, 8, 9, size - 1, size // 2, rng.randrange(size)]))


@damage
def data_after_the_weights(rng: random.Random, directory: Path) -> None:
    with (directory / WEIGHTS).open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 100)))


@damage
def flipped_header_bytes(rng: random.Random, directory: Path) -> None:
    path = directory / WEIGHTS
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    for _ in range(rng.randint(1, 5)):
        data[8 + rng.randrange(length)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@damage
def flipped_weight_bits(rng: random.Random, directory: Path) -> None:
    path = directory / WEIGHTS
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(rng.randint(1, 50)):
        data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@damage
def header_length_that_lies(rng: random.Random, directory: Path) -> None:
    path = directory / WEIGHTS
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    near = [0, 1, 2, length - 1, length + 1, len(data) - 8, len(data)]
    lie = rng.choice([*near, 2**31, 2**40, 2**63, 2**64 - 1])
    path.write_bytes(struct.pack("<Q", lie) + data[8:])


@damage
def header_of_other_json(rng: random.Random, directory: Path) -> None:
    path = directory / WEIGHTS
    _, data = read_table(path)
    others = [b"[]", b"null", b'""', b"{}", b"1", b"[" * 50_000, b'{"a":' * 50_000, b"\xff\xfe", b" " * 100]
    write_table(path, rng.choice(others), data)


@damage
def header_key_twice(rng: random.Random, directory: Path) -> None:
    path = directory / WEIGHTS
    header, data = read_table(path)
    key = rng.choice([k for k in header if k != "__metadata__"])
    text = json.dumps(header)
    write_table(path, (text[:-1] + f", {json.dumps({key: header[key]})[1:]}").encode(), data)


@damage
def entry_values(rng: random.Random, directory: Path) -> None:
    path = directory / WEIGHTS
    header, data = read_table(path)
    key = rng.choice(list(header))
    if key == "__metadata__" or rng.random() < 0.1:
        header[key] = rng.choice(VALUES)
    else:
        field = rng.choice(list(header[key]))
        header[key][field] = rng.choice([*VALUES, "F64", "I8", "F8_E4M3", "F33", [0, 0]])
    write_table(path, header, data)


@damage
def shapes_of_huge_numbers(rng: random.Random, directory: Path) -> None:
    """The product of a million digits takes for ever."""
    path = directory / WEIGHTS
    header, data = read_table(path)
    key = rng.choice([k for k in header if k != "__metadata__"])
    header[key]["shape"] = [10**4000 + 1] * 2000
    write_table(path, header, data)


@damage
def overlapping_or_gapped_offsets(rng: random.Random, directory: Path) -> None:
    path = directory / WEIGHTS
    header, data = read_table(path)
    keys = [k for k in header if k != "__metadata__"]
    begin, end = header[rng.choice(keys)]["data_offsets"]
    shift = rng.choice([-4, 4, -begin, 2**62, 0])
    header[rng.choice(keys)]["data_offsets"] = [begin + shift, end + shift]
    if rng.random() < 0.2:
        header["x\ny\x1b[2J" * 100] = header.pop(rng.choice(keys))
    write_table(path, header, data)


@damage
def tensors_missing_extra_misshaped(rng: random.Random, directory: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / WEIGHTS)
    key = rng.choice(list(tensors))
    kind = rng.randrange(6)
    if kind == 0:
        del tensors[key]
    elif kind == 1:
        tensors[rng.choice(["extra", "h.2.ln_1.weight", "h.-1.x", "../x", "x\ny\x1b[2J"])] = torch.zeros(3)
    elif kind == 2:
        tensors[key] = tensors[key].reshape(*tensors[key].shape, 1)
    elif kind == 3:
        tensors[key] = tensors[key][:-1].clone()
    elif kind == 4:
        tensors[key] = tensors[key].to(rng.choice([torch.float64, torch.int32, torch.uint8, torch.bool]))
    else:
        tensors[key.removeprefix("transformer.")] = tensors[key].clone()
    save_file(tensors, directory / WEIGHTS)


@damage
def weights_not_finite(rng: random.Random, directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / WEIGHTS)
    tensor = tensors[rng.choice(list(tensors))]
    tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice([math.nan, math.inf, -math.inf])
    save_file(tensors, directory / WEIGHTS)


@damage
def weights_of_another_kind(rng: random.Random, directory: Path) -> None:
    """The weights are a directory, a FIFO, a pipe to nowhere, a link in a circle, or a pickle's name."""
    path = directory / WEIGHTS
    path.unlink()
    kind = rng.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        path.symlink_to("/dev/zero")
    else:
        (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")


@damage
def shard_names(rng: random.Random, directory: Path) -> None:
    outside = directory.parent / "outside.safetensors"
    first = next(directory.glob("model-00001*"))
    if not outside.exists():
        shutil.copy(first, outside)
    name = rng.choice([f"../{outside.name}", str(outside), "..", ".", "", "a/b", "\0", "x" * 300, "\ud800"])

    def rename(index: Any) -> None:
        for key, shard in index["weight_map"].items():
            if shard == first.name:
                index["weight_map"][key] = name

    edit_json(directory / INDEX, rename)


@damage
def shard_files(rng: random.Random, directory: Path) -> None:
    first, second = sorted(directory.glob("model-*"))[:2]
    kind = rng.randrange(6)
    if kind == 0:
        first.unlink()
    elif kind == 1:
        first.rename(directory / "elsewhere")
        first.symlink_to(directory / "elsewhere")
    elif kind == 2:
        shutil.copy(second, first)
    elif kind == 3:
        first.unlink()
        first.mkdir()
    elif kind == 4:
        first.unlink()
        first.symlink_to(second.name)
    else:
        os.truncate(first, 100)


@damage
def shard_index(rng: random.Random, directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())
    keys, shards = list(index["weight_map"]), list(index["weight_map"].values())
    kind = rng.randrange(7)
    if kind == 0:
        del index["weight_map"][rng.choice(keys)]
    elif kind == 1:
        index["weight_map"][rng.choice(keys)] = rng.choice(shards)
    elif kind == 2:
        index["weight_map"][rng.choice(keys)] = rng.choice(VALUES)
    elif kind == 3:
        index["weight_map"]["extra"] = rng.choice([*shards, "missing.safetensors", INDEX])
    elif kind == 4:
        index["weight_map"] = rng.choice(VALUES)
    elif kind == 5:
        index["weight_map"] = dict(zip(keys, rng.sample(shards, len(shards)), strict=True))
    else:
        return spoil_text(rng, directory / INDEX)
    (directory / INDEX).write_text(json.dumps(index))
    return None


@damage
def config_fields(rng: random.Random, directory: Path) -> None:
    content = json.loads((directory / CONFIG).read_text())
    content[rng.choice(list(content))] = rng.choice(VALUES)
    (directory / CONFIG).write_text(json.dumps(content))


@damage
def config_fields_missing(rng: random.Random, directory: Path) -> None:
    content = json.loads((directory / CONFIG).read_text())
    for key in rng.sample(list(content), 3):
        del content[key]
    write_json(directory / CONFIG, content)


@damage
def config_asks_for_code(rng: random.Random, directory: Path) -> None:
    code = directory / "modeling.py"
    code.write_text("raise SystemExit('ran')")

    def ask(content: Any) -> None:
        content["auto_map"] = {"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Config"}
        content["attn_implementation"] = rng.choice(["flash_attention_2", "modeling.attention", 5])
        content["trust_remote_code"] = True

    edit_json(directory / CONFIG, ask)


@damage
def text_files(rng: random.Random, directory: Path) -> None:
    spoil_text(rng, directory / rng.choice([name for name in TEXTS if (directory / name).exists()]))


@damage
def files_of_other_content(rng: random.Random, directory: Path) -> None:
    content = rng.choice(
        [
            b"",
            b"\0" * 100,
            b"null",
            b"[]",
            b'"text"',
            b"{}",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"n_layer": 1, "n_layer": 1}',
            b'{"n_layer": ' + b"9" * 5000 + b"}",
            b'{"x": "' + b"y" * 2**20 + b'"}',
            b"\xff\xfe{\0}\0",
            "é".encode("latin-1"),
            rng.randbytes(1000),
        ]
    )
    (directory / rng.choice([CONFIG, "generation_config.json", "tokenizer.json"])).write_bytes(content)


@damage
def files_of_another_kind(rng: random.Random, directory: Path) -> None:
    path = directory / rng.choice([*TEXTS, INDEX])
    path.unlink(missing_ok=True)
    kind = rng.randrange(4)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path)
    else:
        path.symlink_to("/dev/zero")


@damage
def generation_fields(rng: random.Random, directory: Path) -> None:
    keys = [*GENERATION_KEYS, "eos_token_id", "bos_token_id", "do_sample"]
    content = {rng.choice(keys): rng.choice(VALUES) for _ in range(rng.randint(1, 2))}
    (directory / "generation_config.json").write_text(json.dumps(content))


@damage
def tokenizer_fields(rng: random.Random, directory: Path) -> None:
    def edit(content: Any) -> None:
        place = rng.choice([content, content["model"], content["model"]["vocab"], content["decoder"]])
        place[rng.choice(list(place))] = rng.choice(VALUES)

    edit_json(directory / "tokenizer.json", edit)


@damage
def vocabulary_files(rng: random.Random, directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    kind = rng.randrange(4)
    if kind == 0:
        spoil_text(rng, directory / "vocab.json")
    elif kind == 1:
        spoil_text(rng, directory / "merges.txt")
    elif kind == 2:
        edit_json(directory / "vocab.json", lambda v: v.update({rng.choice(list(v)): rng.choice(VALUES)}))
    else:
        merges = rng.choice(["a b\n", "a\n", "a b c\n", "\n\n", "zz zz\n", " \n", "b a\n"])
        (directory / "merges.txt").write_text(merges)


@damage
def tokenizer_of_another_model(rng: random.Random, directory: Path) -> None:
    """Its ids go beyond the vocabulary of the model."""
    edit_json(directory / CONFIG, lambda config: config.update(eos_token_id=rng.choice([None, 5, 10**6, -1])))
    (directory / "tokenizer.json").unlink()
    shift = rng.choice([1, 100, 257, 999_000])
    edit_json(directory / "vocab.json", lambda v: v.update({token: i + shift for token, i in v.items()}))


def swell_header(directory: Path) -> None:
    _, data = read_table(directory / WEIGHTS)
    write_table(directory / WEIGHTS, b'{"a": [' + b"[]," * 2_700_000 + b"0]}", data)


def swell_texts(directory: Path) -> None:
    (directory / "tokenizer.json").write_bytes(b'{"a": [' + b'"ab",' * 6_700_000 + b"0]}")


def swell_unigram(directory: Path) -> None:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["ab" * 200_000, 0.0]] * 70}
    write_json(directory / "tokenizer.json", {"version": "1.0", "model": model})


def swell_merges(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "merges.txt").write_text("a b\n" * 8_000_000)


SWELLING = (swell_header, swell_texts, swell_unigram, swell_merges)
"""Files within the limits of their size that take a hundred times as much when they are read."""


def load_and_generate(directory: Path) -> str:
    """``works``, or the exit code of the error. Anything but a `Gpt2cliError` goes through."""
    from gpt2cli import Engine, Gpt2cliError

    try:
        engine = Engine.load(directory)
        engine.generate("ab", engine.options(max_new_tokens=3, seed=0))
    except Gpt2cliError as error:
        assert len(str(error).splitlines()) == 1, str(error)
        return str(error.exit_code)
    return "works"


def main(base: Path, seeds: range) -> None:
    """Load all folders in this process; print the outcomes, how much memory it took and the longest time."""
    import resource

    load_and_generate(base / "single")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: dict[str, int] = {}
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for case in (*seeds, *SWELLING):
            directory = Path(folder) / "parent" / "model"
            directory.parent.mkdir()
            if callable(case):
                shutil.copytree(base / "single", directory)
                case(directory)
            else:
                damaged(base, directory, case)
            started = time.perf_counter()
            outcome = load_and_generate(directory)
            longest = max(longest, time.perf_counter() - started)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            shutil.rmtree(directory.parent)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"outcomes": outcomes, "grown_mib": grown / 1024, "longest_s": longest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), range(int(sys.argv[2])))
