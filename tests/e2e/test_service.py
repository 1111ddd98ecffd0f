"""The main job through HTTP, Celery and a real Redis server, with a worker that is killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from processes_testing import descendants
from service_testing import Client, start
from tiny import SHORT, labels

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with start(tmp_path_factory.mktemp("service")) as service:
        yield Client(service)


@pytest.fixture(scope="module")
def file_id(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    return client.upload(labels(tmp_path_factory.mktemp("upload") / "labels.jsonl"))


def run_job_with_a_killed_worker(client: Client, file_id: str) -> tuple[str, dict[str, Any]]:
    # Long enough to be still in this stage when the third step is seen.
    stages = {**SHORT["stages"], "teacher_rl": {**SHORT["stages"]["teacher_rl"], "steps": 20}}
    job = client.start(client.plan(file_id, stages=stages), file_id)
    # A step is told before it is saved: only the third says that the checkpoint of the second is whole.
    client.wait_for_step(job, "teacher_rl", 3)
    workers = descendants("celery", "worker.celery_app")
    trainers = descendants("s2d.stages", job)
    assert workers
    assert trainers
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(trainers, timeout=15)
    assert not alive, "the orphan of a killed supervisor must end itself"
    return job, client.wait(job, "succeeded")


@pytest.fixture(scope="module")
def finished(client: Client, file_id: str) -> tuple[str, dict[str, Any]]:
    return run_job_with_a_killed_worker(client, file_id)


def check_events(events: list[dict[str, Any]]) -> None:
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    states = [event["data"]["state"] for event in events if event["type"] == "state"]
    assert states == ["queued", "running", "queued", "running", "succeeded"]
    resumed = [event for event in events if event["message"].startswith("resuming from checkpoint-")]
    assert [event["stage"] for event in resumed] == ["teacher_rl"]


def test_a_job_whose_worker_is_killed_is_resumed_and_succeeds(client: Client, finished: tuple[str, Any]) -> None:
    job, shown = finished
    assert shown["attempt"] == 2
    assert {stage["kind"]: stage["state"] for stage in shown["stages"]} == dict.fromkeys(
        ("teacher_rl", "teacher_rollouts", "warmup", "opd", "student_rl", "direct_grpo", "evaluate"), "succeeded"
    )
    check_events(client.events(job))


def test_the_event_stream_replays_from_the_last_event_id(client: Client, finished: tuple[str, Any]) -> None:
    job, _ = finished
    total = len(client.events(job))
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(total - 3)}
    with client.http.stream("GET", f"/jobs/{job}/events", headers=headers) as stream:
        lines = list(stream.iter_lines())
    assert [line.removeprefix("id: ") for line in lines if line.startswith("id: ")] == [
        str(number) for number in range(total - 2, total + 1)
    ]
    assert "event: done" in lines


def test_the_report_is_served(client: Client, finished: tuple[str, Any]) -> None:
    job, _ = finished
    report = client.http.get(f"/jobs/{job}/report").json()
    assert {arm["model"] for arm in report["arms"]} >= {"base_teacher", "rl_teacher", "rl_student", "direct_grpo"}
    assert client.http.get(f"/jobs/{job}/report", params={"format": "markdown"}).text.startswith("# s2d report")


def test_the_student_answers_a_stock_openai_client(client: Client, finished: tuple[str, Any]) -> None:
    _, shown = finished
    stock = openai.OpenAI(
        base_url=f"{client.service.url}/v1", api_key=client.key, _strict_response_validation=True, max_retries=0
    )
    assert shown["student"] in [model.id for model in stock.models.list()]
    question = [{"role": "user", "content": "4*9+3*0*3*9="}]
    whole = stock.chat.completions.create(model=shown["student"], messages=question, max_tokens=24, temperature=0)  # type: ignore[arg-type]
    assert whole.model == shown["student"]
    assert whole.choices[0].message.content
    stream = stock.chat.completions.create(
        model=shown["student"],
        messages=question,
        max_tokens=24,
        temperature=0,
        stream=True,  # type: ignore[arg-type]
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content


def test_labels_are_in_the_ledger_once(client: Client, finished: tuple[str, Any]) -> None:
    from s2d.store import ledger
    from s2d.store.database import Database

    job, _ = finished
    with Database(client.service.settings.database).read() as session:
        spent = ledger.spent(session, job)
    assert {one.role: one.labels for one in spent if one.arm == "workflow"} == SHORT["labels"]
    assert {one.stage for one in spent if one.arm == "direct_grpo"} == {"direct_grpo"}
    report = client.http.get(f"/jobs/{job}/report").json()
    assert sorted(map(tuple, (entry.values() for entry in report["ledger"]))) == sorted(map(tuple, spent))


def test_cancel_ends_the_stage_and_keeps_its_checkpoint(client: Client, file_id: str) -> None:
    stages = {**SHORT["stages"], "teacher_rl": {**SHORT["stages"]["teacher_rl"], "steps": 500}}
    job = client.start(client.plan(file_id, stages=stages), file_id)
    client.wait_for_step(job, "teacher_rl", 3)
    trainers = descendants("s2d.stages", job)
    assert trainers
    answer = client.http.post(f"/jobs/{job}/cancel")
    assert answer.status_code == 202
    assert answer.json()["state"] in ("cancelling", "cancelled")
    client.wait(job, "cancelled")
    assert not psutil.wait_procs(trainers, timeout=1)[1]
    folder = client.service.settings.job_dir(job) / "stages" / "teacher_rl" / "checkpoints"
    assert list(folder.glob("checkpoint-*/manifest.json"))
    assert client.http.post(f"/jobs/{job}/cancel").json()["state"] == "cancelled"


def test_a_job_is_paused_resumed_cancelled_and_resumed_where_it_was(client: Client, file_id: str) -> None:
    stages = {**SHORT["stages"], "teacher_rl": {**SHORT["stages"]["teacher_rl"], "steps": 500, "save_every": 100}}
    job = client.start(client.plan(file_id, stages=stages), file_id)
    reached = 0
    for ask, end in (("pause", "paused"), ("cancel", "cancelled")):
        client.wait_for_step(job, "teacher_rl", reached + 3)
        assert client.http.post(f"/jobs/{job}/{ask}").status_code == 202
        client.wait(job, end)
        assert descendants("s2d.stages", job) == []
        before, reached = reached, newest_checkpoint(client, job)
        assert reached > before
        assert client.http.post(f"/jobs/{job}/resume").status_code == 202
    client.wait_for_step(job, "teacher_rl", reached + 1)
    events = client.http.get(f"/jobs/{job}/events", params={"limit": 1000}).json()["data"]
    steps = [event["step"] for event in events if event["type"] == "metrics"]
    assert steps == list(range(1, len(steps) + 1)), "no step is lost or made twice"
    client.http.post(f"/jobs/{job}/cancel")
    client.wait(job, "cancelled")


def newest_checkpoint(client: Client, job: str) -> int:
    folder = client.service.settings.job_dir(job) / "stages" / "teacher_rl" / "checkpoints"
    return max(int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoint-*/manifest.json"))


def test_a_mismatched_pair_is_refused_when_planning(client: Client, file_id: str) -> None:
    other = client.models / "other"
    shutil.copytree(client.models / "student", other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": config["pad_token"]}))
    body = {**SHORT, "teacher": str(client.models / "teacher"), "student": str(other), "training_file": file_id}
    answer = client.http.post("/plans", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "incompatible_pair"
    assert "eos" in answer.json()["error"]["message"].lower()


def test_human_written_problems_are_uploaded_and_planned(client: Client, gsm8k: Path) -> None:
    upload = client.upload(gsm8k / "train.jsonl")
    report = client.http.get(f"/files/{upload}").json()["report"]
    assert (report["labeled"], report["unlabeled"], report["rejected"]) == (7473, 0, 0)
    plan = client.http.get(f"/plans/{client.plan(upload)}").json()
    assert plan["data"]["labeled"] == 7473
    assert plan["data"]["labels"] == SHORT["labels"]


def test_bad_uploads_and_strangers_are_refused_in_one_shape(client: Client) -> None:
    bad = client.http.post(
        "/files", files={"file": ("a.csv", b"problem,answer\n1+1,2\n")}, data={"purpose": "fine-tune"}
    )
    stranger = httpx.get(f"{client.service.url}/v1/jobs", trust_env=False)
    assert (bad.status_code, stranger.status_code) == (400, 401)
    for answer in (bad, stranger):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert answer.headers["x-request-id"]


@pytest.mark.slow
def test_the_same_on_postgresql(postgres_template: str, tmp_path: Path) -> None:
    with start(tmp_path, database_url=postgres_template.format(name="postgres")) as service:
        client = Client(service)
        job, shown = run_job_with_a_killed_worker(client, client.upload(labels(tmp_path / "labels.jsonl")))
        assert shown["student"]
        check_events(client.events(job))


def test_nothing_is_left_running(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with start(tmp_path):
        started = set(psutil.Process().children(recursive=True)) - before
        assert len(started) >= 3, "Redis, API and worker"
    assert not psutil.wait_procs(started, timeout=5)[1]
