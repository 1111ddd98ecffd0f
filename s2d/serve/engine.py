"""The kinds of inference server: how each is started, and what it can be asked.

`TransformersEngine` is the embedded default: `transformers serve` of this same environment. `VllmEngine` starts vLLM,
from this or another interpreter. `RemoteEngine` uses a vLLM that somebody else keeps running.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from s2d.errors import Unavailable
from s2d.serve import tools
from s2d.serve.settings import ServeSettings

LOOPBACK = "127.0.0.1"
PLAIN_FIELDS = frozenset(
    {
        "messages",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "logit_bias",
        "tools",
        "chat_template_kwargs",
    }
)
#: What transformers' server takes with the model's generation config only.
GENERATION_FIELDS = frozenset({"top_k", "min_p", "repetition_penalty"})
VLLM_FIELDS = PLAIN_FIELDS | frozenset(
    {
        "n",
        "logprobs",
        "top_logprobs",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "top_k",
        "min_p",
        "response_format",
        "tool_choice",
        "parallel_tool_calls",
    }
)
#: Of a completion without chat.
PLAIN_TEXT_FIELDS = frozenset(
    {"prompt", "stream", "stream_options", "temperature", "top_p", "max_tokens", "stop", "seed", "logit_bias"}
)
VLLM_TEXT_FIELDS = (PLAIN_TEXT_FIELDS | VLLM_FIELDS | {"echo"}) - {
    *("messages", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls"),
    *("chat_template_kwargs", "top_logprobs"),
}
#: Students are local folders, so a server never needs the network; its own command looks for updates otherwise.
#: The safe path keeps what lies in the working folder from being imported.
ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


#: What transformers' server takes beside the weights: one process with torch. Measured: 0.35 GiB.
TRANSFORMERS_GIB = 0.5
#: The same of vLLM, beside its cache: three processes with torch. Measured: 0.48, 0.47 and 0.6 GiB.
VLLM_GIB = 1.75
#: vLLM's key-value cache on a CPU, which it fills at once.
CPU_CACHE_GIB = 1


@dataclass(frozen=True)
class Launch:
    """One server to start. `environment` is added to this process' own; `model` is what requests must carry.

    `memory_gib` is an estimate of the host memory that it takes: what its processes take before any model, the weights
    once, as they lie on disk, unless a GPU has them, and vLLM's cache on a CPU. `tests/contract/test_memory.py` holds
    it against what is taken. Not in it: the cache of transformers' server, which grows with the answer, and a GPU
    driver's own memory, which is not measured.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    cwd: Path
    port: int
    model: str
    health_path: str = "/health"
    memory_gib: float = 0.0

    @property
    def base_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


class Engine(Protocol):
    """What the forwarder must know of a kind of server."""

    @property
    def fields(self) -> frozenset[str]:
        """The chat request's fields that it honours; others are refused rather than silently without effect."""

    @property
    def text_fields(self) -> frozenset[str]:
        """The same of a completion without chat."""

    @property
    def fits_at_once(self) -> bool:
        """Whether `fit` takes no time to speak of, and may be called on an event loop."""

    @property
    def key(self) -> str | None:
        """The bearer token that it wants."""

    @property
    def keeps_stop(self) -> bool:
        """Whether its answers end with the stop sequence, which OpenAI's do not."""

    def fit(self, path: Path, body: dict[str, Any]) -> dict[str, Any]:
        """The request as this server understands it.

        Raises InvalidRequest (`context_length_exceeded`; `unsupported_parameter` for tools that it could not call).
        """


class LocalEngine(Engine, Protocol):
    """A kind of server that this process starts."""

    def launch(self, student_id: str, path: Path) -> Launch:
        """Raises Unavailable when the engine is not installed."""


@dataclass(frozen=True)
class TransformersEngine:
    """`transformers serve` in this environment: one request at a time, no torch in the process that asks."""

    fields = PLAIN_FIELDS | GENERATION_FIELDS
    text_fields = PLAIN_TEXT_FIELDS | GENERATION_FIELDS
    fits_at_once = False
    key = None
    keeps_stop = True

    def launch(self, student_id: str, path: Path) -> Launch:
        if importlib.util.find_spec("transformers") is None:
            raise Unavailable("no inference server is installed: pip install 's2d[train]', or set remote_url")
        port = free_port()
        # The folder is given as "." because this server reads "@" in a name as the start of a revision.
        command = (sys.executable, "-m", "transformers.cli.transformers", "serve", ".")
        options = ("--host", LOOPBACK, "--port", str(port))
        memory_gib = TRANSFORMERS_GIB + weights_gib(path)
        return Launch(command + options, ENVIRONMENT, path, port, model=".", memory_gib=memory_gib)

    def fit(self, path: Path, body: dict[str, Any]) -> dict[str, Any]:
        # Late, because tokenizers and jinja2 come with the server and are missing where the API alone is installed.
        from s2d.serve.embedded import fit

        tools.check(path, body, tools.TRANSFORMERS_FORMS)
        return fit(path, body)


@dataclass(frozen=True)
class VllmEngine:
    """vLLM's OpenAI server under `python`. `gpu_share` of a GPU's memory is for one server, ignored on CPU."""

    python: Path
    gpu_share: float

    fields = VLLM_FIELDS
    text_fields = VLLM_TEXT_FIELDS
    fits_at_once = True
    key = None
    keeps_stop = False

    def launch(self, student_id: str, path: Path) -> Launch:
        if not self.python.exists():
            raise Unavailable(f"vllm_python {self.python} does not exist: correct the setting")
        port = free_port()
        # The module rather than the `vllm` script, which fails on CPU builds.
        command = [str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(path)]
        command += ["--served-model-name", student_id, "--host", LOOPBACK, "--port", str(port)]
        if (form := tools.form_of(path)) is not None:
            # Also a call that is forced (`required`, or one by name) needs the parser.
            command += ["--enable-auto-tool-choice", "--tool-call-parser", form]
        environment, memory_gib = ENVIRONMENT, VLLM_GIB
        if has_gpu():
            command += ["--gpu-memory-utilization", f"{self.gpu_share:.2f}"]
        else:
            # Gigabytes for the key-value cache; unset, vLLM takes a large part of the machine's memory.
            environment = ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB)}
            memory_gib += weights_gib(path) + CPU_CACHE_GIB
        return Launch(tuple(command), environment, path.parent, port, model=student_id, memory_gib=memory_gib)

    def fit(self, path: Path, body: dict[str, Any]) -> dict[str, Any]:
        tools.check(path, body, tools.VLLM_FORMS)
        return body


@dataclass(frozen=True)
class RemoteEngine:
    """A vLLM at `url` that is started, watched and stopped by somebody else; `key` is its `--api-key`."""

    url: str
    key: str | None = None

    fields = VLLM_FIELDS
    text_fields = VLLM_TEXT_FIELDS
    fits_at_once = True
    keeps_stop = False

    def model_for(self, student_id: str, path: Path) -> str:
        """The name under which the remote server has this student. Raises Unavailable when it has it not."""
        try:
            headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
            reply = httpx.get(f"{self.url}/v1/models", headers=headers, timeout=10, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise Unavailable(
                f"the vLLM at {self.url} does not answer ({error}): start it or check remote_url"
            ) from error
        served = reply.json()["data"]
        for model in served:
            if model["id"] == student_id or model.get("root") == str(path):
                return str(model["id"])
        names = ", ".join(model["id"] for model in served) or "nothing"
        raise Unavailable(
            f"the vLLM at {self.url} serves {names}, not {student_id}: "
            f"start it with --model {path} --served-model-name {student_id}"
        )

    def fit(self, path: Path, body: dict[str, Any]) -> dict[str, Any]:
        return body


def choose(settings: ServeSettings) -> TransformersEngine | VllmEngine | RemoteEngine:
    """The engine that the settings ask for."""
    if settings.remote_url is not None:
        key = settings.remote_key.get_secret_value() if settings.remote_key else None
        return RemoteEngine(settings.remote_url.rstrip("/"), key)
    if settings.engine == "vllm" or settings.vllm_python is not None or (settings.engine == "auto" and has_vllm()):
        # vLLM takes its share at start, so the servers that may run at once have to divide it.
        return VllmEngine(settings.vllm_python or Path(sys.executable), gpu_share=0.9 / settings.max_servers)
    return TransformersEngine()


def weights_gib(path: Path) -> float:
    """What a student's weights take on disk, and so, about, in memory."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) / 2**30


def has_vllm() -> bool:
    spec = importlib.util.find_spec("vllm")
    # A folder that happens to be called vllm is found too, but has no origin.
    return spec is not None and spec.origin is not None


def has_gpu() -> bool:
    """Whether an accelerator's device file is there (NVIDIA, AMD, Windows' subsystem) and not hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
