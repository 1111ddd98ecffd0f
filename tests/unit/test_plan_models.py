"""Reading models: exact parameter counts, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plan_pair import config, policy, write, write_model

from s2d.errors import InvalidPlan, ModelRefused
from s2d.plan.architecture import KINDS, read_shape
from s2d.plan.catalog import CATALOG
from s2d.plan.document import Lora
from s2d.plan.memory import kv_bytes, lora_parameters
from s2d.plan.models import ModelPolicy, read_model

OFFLINE = ModelPolicy(allow_hub=False)
VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3 tied": config(48, 2, 4, 96),
    "qwen3 untied, grouped": config(64, 3, 8, 160, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False),
    "qwen3 with biases": config(48, 2, 4, 96, attention_bias=True),
    "qwen2": config(64, 2, 4, 128, model_type="qwen2", num_key_value_heads=2),
    "llama": config(64, 2, 4, 128, model_type="llama", tie_word_embeddings=False),
    "llama with biases": config(64, 2, 4, 128, model_type="llama", attention_bias=True, mlp_bias=True),
    "mistral": config(64, 2, 4, 128, model_type="mistral", num_key_value_heads=1),
    "olmo2": config(64, 2, 4, 128, model_type="olmo2", num_key_value_heads=2),
    "olmo2 with biases": config(64, 2, 4, 128, model_type="olmo2", attention_bias=True, tie_word_embeddings=False),
    "smollm3": config(64, 4, 4, 128, model_type="smollm3", num_key_value_heads=2),
    "smollm3 with biases": config(64, 4, 4, 128, model_type="smollm3", attention_bias=True, mlp_bias=True),
}
#: What a config.json may leave to the class's defaults.
OPTIONAL = ("num_key_value_heads", "head_dim", "tie_word_embeddings")
#: One model of the catalog for each shape: contexts and families change no parameter.
SHAPES = {json.dumps(e.config | {"max_position_embeddings": 4096}): name for name, e in CATALOG.items()}
#: Totals as the hub counts the published weights, tied embeddings once.
PUBLISHED = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Coder-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "allenai/OLMo-2-0425-1B": 1_484_916_736,
    "allenai/OLMo-2-1124-7B-Instruct": 7_298_617_344,
    "allenai/OLMo-2-1124-13B-Instruct": 13_716_198_400,
    "allenai/OLMo-2-0325-32B": 32_234_279_936,
}


def configured(settings: dict[str, Any]) -> Any:
    """The config class of transformers with the fields of a config.json."""
    from transformers import AutoConfig

    # The padding ids of some classes are beyond a small vocabulary.
    return AutoConfig.for_model(**settings, pad_token_id=0)


def counted(settings: dict[str, Any]) -> int:
    """Parameters of the module that transformers builds."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configured(settings))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_the_formula_counts_what_transformers_builds(settings: dict[str, Any]) -> None:
    assert read_shape(settings).parameters == counted(settings)


@pytest.mark.parametrize("model_type", KINDS)
def test_what_a_config_leaves_unsaid_is_what_transformers_takes(model_type: str) -> None:
    said = config(512, 4, 32, 128, model_type=model_type)
    for left in [(name,) for name in OPTIONAL] + [OPTIONAL]:
        settings = {name: value for name, value in said.items() if name not in left}
        assert read_shape(settings).parameters == counted(settings), left


@pytest.mark.parametrize("model_type", KINDS)
def test_caches_and_adapters_of_every_type_are_what_the_formulas_take(model_type: str, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = config(64, 4, 4, 128, model_type=model_type, num_key_value_heads=2)
    planned = read_model(str(write_model(tmp_path / "m", settings)), policy(tmp_path))
    model = AutoModelForCausalLM.from_config(configured(settings))
    cache = model(input_ids=torch.arange(10)[None], use_cache=True).past_key_values
    elements = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert elements * 4 == kv_bytes(planned, 1, 10, "float32")
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert trained == lora_parameters(planned, Lora(rank=8))


@pytest.mark.parametrize("name", SHAPES.values())
def test_catalog_rows_are_what_transformers_makes_of_them(name: str) -> None:
    settings = CATALOG[name].config
    built, shape = configured(settings), read_shape(settings)
    heads = settings["hidden_size"] // settings["num_attention_heads"]
    assert getattr(built, "head_dim", heads) == shape.head_dim
    assert built.num_key_value_heads == shape.kv_heads
    assert built.tie_word_embeddings == shape.tied_embeddings
    assert built.max_position_embeddings == shape.context
    assert shape.parameters == counted(settings)


def test_each_shape_of_the_catalog_has_its_published_size() -> None:
    models = {name: read_model(name, OFFLINE) for name in PUBLISHED}
    assert {name: model.parameters for name, model in models.items()} == PUBLISHED
    assert {read_model(name, OFFLINE).parameters for name in CATALOG} == set(PUBLISHED.values())


def test_a_hub_id_is_known_in_any_case() -> None:
    assert read_model("qwen/qwen3-8b", OFFLINE) == read_model("Qwen/Qwen3-8B", OFFLINE)


def rows_of_the_docs() -> list[str]:
    """A row for each family and width of the logits: the models in one row go together."""
    rows: dict[tuple[str, int], list[str]] = {}
    for name, entry in CATALOG.items():
        rows.setdefault((entry.family, entry.config["vocab_size"]), []).append(name)
    return [row_of_the_docs(family, width, names) for (family, width), names in rows.items()]


def row_of_the_docs(family: str, width: int, names: list[str]) -> str:
    organisation = names[0].split("/")[0]
    contexts = sorted({CATALOG[name].config["max_position_embeddings"] for name in names})
    bare = ", ".join(name.removeprefix(f"{organisation}/") for name in names)
    return f"| {family} | {organisation} | {bare} | {width:,} | {' or '.join(f'{one:,}' for one in contexts)} |"


def test_the_docs_list_the_catalog_as_it_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    table = text.partition("| family | organisation |")[2].partition("\n\n")[0].splitlines()[2:]
    assert table == rows_of_the_docs()


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
        (json.dumps(config(48, 2, 4, 96, num_hidden_layers=True)), "num_hidden_layers"),
        (json.dumps(config(48, 2, 4, 96, hidden_size=10**200)), "hidden_size"),
        (json.dumps(config(48, 2, 4, 96, head_dim=0)), "head_dim"),
        (json.dumps(config(48, 2, 4, 96, num_key_value_heads=3)), "cannot share"),
        (json.dumps(config(48, 2, 4, 96, quantization_config={"bits": 4})), "quantized"),
        (json.dumps(config(48, 2, 4, 96, model_type="qwen3_moe")), "experts"),
        (json.dumps(config(48, 2, 4, 96, model_type="gemma3")), "caches"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(tmp_path: Path, text: str, why: str) -> None:
    folder = write_model(tmp_path / "m", VARIANTS["llama"])
    write(folder, "config.json", text)
    with pytest.raises(InvalidPlan, match=why):
        read_model(str(folder), policy(tmp_path))


@pytest.mark.parametrize("name", ["folder", "pipe"])
def test_weights_that_are_no_file_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "m", VARIANTS["llama"])
    odd = folder / f"{name}.safetensors"
    odd.mkdir() if name == "folder" else os.mkfifo(odd)
    with pytest.raises(ModelRefused, match="no file"):
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
