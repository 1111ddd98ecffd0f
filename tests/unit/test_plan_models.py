"""Reading models: exact parameter counts, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plan_pair import config, policy, write, write_model

from s2d.errors import InvalidPlan, ModelRefused
from s2d.plan.architecture import read_shape
from s2d.plan.catalog import CATALOG
from s2d.plan.models import ModelPolicy, read_model

VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3 tied": config(48, 2, 4, 96),
    "qwen3 untied, grouped": config(64, 3, 8, 160, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False),
    "qwen3 with biases": config(48, 2, 4, 96, attention_bias=True),
    "qwen2": config(64, 2, 4, 128, model_type="qwen2", num_key_value_heads=2),
    "llama": config(64, 2, 4, 128, model_type="llama", tie_word_embeddings=False),
    "llama with biases": config(64, 2, 4, 128, model_type="llama", attention_bias=True, mlp_bias=True),
    "mistral": config(64, 2, 4, 128, model_type="mistral", num_key_value_heads=1),
}


@pytest.mark.parametrize(
    "settings", [*VARIANTS.values(), *(e.config for e in CATALOG.values())], ids=[*VARIANTS, *CATALOG]
)
def test_the_formula_counts_what_transformers_builds(settings: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in settings.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings["model_type"], **fields))
    assert read_shape(settings).parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
    ],
)
def test_catalog_entries_have_the_published_size(name: str, published: int) -> None:
    assert read_model(name, ModelPolicy(allow_hub=False)).parameters == published


def test_a_local_folder_is_read_and_named_by_its_resolved_path(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", VARIANTS["qwen2"])
    (tmp_path / "link").symlink_to(folder)
    model = read_model(str(tmp_path / "link"), policy(tmp_path))
    assert (model.source, model.name) == ("local", str(folder.resolve()))
    assert (model.layers, model.kv_heads, model.context) == (2, 2, 1024)


def test_paths_outside_the_roots_are_refused_whether_or_not_they_exist(tmp_path: Path) -> None:
    write_model(tmp_path / "out" / "m", VARIANTS["llama"])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "m").symlink_to(tmp_path / "out" / "m")
    inside = policy(tmp_path / "in")
    messages = set()
    for name in (tmp_path / "out" / "m", tmp_path / "in" / "m", tmp_path / "in" / ".." / "out" / "nothing", "/etc"):
        with pytest.raises(ModelRefused) as caught:
            read_model(str(name), inside)
        messages.add(caught.value.message.split(" ", 1)[1])
    assert len(messages) == 1


def test_a_config_that_links_out_of_the_roots_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "in" / "m", VARIANTS["llama"])
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(ModelRefused, match="links"):
        read_model(str(folder), policy(tmp_path / "in"))


def test_pickled_weights_and_own_code_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", VARIANTS["llama"])
    write(folder, "config.json", VARIANTS["llama"] | {"auto_map": {"AutoModel": "x.Y"}})
    with pytest.raises(ModelRefused, match="auto_map"):
        read_model(str(folder), policy(tmp_path))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelRefused, match="safetensors"):
        read_model(str(folder), policy(tmp_path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        (json.dumps(config(48, 2, 4, 96, model_type="mamba")), "mamba"),
        (json.dumps(config(48, 2, 4, 96, vocab_size=None)), "vocab_size"),
        (json.dumps(config(48, 2, 4, 96, num_hidden_layers=-1)), "num_hidden_layers"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(tmp_path: Path, text: str, why: str) -> None:
    folder = write_model(tmp_path / "m", VARIANTS["llama"])
    write(folder, "config.json", text)
    with pytest.raises(InvalidPlan, match=why):
        read_model(str(folder), policy(tmp_path))


def test_unknown_names_are_refused_and_offline_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidPlan, match="switched off"):
        read_model("someone/some-model", ModelPolicy(allow_hub=False))
    with pytest.raises(InvalidPlan, match="neither"):
        read_model("a b c", ModelPolicy())
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    with pytest.raises(InvalidPlan, match="cannot be reached"):
        read_model("someone/some-model", ModelPolicy())


def test_planning_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, s2d.plan.service as s, s2d.plan.render\n"
        "from s2d.plan.hardware import detect\n"
        "from s2d.plan.models import ModelPolicy\n"
        "from s2d.plan.request import PlanRequest\n"
        "r = PlanRequest(teacher='Qwen/Qwen3-1.7B', student='Qwen/Qwen3-0.6B', labeled_budget=500,\n"
        "    hardware={'device': 'cuda', 'name': 'A100'})\n"
        "s.make_plan(r, None, detect(), ModelPolicy())\n"
        "sys.exit(', '.join({'torch', 'transformers'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
