"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import create_engine, text

# Deadlines would make timed tests of all properties, and a busy machine fail them.
settings.register_profile("s2d", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("s2d")

CONTEXT = 1024
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# After -m and -k have left out what they do.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that may take longest come first, so that one process is not left with them at the end."""
    longest: dict[Path, float] = {}
    for item in items:
        limits = [mark.args[0] for mark in item.iter_markers("timeout")]
        longest[item.path] = max([longest.get(item.path, 0), *limits])
    items.sort(key=lambda item: -longest[item.path])


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The folder with GSM8K's train.jsonl and test.jsonl, found beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"
    if not (folder / "train.jsonl").exists():
        reason = "GSM8K is not at ../shared/data/gsm8k (train.jsonl and test.jsonl, from the repository root)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def random_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student small enough for every engine: random weights of a real architecture, one token per byte.

    The folder's name holds an "@", which transformers' server takes for a revision.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    path = tmp_path_factory.mktemp("students") / "tiny@1"
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"eos_token": special[1], "pad_token": special[2], "additional_special_tokens": special[:1]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)
    fast.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 2}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(vocab), **sizes, **heads, **ids)).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[str]:
    """A running PostgreSQL server as a URL with `{name}` for the database; always there in CI."""
    binaries = postgres.programs()
    if binaries is None:
        reason = "PostgreSQL's server programs are not installed (Debian: apt-get install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with postgres.server(binaries) as template:
        yield template


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that s2d promises to work with."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 's2d.db'}"
    template: str = request.getfixturevalue("postgres_template")
    name = f"t{uuid.uuid4().hex}"
    admin = create_engine(template.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return template.format(name=name)
