"""How conversations are laid out, and what a hostile chat template can do: nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from chats import CHATML, FORMATS, add_template, chat_model
from support import make_model

from gpt2cli.checkpoint import Checkpoint, open_checkpoint
from gpt2cli.errors import Gpt2cliError, ModelFileError, UsageError
from gpt2cli.repl.formats import Answer, Special, choose_format
from gpt2cli.repl.template import read_template
from gpt2cli.repl.tree import Tree, Turn

SAID = [("Hello", "Hi."), ("Who?", "A dog.")]
STORY = "Be brief. HelloHi. Who?A dog. And then"
EXPECTED = {
    "story": STORY,
    "raw": "Be brief.HelloHi.Who?A dog.And then",
    "transcript": "Be brief.\n\nUser: Hello\nAssistant:Hi.\nUser: Who?\nAssistant:A dog.\n"
    "User: And then\nAssistant:",
    "dialogpt": "Be brief.<256>Hello<256>Hi.<256>Who?<256>A dog.<256>And then<256>",
    "template": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
    "<|im_start|>assistant\nA dog.<|im_end|>\n<|im_start|>user\nAnd then<|im_end|>\n<|im_start|>assistant\n",
}


def turns() -> list[Turn]:
    tree = Tree()
    for number, (user, answer) in enumerate(SAID, 1):
        parent = number - 1 or None
        tree.add(Turn(id=number, parent=parent, user=user, answer=answer, answer_ids=[], seed=0))
    return tree.path()


def joined(parts: list[Any]) -> str:
    def one(part: Any) -> str:
        if isinstance(part, Answer):
            return part.turn.answer
        return part.text if isinstance(part, Special) else f"<{part}>" if isinstance(part, int) else str(part)

    return "".join(map(one, parts))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(chat_model(tmp_path_factory.mktemp("formats") / "m"))


@pytest.mark.parametrize("name", FORMATS)
def test_layout(checkpoint: Checkpoint, name: str) -> None:
    format = choose_format(checkpoint, name)
    assert format.name == name
    assert joined(format.layout("Be brief.", turns(), "And then")) == EXPECTED[name]


@pytest.mark.parametrize("name", FORMATS)
def test_a_layout_begins_as_the_one_before(checkpoint: Checkpoint, name: str) -> None:
    """Else the cache would be of no use."""
    format = choose_format(checkpoint, name)
    shorter = joined(format.layout("Be brief.", turns()[:1], "Who?")) + "A dog."
    assert joined(format.layout("Be brief.", turns(), "And then")).startswith(shorter)
    assert joined(format.layout("Be brief.", turns(), None)).startswith(shorter)
    assert joined(format.layout("", [], "Hello")) in EXPECTED[name]


@pytest.mark.parametrize(
    ("before", "text", "joint"),
    [("a", "b", " "), ("a ", "b", ""), ("a", " b", ""), ("a", ", b", ""), ("a\n", "b", ""), ("", "b", "")],
)
def test_a_story_is_joined_as_words_are(checkpoint: Checkpoint, before: str, text: str, joint: str) -> None:
    format = choose_format(checkpoint, "story")
    assert joined(format.layout(before, [], text)) == before + joint + text


def test_the_format_that_suits_the_model(tmp_path: Path) -> None:
    template = chat_model(tmp_path / "template")
    plain, nameless = make_model(tmp_path / "plain"), make_model(tmp_path / "x", tokenizer=None)
    dialogue = make_model(tmp_path / "DialoGPT-small")
    assert choose_format(open_checkpoint(template)).name == "template"
    assert choose_format(open_checkpoint(plain)).name == "story"
    assert choose_format(open_checkpoint(plain), None, "microsoft/DialoGPT-small").name == "dialogpt"
    assert choose_format(open_checkpoint(dialogue)).name == "dialogpt"
    assert choose_format(open_checkpoint(nameless), None, "dialogpt").name == "story", "it has no eos"
    for checkpoint, asked in [(plain, "template"), (nameless, "dialogpt"), (plain, "poem")]:
        with pytest.raises(UsageError):
            choose_format(open_checkpoint(checkpoint), asked)


def test_where_a_template_is_found(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    assert read_template(model) is None
    add_template(model, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}])
    assert read_template(model) is not None
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    found = read_template(model)
    assert found is not None
    assert [piece.text for piece in found.render(["user"], prompt=True)] == ["", "!"]


def test_special_tokens_typed_by_a_person_stay_text(tmp_path: Path) -> None:
    """Else a message could end its own turn and speak for the system."""
    from chats import conversation

    from gpt2cli.core.engine import Engine

    model = make_model(tmp_path / "m")
    add_template(model, "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    chat = conversation(Engine.load(model), "template")
    ids = chat.context("a<|endoftext|>b").ids
    assert ids.count(256) == 1 and len(ids) > 10


def test_white_space_that_a_template_strips(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    add_template(model, "{% for m in messages %}[ {{ m.content | trim }} ]{% endfor %}")
    format = choose_format(open_checkpoint(model))
    assert joined(format.layout("", [], "  a  ")) == "[ a ]"
    add_template(model, "{% for m in messages %}[ {{ m.content }} ]{% endfor %}")
    format = choose_format(open_checkpoint(model))
    assert joined(format.layout("", [], "  a  ")) == "[   a   ]"


GROW = "{% set ns = namespace(t=START) %}{% for i in range(60) %}{% set ns.t = MORE %}{% endfor %}"


def growing(start: str, more: str, then: str = "") -> str:
    """A template that doubles something sixty times."""
    return GROW.replace("START", start).replace("MORE", more) + then


HOSTILE = [
    "{{ ''.__class__.__mro__ }}{{ messages[0].content }}",
    "{{ messages[0].content }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__ }}{% set x = messages.append(1) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ 'a' * 100000000000 }}",
    "{{ [0] * 100000000000 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ '%1000000000000d' % 1 }}",
    "{{ '{:1000000000000}'.format(1) }}",
    "{{ 'a'.center(100000000000) }}",
    "{{ 'a'.ljust(100000000000) }}",
    "{{ 'a' | center(100000000000) }}",
    "{{ 'a\nb' | indent(100000000000) }}",
    "{{ '%1000000000000d' | format(1) }}",
    "{{ range(10000000000) | list }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'abcdefghijklmnopqrstuvwxyz' }}{% endfor %}",
    growing("'ab'", "ns.t + ns.t"),
    growing("'ab'", "ns.t ~ ns.t"),
    growing("['ab']", "[ns.t | join, ns.t | join]"),
    growing("'ab'", "ns.t | replace('a', ns.t)"),
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ raise_exception('no \x1b[31m') }}",
    "{{ undefined_function() }}",
    "{% for %}",
    "{{ messages",
    "nothing of what was said",
    "{{ messages[0].content }}{{ messages[0].content }}",
    "{{ messages[0].content | upper | replace('A', 'B') | length }}",
    "{{ lipsum(n=1000000) }}",
    "{{ ('x' * 1000000) | wordwrap(1) }}",
    "{{ ('x' * 1000) | batch(10000000000, 'x') | list }}",
    "{{ 'x' | slice(100000000) | list }}",
    growing("['ab']", "[ns.t, ns.t]", "{{ ns.t }}"),
    growing("['ab']", "[ns.t, ns.t]", "{{ ns.t | tojson }}"),
    growing("'ab'", "ns.t.replace('a', ns.t)"),
    growing("'ab'", "ns.t.join([ns.t, ns.t])"),
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_is_refused_quickly(tmp_path: Path, source: str) -> None:
    """It is a program in a model's file: it may not read, run, fill the memory or take for ever."""
    model = make_model(tmp_path / "m")
    add_template(model, source)
    started = time.monotonic()
    with pytest.raises(Gpt2cliError) as caught:
        choose_format(open_checkpoint(model)).layout("", [], "hello")
    assert isinstance(caught.value, ModelFileError)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 20


def test_what_real_templates_use_works(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    add_template(
        model,
        "{%- set ns = namespace(system='') -%}{%- for m in messages if m['role'] == 'system' -%}"
        "{%- set ns.system = m['content'] -%}{%- endfor -%}{{ bos_token }}{{ ns.system }}\n"
        "{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ '<|' + m['role'] | upper ~ '|>' }}{{ m['content'].split('</think>')[-1].strip() }}"
        "{{ loop.last and '' or ('a-b'.replace('-', '+') | replace('+', '')) }}{{ ['x', 'y'] | join('') }}"
        "{% if not loop.last %}{{ '\n' * 2 }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt is defined and add_generation_prompt %}<|ASSISTANT|>{% endif %}",
        bos_token={"content": "<s>"},
    )
    format = choose_format(open_checkpoint(model))
    assert joined(format.layout("S", turns()[:1], "Hm")) == (
        "<s>S<|USER|>Helloabxy\n\n<|ASSISTANT|>Hi.abxy\n\n<|USER|>Hmabxy<|ASSISTANT|>"
    )


@pytest.mark.parametrize("content", ["[]", '{"chat_template": 5}', "{", '{"chat_template": [{"name": 3}]}'])
def test_damaged_template_files(tmp_path: Path, content: str) -> None:
    model = make_model(tmp_path / "m")
    (model / "tokenizer_config.json").write_text(content)
    try:
        format = choose_format(open_checkpoint(model))
    except ModelFileError:
        return
    assert format.name == "story"
