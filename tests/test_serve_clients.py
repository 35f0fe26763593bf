"""The programs that people have, each in a virtual environment of its own, with our server.

They are fetched from the package index; where that cannot be reached the tests are skipped. `.ci/run` takes
the newest `openai` alone; ``pytest -m clients`` the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import call
from serving import KEY, Server, serving
from support import REPOSITORY, shared

PATIENCE_S = 900
KEPT = os.environ.get("GPT2CLI_TEST_CLIENTS")
"""A folder of environments, for whoever runs this often."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    with serving("-m", "tiny", "--api-key-file", keys, "--queue", "8", "--precision", "fp32") as running:
        yield running


def environment(folder: Path, *packages: str) -> Path:
    """The Python of a new virtual environment that has ``packages``."""
    folder = Path(KEPT) / "-".join(packages).replace("[", "_").replace("<", "_") if KEPT else folder / "venv"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *packages],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"{', '.join(packages)} cannot be installed: {done.stderr.strip()[-200:]}")
    return python


def run_script(python: Path, script: str, server: Server) -> str:
    """The output of one of our scripts that ends well."""
    done = subprocess.run(
        [python, REPOSITORY / "tests" / script, f"http://127.0.0.1:{server.port}", KEY],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "version",
    [pytest.param("openai", marks=pytest.mark.slow), pytest.param("openai<3", marks=pytest.mark.clients)],
)
def test_openai(server: Server, tmp_path: Path, version: str) -> None:
    """Completions, chat, streams, embeddings, errors, retries, timeouts: the newest, and 2.x."""
    found = run_script(environment(tmp_path, version), "client_openai.py", server).split()
    assert found[0] == "fine" and (found[1].startswith("2.") == ("<3" in version))
    server.ask("GET", "/health")


@pytest.mark.clients
def test_langchain(server: Server, tmp_path: Path) -> None:
    assert run_script(environment(tmp_path, "langchain-openai"), "client_langchain.py", server) == "fine\n"


@pytest.mark.clients
def test_llm(server: Server, tmp_path: Path) -> None:
    """The command `llm`, with the models that its file of OpenAI-compatible ones names."""
    python = environment(tmp_path, "llm")
    home = tmp_path / "llm"
    home.mkdir()
    base = f"http://127.0.0.1:{server.port}/v1"
    lines = []
    for name, completion in (("ours", "true"), ("ours-chat", "false")):
        lines.append(
            f"- model_id: {name}\n  model_name: tiny\n  api_base: {base}\n  completion: {completion}\n"
            "  api_key_name: ours\n"
        )
    (home / "extra-openai-models.yaml").write_text("".join(lines))
    (home / "keys.json").write_text(json.dumps({"ours": KEY}))

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            [python, "-m", "llm", *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env={**os.environ, "LLM_USER_PATH": str(home)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    arguments = ("Once upon a time", "-o", "seed", "7", "-o", "max_tokens", "12")
    outcome = call(
        *("generate", "-m", "tiny", "--precision", "fp32", "--json", "--seed", "7"),
        *("--max-new-tokens", "12", "Once upon a time"),
    )
    expected = outcome.document["choices"][0]["text"]
    assert ask("-m", "ours", *arguments).strip("\n") == expected.strip("\n")
    assert ask("-m", "ours", "--no-stream", *arguments).strip("\n") == expected.strip("\n")
    assert ask("-m", "ours-chat", *arguments).strip()


@pytest.mark.clients
def test_schemathesis(server: Server, tmp_path: Path) -> None:
    """Whatever our own schema allows, and what it does not: no answer is a 5xx."""
    python = environment(tmp_path, "schemathesis")
    done = subprocess.run(
        [
            *(python.with_name("schemathesis"), "run", f"http://127.0.0.1:{server.port}/openapi.json"),
            *("--checks", "not_a_server_error", "--max-examples", "60", "--seed", "1", "--no-color"),
            *("-H", f"Authorization: Bearer {KEY}", "--request-timeout", "60"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


LM_EVAL_TASK = """
task: little
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{target}}}}"
target_delimiter: ""
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.mark.clients
def test_lm_eval(server: Server, tmp_path: Path) -> None:
    """`local-completions` on last words of LAMBADA: the log-likelihoods are those of `gpt2cli score`."""
    python = environment(tmp_path, "lm-eval[api]", "transformers")
    lines = shared("texts", "lambada_test.jsonl").read_text("utf-8").splitlines()[:12]
    texts = [json.loads(line)["text"] for line in lines]
    pairs = [(text.rpartition(" ")[0], " " + text.rpartition(" ")[2]) for text in texts]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"context": c, "target": t}) + "\n" for c, t in pairs))
    (tmp_path / "little.yaml").write_text(LM_EVAL_TASK.format(data=data))
    builtin = REPOSITORY / "gpt2cli" / "builtin"
    model = (
        f"model=tiny,base_url=http://127.0.0.1:{server.port}/v1/completions,num_concurrent=4,max_length=512,"
        f"tokenizer_backend=huggingface,tokenizer={builtin},tokenized_requests=True"
    )
    done = subprocess.run(
        [
            *(python, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", model),
            *(
                "--tasks",
                "little",
                "--include_path",
                tmp_path,
                "--log_samples",
                "--output_path",
                tmp_path / "out",
            ),
            *("--batch_size", "4"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "OPENAI_API_KEY": KEY, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    samples = next((tmp_path / "out").rglob("samples_little_*.jsonl")).read_text("utf-8").splitlines()
    found = {}
    for line in samples:
        sample = json.loads(line)
        found[sample["doc"]["context"]] = float(sample["resps"][0][0][0])
    for context, target in pairs:
        whole, begin = (
            call("score", "-m", "tiny", "--precision", "fp32", "--json", text).document["total"]["nll"]
            for text in (context + target, context)
        )
        assert found[context] == pytest.approx(begin - whole, rel=1e-3, abs=1e-3)
