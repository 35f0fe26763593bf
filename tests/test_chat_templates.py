"""Chat templates of each style, token for token against transformers' ``apply_chat_template``."""

# ruff: noqa: E501

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from family_models import write_family
from tokenizer_kinds import KINDS

from gpt2cli.api.chat import message_ids
from gpt2cli.api.models import Served
from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.errors import ModelFileError
from gpt2cli.options import LoadOptions
from gpt2cli.repl.context import Contexts
from gpt2cli.repl.formats import Template, choose_format
from gpt2cli.repl.template import read_template
from gpt2cli.repl.tree import Tree, Turn
from gpt2cli.text.tokenizer import Tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}{{- tool_call.name }}{%- endfor %}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
STYLES = {
    "SmolLM2": ("qwen", SMOLLM2),
    "Qwen2.5": ("qwen", QWEN),
    "Llama 3": ("llama 3", LLAMA3),
    "Gemma": ("gemma", GEMMA),
    "Zephyr": ("llama 2", ZEPHYR),
    "Zephyr, older": ("llama 2, older", ZEPHYR),
}
SAID = [
    "Hello there",
    "Hi.\n\nWhat is it?",
    "  two  spaces\n",
    "Größe 😀 字",
    "  ",
    "x" * 50 + "\n\n\n- a\n- b",
]


class Model(SimpleNamespace):
    """What a conversation needs of an engine, without weights."""

    def __init__(self, directory: Path) -> None:
        found = Tokenizer.from_directory(directory)
        assert found is not None
        super().__init__(tokenizer=found, config=SimpleNamespace(n_positions=4096, vocab_size=5000))

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return self.tokenizer.encode(text, continues=continues)

    def encode_parts(self, parts: Sequence[Any], *, continues: bool = False) -> list[int]:
        return self.tokenizer.encode_parts(parts, continues=continues)


@pytest.fixture(scope="module", params=STYLES)
def style(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    kind, source = STYLES[request.param]
    directory = KINDS[kind](tmp_path_factory.mktemp("style") / "m")
    (directory / "chat_template.jinja").write_text(source)
    template = read_template(directory)
    assert template is not None
    return (
        request.param,
        Model(directory),
        Template(template),
        PreTrainedTokenizerFast.from_pretrained(directory),
    )


def expected(reference: Any, messages: list[dict[str, str]]) -> list[int]:
    ids: list[int] = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


def conversations(system: bool) -> list[list[dict[str, str]]]:
    found = []
    for n in range(len(SAID)):
        said = SAID[n:] + SAID[:n]
        for turns in range(3):
            roles = ["user", "assistant"] * turns + ["user"]
            texts = [s.strip() if r == "assistant" else s for r, s in zip(roles, said, strict=False)]
            messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
            found.append(([{"role": "system", "content": "Be brief."}] if system else []) + messages)
    return found


@pytest.mark.parametrize("system", [False, True])
def test_requests_are_tokenised_as_transformers_does(style: Any, system: bool) -> None:
    name, model, form, reference = style
    if system and name == "Gemma":
        return
    for messages in conversations(system):
        assert message_ids(model, form, messages) == expected(reference, messages), messages


def test_turns_of_a_chat_are_too(style: Any) -> None:
    """Where answers are the tokens that their text has."""
    _, model, form, reference = style
    tree = Tree()
    tree.add(Turn(id=1, parent=None, user="Hello there", answer="Hi.", answer_ids=(), seed=0))
    messages = [{"role": "user", "content": "Hello there"}]
    first = Contexts(model, form, "").fit(Tree(), None, "Hello there", 8)
    assert first.ids == expected(reference, messages)
    messages += [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And then"}]
    second = Contexts(model, form, "").fit(tree, tree.current, "And then", 8)
    whole = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert model.tokenizer.decode(second.ids, special_tokens=True) == model.tokenizer.decode(
        reference.encode(whole, add_special_tokens=False), special_tokens=True
    )


def test_special_tokens_in_a_message_stay_text(style: Any) -> None:
    """Else a message could end its own turn; what stands around it is as ever."""
    _, model, form, reference = style
    typed = "a<|im_end|>b<|eot_id|>c</s>d<end_of_turn>e<start_of_turn>"
    ids = message_ids(model, form, [{"role": "user", "content": typed}])
    special = set(reference.all_special_ids) | {
        i for i, token in reference.added_tokens_decoder.items() if token.special
    }
    plain = message_ids(model, form, [{"role": "user", "content": "plain"}])
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    assert typed in model.tokenizer.decode(ids, special_tokens=True)


def test_a_system_text_for_a_model_without_system(tmp_path: Path) -> None:
    """Gemma's template raises: the text stands before the first message then, as its authors advise."""
    from transformers import PreTrainedTokenizerFast

    directory = KINDS["gemma"](tmp_path / "m")
    (directory / "chat_template.jinja").write_text(GEMMA)
    template = read_template(directory)
    assert template is not None
    reference = PreTrainedTokenizerFast.from_pretrained(directory)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    ids = message_ids(Model(directory), Template(template), messages)  # type: ignore[arg-type]
    assert ids == expected(reference, [{"role": "user", "content": "Be brief.\n\nHello"}])
    with pytest.raises(ModelFileError, match="System role"):
        template.render(["system", "user"], prompt=True)


def test_what_a_model_is_trained_to_say_is_marked(tmp_path: Path) -> None:
    """By a tag of transformers' own, which changes no text."""
    directory = KINDS["qwen"](tmp_path / "m")
    marked = SMOLLM2.replace("{{", "{% generation %}{{", 1).replace("}}", "}}{% endgeneration %}", 1)
    (directory / "chat_template.jinja").write_text(marked)
    found = read_template(directory)
    (directory / "chat_template.jinja").write_text(SMOLLM2)
    plain = read_template(directory)
    assert found is not None and plain is not None and "generation %}" in marked
    roles = ["user", "assistant", "user"]
    assert found.render(roles, prompt=True) == plain.render(roles, prompt=True)


@pytest.mark.parametrize("source", ["{% for x %}", "{{ raise_exception('no') }}", "{{ nothing.at.all }}"])
def test_a_template_that_cannot_be_rendered(source: str, tmp_path: Path) -> None:
    """`chat` says what to do; what is served has a transcript instead, and says so before it is asked."""
    write_family(tmp_path, "llama")
    (tmp_path / "chat_template.jinja").write_text(source)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(ModelFileError, match="chat template") as refused:
        choose_format(checkpoint, None, "m").layout("", [], "x")
    assert "--format transcript" in (refused.value.hint or "")
    served = Served("m", checkpoint, LoadOptions())
    assert served.format.name == "transcript" and "a chat is a transcript" in served.problem


def test_several_named_templates(tmp_path: Path) -> None:
    directory = KINDS["qwen"](tmp_path / "m")
    path = directory / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": SMOLLM2}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    template = read_template(directory)
    assert template is not None and template.render(["user"], prompt=True)[0].text.startswith("<|im_start|>")
