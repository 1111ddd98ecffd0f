"""From a model's name to what the planner knows of it: a local folder, the catalog, or the hub.

Read are `config.json`, tokenizer files, and of the weights their index and how they begin. A local path resolves,
symbolic links included, under one of the allowed folders; weights are safetensors in the folder itself; a config that
wants its own code is refused. What a hub repository's weight files are is not known before the job downloads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pydantic import BaseModel, ConfigDict, Field

from s2d.errors import InvalidPlan, ModelRefused
from s2d.plan.architecture import read_shape
from s2d.plan.catalog import CATALOG, catalog_name
from s2d.plan.document import Model

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
_EVERY_FILE = ("config.json", "tokenizer_config.json", "generation_config.json")
#: Which file each weight is in; transformers loads whatever it names.
_INDEX = "model.safetensors.index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
#: HTTP statuses of a hub that may answer later.
_NOT_NOW = (408, 429, 500, 502, 503, 504)
_MAX_CONFIG_BYTES = 1 << 20
MAX_FILE_BYTES = 64 << 20
_log = logging.getLogger(__name__)
#: Weights are compared by this much of their beginning, middle and end.
_SAMPLE_BYTES = 64 << 10


class HubAway(InvalidPlan):
    """A file is not on this machine, and the hub cannot be asked for it now."""


class ModelPolicy(BaseModel):
    """Where models may come from. Without roots no local folder is allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    roots: tuple[Path, ...] = Field(default=(), description="Folders that local models must lie under.")
    allow_hub: bool = Field(default=True, description="May the planner ask the Hugging Face hub?")


def read_model(name: str, policy: ModelPolicy) -> Model:
    """What `name` is: a folder, a catalog entry or a hub repository; a local `Model.name` is the resolved path.

    Raises:
        ModelRefused: outside the allowed folders, without safetensors, or with its own code.
        InvalidPlan: not found, an unknown architecture, or the hub cannot be asked.
    """
    folder = local_folder(name, policy)
    if folder is not None:
        try:
            return _model(str(folder), _read_folder(folder, policy), "local")
        except OSError as err:
            raise InvalidPlan(f"{folder} cannot be read: {err.strerror}") from err
    if known := catalog_name(name):
        return _model(known, CATALOG[known].config, "catalog")
    if not _HUB_ID.fullmatch(name) or ".." in name:
        raise InvalidPlan(f"{name!r} is neither a local folder nor a hub id such as 'Qwen/Qwen3-1.7B'.")
    path = _hub_config(name, policy)
    # A cached file lies in .../snapshots/<commit>/config.json.
    return _model(name, _read_config(path), "hub", revision=path.parent.name)


def local_folder(name: str, policy: ModelPolicy) -> Path | None:
    """The resolved folder when `name` is a local path, else None.

    Raises:
        ModelRefused: the path is outside the allowed folders (said the same way whether or not it exists).
    """
    looks_local = name.startswith(("/", ".", "~")) or "\\" in name
    resolved = _resolved(name)
    if not looks_local and (resolved is None or not resolved.is_dir()):
        return None
    if resolved is None or not _allowed(resolved, policy):
        if not looks_local:
            return None  # a hub id that happens to be a folder here
        raise ModelRefused(f"{name!r} is outside the folders that models may be read from.")
    if not resolved.is_dir():
        raise InvalidPlan(f"There is no model folder {name!r}.")
    return resolved


def model_files(model: Model) -> Path | None:
    """The folder with the tokenizer files of `model`: its own, or the hub cache's; None where they are not here.

    A cached catalog model counts only with every file that the published one has: half a download (a tokenizer without
    its generation config) would look like a difference.
    """
    if model.source == "local":
        return Path(model.name)
    from huggingface_hub import try_to_load_from_cache  # kept out of the import of this room

    found = try_to_load_from_cache(model.name, "tokenizer.json", revision=model.revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    needed = _EVERY_FILE if model.source == "catalog" else ("config.json",)
    return folder if all((folder / name).is_file() for name in needed) else None


def weights_folder(model: Model) -> Path | None:
    """The folder with the safetensors of `model`: its own, or the hub cache's; None where they are not here."""
    if model.source == "local":
        folder = Path(model.name)
    else:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model.name, "config.json", revision=model.revision)
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    return folder if any(folder.glob("*.safetensors")) else None


def same_weights(one: Path, two: Path) -> bool:
    """Do two folders hold the same safetensors, as far as names, sizes and samples tell? Whole files take minutes."""
    marks = _marks(one)
    return bool(marks) and marks == _marks(two)


def _marks(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Size and samples of each weights file."""
    return {path.name: _mark(path) for path in folder.glob("*.safetensors")}


def _mark(path: Path) -> tuple[int, bytes]:
    size = path.stat().st_size
    samples = b""
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
            file.seek(start)
            samples += file.read(_SAMPLE_BYTES)
    return size, samples


def fetch_tokenizer(model: Model, policy: ModelPolicy) -> None:
    """Bring a hub model's config and tokenizer files into the cache; files that the repository lacks are left out.

    Raises:
        InvalidPlan: the hub may not or cannot be asked, and the files that are needed are not in the cache.
    """
    from huggingface_hub import constants

    unknown = [file for file in ("config.json", *TOKENIZER_FILES) if not _known(model, file)]
    if model_files(model) is not None and not (unknown and policy.allow_hub and _reachable(constants.ENDPOINT)):
        return
    try:
        _fetch(model, unknown, policy)
    except HubAway as err:
        if model_files(model) is None:
            raise
        # A job need not wait for the hub to come back: most repositories lack some of these files.
        _log.warning("%s: the hub is away, going on with the files that are here: %s", model.name, err.__cause__)


def _known(model: Model, file: str) -> bool:
    """Whether the cache has the file, or a note that the repository lacks it. Both hold for good: a commit never
    changes. A branch may."""
    from huggingface_hub import try_to_load_from_cache

    pinned = model.revision is not None
    return pinned and try_to_load_from_cache(model.name, file, revision=model.revision) is not None


def _fetch(model: Model, files: list[str], policy: ModelPolicy) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    for file in files:
        with contextlib.suppress(EntryNotFoundError):
            _download(model.name, file, policy, revision=model.revision)


def _resolved(name: str | Path) -> Path | None:
    """Where a path leads, symbolic links followed; None where it leads nowhere: a circle of links, the home of nobody,
    a name that no file can have."""
    try:
        path = Path(name).expanduser().resolve()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError):
        return None
    return path


def _allowed(path: Path | None, policy: ModelPolicy) -> bool:
    return path is not None and any(path.is_relative_to(root.expanduser().resolve()) for root in policy.roots)


def _read_folder(folder: Path, policy: ModelPolicy) -> dict[str, Any]:
    config = folder / "config.json"
    if not config.is_file():
        raise InvalidPlan(f"{folder} has no config.json: it is not a transformers model folder.")
    weights = list(folder.glob("*.safetensors"))
    for file in (config, *weights, folder / _INDEX, *(folder / name for name in TOKENIZER_FILES)):
        if not _allowed(_resolved(file), policy):
            raise ModelRefused(f"{file} links to a place outside the folders that models may be read from.")
    if not weights:
        raise ModelRefused(f"{folder} has no safetensors weights; pickled weights can run code and are not loaded.")
    for file in weights:
        _check_weights(file)
    _check_index(folder / _INDEX)
    if (folder / "adapter_config.json").exists():
        raise ModelRefused(
            f"{folder} holds an adapter beside the model, maybe a pickled one: merge it, or move it away."
        )
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        _refuse_code(tokenizer, read_object(tokenizer, MAX_FILE_BYTES))
    return _read_config(config)


def _check_weights(path: Path) -> None:
    """Raises ModelRefused for a file that is safetensors by its name alone: those begin with the length of a header."""
    if not path.is_file():
        raise ModelRefused(f"{path} is no file.")  # a pipe would be waited for
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin = file.read(1)
    if begin != b"{" or length > path.stat().st_size - 8:
        raise ModelRefused(f"{path} is no safetensors file, or not all of one.")


def _check_index(path: Path) -> None:
    """Raises ModelRefused for an index that takes weights from elsewhere, or from a file that is no safetensors."""
    if not path.is_file():
        return
    shards = read_object(path, MAX_FILE_BYTES).get("weight_map")
    if not isinstance(shards, dict):
        raise InvalidPlan(f"{path} has no weight_map.")
    for shard in set(map(str, shards.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelRefused(f"{path} names {shard!r} as weights: they must be safetensors files in the same folder.")


def _read_config(path: Path) -> dict[str, Any]:
    config = read_object(path)
    _refuse_code(path, config)
    if "transformers_weights" in config:
        raise ModelRefused(f"{path} names its own file of weights (`transformers_weights`): call it model.safetensors.")
    return config


def _refuse_code(path: Path, config: Mapping[str, Any]) -> None:
    if "auto_map" in config:
        raise ModelRefused(f"{path} asks for code of its own (`auto_map`), which is never run.")


def read_object(path: Path, limit: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InvalidPlan: too large, no JSON, or no object.
    """
    if path.stat().st_size > limit:
        raise InvalidPlan(f"{path} is too large for what it is: {limit:,} bytes are the most.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        raise InvalidPlan(f"{path} is not valid JSON: {err}") from err
    if not isinstance(value, dict):
        raise InvalidPlan(f"{path} does not hold a JSON object.")
    return value


def _model(name: str, config: Mapping[str, Any], source: Any, revision: str | None = None) -> Model:
    try:
        shape = read_shape(config)
    except InvalidPlan as err:
        raise InvalidPlan(f"{name}: {err.message}") from err
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return Model(
        name=name,
        revision=revision,
        model_type=config["model_type"],
        config_hash=hashlib.sha256(canonical).hexdigest(),
        source=source,
        **asdict(shape),
    )


def _hub_config(name: str, policy: ModelPolicy) -> Path:
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(_download(name, "config.json", policy))
    except EntryNotFoundError as err:
        raise InvalidPlan(f"{name!r} on the hub has no config.json: it is not a transformers model.") from err
    except HFValidationError as err:
        raise InvalidPlan(f"{name!r} is not a hub id: {err}") from err


def _download(name: str, file: str, policy: ModelPolicy, revision: str | None = None) -> str:
    """The cached path of a hub file; EntryNotFoundError where the repository has no such file."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    # httpx's or httpx2's, by the version of the hub's client.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # isort: skip

    if not policy.allow_hub:
        raise InvalidPlan(f"{name!r} would have to come from the hub, and asking the hub is switched off.")
    offline = not _reachable(constants.ENDPOINT)
    try:
        return hf_hub_download(name, file, revision=revision, local_files_only=offline)
    except LocalEntryNotFoundError as err:
        raise _away(name, file) from err
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as err:
        if err.response.status_code in _NOT_NOW:
            raise _away(name, file, err) from err
        raise InvalidPlan(f"The hub does not give {file} of {name!r}: {err}") from err
    # What the client lets through while the hub is away: a proxy's errors, a connection that breaks in the middle of a
    # file, and of hf_xet, which brings the larger ones, plain RuntimeErrors.
    except (HTTPError, ConnectionError, TimeoutError, RuntimeError) as err:
        raise _away(name, file, err) from err


def _away(name: str, file: str, why: Exception | None = None) -> HubAway:
    from huggingface_hub import constants

    reason = f" ({why})" if why is not None and str(why) else ""
    return HubAway(
        f"{file} of {name!r} is not on this machine and {constants.ENDPOINT} cannot be reached{reason}: go online, or "
        "download the model and give its folder."
    )


def _reachable(endpoint: str) -> bool:
    """Can the hub be asked? The client would otherwise retry for half a minute before it says no."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True  # a proxy resolves names itself
    try:
        socket.getaddrinfo(urlparse(endpoint).hostname, 443)
    except OSError:
        return False
    return True
