"""Choosing an engine, and what is settled before a request reaches transformers' own server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from s2d.errors import InvalidRequest, Unavailable
from s2d.serve import ServeSettings
from s2d.serve.embedded import fit
from s2d.serve.engine import RemoteEngine, TransformersEngine, VllmEngine, choose

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.content }}{{ eos_token }}{% endfor %}"
)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """One token per byte, one for the end of a message, a context of 32 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(["<end>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_config": {"eos_token": {"content": "<end>"}, "chat_template": TEMPLATE}}
    config |= {"config": {"max_position_embeddings": 32, "eos_token_id": 0}, "generation_config": {"top_p": 0.9}}
    for name, content in config.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def ask(content: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def test_max_tokens_is_cut_to_the_context(student: Path) -> None:
    assert fit(student, ask("x" * 30))["max_tokens"] == 1
    assert fit(student, ask("x" * 10, max_tokens=5))["max_tokens"] == 5
    cut = fit(student, ask("x" * 10, max_completion_tokens=500))
    assert cut["max_tokens"] == 21
    assert "max_completion_tokens" not in cut


@pytest.mark.parametrize("length", [31, 5000])
def test_a_prompt_over_the_context_is_refused(student: Path, length: int) -> None:
    with pytest.raises(InvalidRequest, match=f"32 tokens, but the messages take {length + 1}") as caught:
        fit(student, ask("x" * length))
    assert caught.value.code == "context_length_exceeded"


def test_sampling_follows_the_request_then_the_model_and_never_transformers_defaults(student: Path) -> None:
    generation = json.loads(fit(student, ask("x"))["generation_config"])
    assert generation == {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "eos_token_id": 0, "do_sample": True}
    assert json.loads(fit(student, ask("x", temperature=0))["generation_config"])["do_sample"] is False
    asked = fit(student, ask("x", top_k=20, min_p=0.1))
    assert json.loads(asked["generation_config"]) == {**generation, "top_k": 20, "min_p": 0.1}
    assert not asked.keys() & {"top_k", "min_p"}, "that server refuses fields that it does not know"
    assert json.loads(fit(student, ask("x", top_k=-1))["generation_config"])["top_k"] == 0


def test_what_the_chat_template_refuses_is_the_callers_error(student: Path) -> None:
    with pytest.raises(InvalidRequest, match="no tools") as caught:
        fit(student, {"messages": [{"role": "tool", "content": "x"}]})
    assert caught.value.param == "messages"


def test_the_engine_follows_the_settings(tmp_path: Path) -> None:
    def chosen(**settings: Any) -> object:
        return choose(ServeSettings(log_dir=tmp_path, **settings))

    assert chosen(engine="transformers") == TransformersEngine()
    assert chosen(remote_url="http://vllm:8000/") == RemoteEngine("http://vllm:8000")
    assert chosen(vllm_python="/opt/v/bin/python") == VllmEngine(Path("/opt/v/bin/python"), gpu_share=0.45)
    assert chosen(engine="vllm") == VllmEngine(Path(sys.executable), gpu_share=0.45)


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "remote"},
        {"engine": "vllm", "remote_url": "http://vllm:8000"},
        {"engine": "transformers", "vllm_python": "/opt/v/bin/python"},
        {"remote_url": "http://vllm:8000", "vllm_python": "/opt/v/bin/python"},
        {"engin": "vllm"},
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServeSettings(log_dir=tmp_path, **settings)


def test_vllm_is_private_and_offline_and_a_wrong_interpreter_is_named(tmp_path: Path) -> None:
    launch = VllmEngine(Path(sys.executable), 0.45).launch("s-1", tmp_path / "student")
    assert launch.model == "s-1"
    assert launch.command[launch.command.index("--host") + 1] == "127.0.0.1"
    assert launch.environment["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(Unavailable, match="/nowhere/python"):
        VllmEngine(Path("/nowhere/python"), 0.45).launch("s-1", tmp_path)


class Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        served = [{"id": "s-1"}, {"id": "other", "root": "/students/s-2"}]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": served}).encode())


def test_a_remote_server_is_asked_what_it_serves() -> None:
    with HTTPServer(("127.0.0.1", 0), Models) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = RemoteEngine(f"http://127.0.0.1:{server.server_port}")
        assert remote.model_for("s-1", Path("/students/s-1")) == "s-1"
        assert remote.model_for("s-2", Path("/students/s-2")) == "other"
        with pytest.raises(Unavailable, match="serves s-1, other, not s-3"):
            remote.model_for("s-3", Path("/students/s-3"))
        server.shutdown()
    with pytest.raises(Unavailable, match="does not answer"):
        remote.model_for("s-1", Path("/students/s-1"))


def test_the_room_imports_nothing_heavy() -> None:
    heavy = "torch transformers tokenizers fastapi sqlalchemy celery vllm"
    program = f"import s2d.serve, sys; print([n for n in '{heavy}'.split() if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
