"""The hub goes away: a job whose files are here goes on, and what is known of a commit is not asked for again."""

from __future__ import annotations

import importlib
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from tiny import DEMO, labels, plan_for

from s2d.errors import InvalidPlan
from s2d.plan.document import Model
from s2d.plan.models import TOKENIZER_FILES, ModelPolicy, fetch_tokenizer, model_files, read_model
from s2d.plan.recheck import check_models_again
from s2d.runner.pipeline import failure

HUB = ModelPolicy()
COMMIT = "3f" * 20
#: httpx, or httpx2: whichever the hub's client is built on.
HTTP: Any = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])


def answer(status: int) -> HfHubHTTPError:
    request = HTTP.Request("HEAD", "https://hub.invalid")
    return HfHubHTTPError(f"{status} from the hub", response=HTTP.Response(status, request=request))


#: What `hf_hub_download` was seen to raise while the hub is away.
AWAY = {
    "nothing answers": LocalEntryNotFoundError("Please check your connection"),
    "a proxy without a way": HTTP.ProxyError("503 Service Unavailable"),
    "cut off in a file": HTTP.ReadError("connection reset"),
    "too slow": HTTP.ReadTimeout("timed out"),
    "xet": RuntimeError("Task error: error sending request for url"),
    "a socket": ConnectionResetError(104, "Connection reset by peer"),
    "down": answer(503),
    "too many requests": answer(429),
}


class Hub:
    """A hub with one model, and what was asked of it."""

    def __init__(self, cache: Path) -> None:
        self.asked: list[str] = []
        self.away: Exception | None = None
        self._repository = cache / "models--me--tiny"
        self._snapshot = self._repository / "snapshots" / COMMIT

    def download(self, _name: str, file: str, *, revision: str | None, local_files_only: bool) -> str:
        self.asked.append(file)
        if self.away is not None:
            raise self.away
        source = DEMO / "student" / file
        if not source.exists():
            note = self._repository / ".no_exist" / COMMIT / file
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
            raise EntryNotFoundError(file)
        self._snapshot.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(source, self._snapshot / file))

    def caches(self, *files: str) -> None:
        """These are on this machine already."""
        for file in files:
            self.download("me/tiny", file, revision=COMMIT, local_files_only=False)
        (self._repository / "refs").mkdir(parents=True, exist_ok=True)
        (self._repository / "refs" / "main").write_text(COMMIT)
        self.asked.clear()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Behind a proxy, so that nothing tells in advance that it is away."""
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy.invalid"})
    return hub


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Model]:
    planned = plan_for(labels(tmp_path / "labels.jsonl")).student

    def model(**changes: Any) -> Model:
        return planned.model_copy(update={"name": "me/tiny", "source": "hub", "revision": COMMIT, **changes})

    return model


def test_of_a_commit_only_what_is_not_known_is_asked_for(hub: Hub, make: Callable[..., Model]) -> None:
    hub.caches()  # the branch, and no file of it
    fetch_tokenizer(make(), HUB)
    assert hub.asked == ["config.json", *TOKENIZER_FILES]
    assert model_files(make()) is not None
    hub.asked.clear()
    fetch_tokenizer(make(), HUB)
    assert hub.asked == [], "neither files that are here nor files that the repository lacks"
    fetch_tokenizer(make(source="catalog", revision=None), HUB)
    assert hub.asked == ["config.json", *TOKENIZER_FILES], "a branch may have moved"


@pytest.mark.parametrize("trouble", AWAY.values(), ids=AWAY)
@pytest.mark.parametrize(("source", "revision"), [("hub", COMMIT), ("catalog", None)])
def test_a_hub_that_is_away_fails_no_model_whose_files_are_here(
    source: str,
    revision: str | None,
    trouble: Exception,
    hub: Hub,
    make: Callable[..., Model],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.caches("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    hub.away = trouble
    fetch_tokenizer(make(source=source, revision=revision), HUB)
    assert len(hub.asked) == 1, "one refusal is enough: each may take half a minute"
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert "going on with the files that are here" in line.getMessage()
    assert str(trouble) in line.getMessage()


@pytest.mark.parametrize("trouble", AWAY.values(), ids=AWAY)
def test_without_the_files_it_says_what_to_do(trouble: Exception, hub: Hub, make: Callable[..., Model]) -> None:
    hub.caches("config.json")
    hub.away = trouble
    with pytest.raises(InvalidPlan, match=r"cannot be reached.*: go online, or download the model") as caught:
        fetch_tokenizer(make(), HUB)
    assert failure(caught.value)["code"] == "model"
    with pytest.raises(InvalidPlan, match="cannot be reached"):
        read_model("me/other", HUB)


def test_what_the_hub_refuses_is_no_outage(hub: Hub, make: Callable[..., Model]) -> None:
    hub.caches("config.json", "tokenizer.json")
    hub.away = answer(403)
    with pytest.raises(InvalidPlan, match="does not give"):
        fetch_tokenizer(make(), HUB)


def test_a_job_starts_while_the_hub_is_down(hub: Hub, make: Callable[..., Model], tmp_path: Path) -> None:
    """As after a rolling restart, when every worker claims jobs that were running."""
    plan, mine = plan_for(labels(tmp_path / "rows.jsonl")), ModelPolicy(roots=(DEMO,))
    of_the_hub = plan.model_copy(update={"student": make()}).sealed()
    hub.caches(*(path.name for path in (DEMO / "student").iterdir()))
    hub.away = answer(503)
    check_models_again(of_the_hub, mine)
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(InvalidPlan, match="cannot be reached"):
        check_models_again(of_the_hub, mine)
