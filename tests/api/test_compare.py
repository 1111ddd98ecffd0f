"""One question to every arm of a job: stand-in servers that say what their student's folder tells them to."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_testing import PLAN, assert_problem
from fastapi.testclient import TestClient

from api.app import create_app
from s2d.plan.document import Plan, read_plan
from s2d.services import arms
from s2d.services import compare as service
from s2d.services.context import Context
from s2d.settings import Settings
from s2d.store import plans, students
from s2d.store.tables import JobRow, LedgerRow

Job = dict[str, Any]
ARMS = ("base", "direct_grpo", "workflow")
#: A power so high that the verifier hangs on it until it is killed.
TOWER = r"\boxed{9^{9^{9^{9^{9}}}}}"
ENGINE = """#!{python}
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--model") + 1])
behaviour = json.loads((folder / "behaviour.json").read_text())
with (folder / "started").open("a") as file:
    file.write("x")
if behaviour.get("dies"):
    sys.exit("no weights to speak of")

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, {{}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        probe = body.get("max_tokens") == 1
        if not probe:
            with (folder / "asked.jsonl").open("a") as file:
                file.write(json.dumps(body) + "\\n")
            time.sleep(behaviour.get("seconds", 0))
        if behaviour.get("fails") and not probe:
            self.answer(500, {{"error": {{"message": "out of luck"}}}})
            return
        choice = {{"index": 0, "message": {{"role": "assistant", "content": behaviour["says"]}}}}
        choices = [{{**choice, "finish_reason": "stop"}}]
        usage = {{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
        self.answer(200, {{"id": "x", "object": "chat.completion", "created": 1, "choices": choices, "usage": usage}})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    program = tmp_path / "engine"
    program.write_text(ENGINE.format(python=sys.executable))
    program.chmod(0o700)
    return Settings(state_dir=tmp_path / "state", allow_hub=False, serve_engine="vllm", vllm_python=program)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        yield client


@pytest.fixture
def ctx(client: TestClient) -> Context:
    return client.app.state.context  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def job_body(client: TestClient, upload: Callable[..., httpx.Response]) -> dict[str, str]:
    """With a control, and problems of which the last has no answer."""
    rows = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(1, 101)]
    lines = [json.dumps(row) for row in [*rows, {"problem": "What  is love?"}]]
    file_id = upload("\n".join(lines).encode()).json()["id"]
    plan = client.post("/v1/plans", json=PLAN | {"training_file": file_id, "controls": ["direct_grpo"]})
    assert plan.status_code == 201, plan.text
    return {"plan": plan.json()["id"], "training_file": file_id}


def say(folder: Path, says: str = "", **more: Any) -> None:
    (folder / "behaviour.json").write_text(json.dumps({"says": says, **more}))


@pytest.fixture
def folders(ctx: Context, job: Job, tmp_path: Path) -> dict[str, Path]:
    """Where the students of the job's arms lie. As they are, the base guesses, and the others know 2 + 2."""
    found = {arm: tmp_path / "students" / arm for arm in ARMS}
    with ctx.db.begin() as session:
        for arm, folder in found.items():
            folder.mkdir(parents=True)
            say(folder, r"I guess \boxed{5}" if arm == "base" else r"So it is \boxed{4}")
            students.register(
                session, student_id=students.id_of(job["id"], arm), job_id=job["id"], path=str(folder), arm=arm
            )
    return found


def spend(ctx: Context, job: Job, label: str, role: str, *accounts: tuple[str, str]) -> None:
    with ctx.db.begin() as session:
        for arm, stage in accounts:
            session.add(LedgerRow(job_id=job["id"], label_id=label, arm=arm, stage=stage, role=role))


def plan_of(ctx: Context, job: Job) -> Plan:
    with ctx.db.read() as session:
        return read_plan(plans.get(session, job["plan"]).document)


def asked(folder: Path) -> list[dict[str, Any]]:
    path = folder / "asked.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ask(client: TestClient, job: Job, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/compare", json={"job": job["id"], **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def by_arm(compared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {arm["arm"]: arm for arm in compared["arms"]}


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_labeled_row_is_asked_as_the_evaluation_asks_it_and_graded(
    client: TestClient, ctx: Context, job: Job, folders: dict[str, Path]
) -> None:
    compared = ask(client, job, row=2)
    row = compared["row"]
    assert (row["line"], row["answer"], row["role"]) == (2, "4", None)
    assert compared["messages"] == question("What is 2 + 2?")
    assert [arm["arm"] for arm in compared["arms"]] == list(ARMS)
    rewards = {name: [answer["reward"] for answer in arm["answers"]] for name, arm in by_arm(compared).items()}
    assert rewards == {"base": [0.0], "direct_grpo": [1.0], "workflow": [1.0]}
    workflow = by_arm(compared)["workflow"]
    assert workflow["model"] == f"student-{job['id'].removeprefix('job_')}"
    assert workflow["answers"][0] == {
        "text": r"So it is \boxed{4}", "finish_reason": "stop", "reward": 1.0, "outcome": "correct"
    }  # fmt: skip
    assert workflow["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
    assert workflow["error"] is None
    assert workflow["seconds"] > 0
    plan = plan_of(ctx, job)
    drawn = {**plan.stage("evaluate").sampling.model_dump(), "max_tokens": plan.max_completion_tokens}
    for folder in folders.values():
        (body,) = asked(folder)
        assert body["messages"] == question("What is 2 + 2?")
        assert {name: body[name] for name in drawn} == drawn


@pytest.mark.usefixtures("folders")
def test_what_the_label_was_for_and_who_has_seen_it(client: TestClient, ctx: Context, job: Job) -> None:
    label = ask(client, job, row=2, arms=["base"])["row"]["id"]
    spend(ctx, job, label, "teacher_rl", ("workflow", "teacher_rl"), ("direct_grpo", "direct_grpo"))
    compared = ask(client, job, row=label)
    assert compared["row"]["role"] == "teacher_rl"
    seen = {name: arm["label_seen_by"] for name, arm in by_arm(compared).items()}
    assert seen == {"base": [], "direct_grpo": ["direct_grpo"], "workflow": ["teacher_rl"]}
    judged = ask(client, job, row=3, arms=["base"])["row"]["id"]
    spend(ctx, job, judged, "validation", ("workflow", "teacher_rollouts"))
    compared = ask(client, job, row=judged)
    assert compared["row"]["role"] == "validation"
    assert all(arm["label_seen_by"] == [] for arm in compared["arms"])


@pytest.mark.usefixtures("folders")
def test_messages_that_are_a_rows_prompt_are_that_row(client: TestClient, job: Job) -> None:
    same = ask(client, job, messages=question(" What is 2\u200b + \n 2? "), arms=["workflow"])
    assert (same["row"]["line"], same["arms"][0]["answers"][0]["reward"]) == (2, 1.0)
    told = [{"role": "system", "content": "Be brief."}, *question("What is 2 + 2?")]
    talk = [*question("Hello"), {"role": "assistant", "content": "Hi"}, *question("What is 2 + 2?")]
    for messages in (told, talk):
        other = ask(client, job, messages=messages, arms=["workflow"])
        assert other["row"] is None
        assert other["arms"][0]["answers"][0] | {"text": ""} == {
            "text": "", "finish_reason": "stop", "reward": None, "outcome": None
        }  # fmt: skip
    unlabeled = ask(client, job, messages=question("What is love?"), arms=["workflow"])
    assert (unlabeled["row"]["line"], unlabeled["row"]["answer"]) == (101, None)
    assert unlabeled["arms"][0]["answers"][0]["reward"] is None


def test_several_answers_each_with_a_seed_and_the_callers_sampling(
    client: TestClient, job: Job, folders: dict[str, Path]
) -> None:
    fields = {"n": 3, "seed": 2**63 - 2, "temperature": 0.3, "max_completion_tokens": 9, "stop": ["\n"]}
    compared = ask(client, job, row=2, arms=["workflow", "base"], **fields)
    assert [arm["arm"] for arm in compared["arms"]] == ["workflow", "base"]
    for arm in compared["arms"]:
        assert len(arm["answers"]) == 3
        assert arm["usage"] == {"prompt_tokens": 21, "completion_tokens": 9}
        bodies = asked(folders[arm["arm"]])
        assert sorted(body["seed"] for body in bodies) == [0, 2**63 - 2, 2**63 - 1]
        assert all("max_tokens" not in body or body["max_completion_tokens"] == 9 for body in bodies)
        assert all((body["temperature"], body["stop"], body.get("n", 1)) == (0.3, ["\n"], 1) for body in bodies)


def test_an_arm_that_fails_says_so_and_costs_the_others_nothing(
    client: TestClient, job: Job, folders: dict[str, Path]
) -> None:
    say(folders["base"], dies=True)
    say(folders["direct_grpo"], fails=True)
    arms = by_arm(ask(client, job, row=2))
    dead, failing, good = (arms[name] for name in ARMS)
    assert dead["error"]["code"] == "student_server_failed"
    assert "no weights to speak of" in dead["error"]["detail"]
    assert failing["error"].keys() == {"type", "title", "status", "detail", "code", "error"}
    assert (failing["error"]["status"], failing["error"]["code"]) == (502, "student_failed")
    assert (dead["answers"], dead["usage"], failing["answers"]) == ([], None, [])
    assert good["answers"][0]["reward"] == 1.0


def test_an_answer_that_hangs_its_verifier_gets_no_reward_and_holds_nobody_up(
    client: TestClient, job: Job, folders: dict[str, Path]
) -> None:
    say(folders["base"], TOWER)
    began = time.monotonic()
    arms = by_arm(ask(client, job, row=2))
    assert time.monotonic() - began < 30
    assert arms["base"]["answers"][0]["reward"] == 0.0
    assert arms["workflow"]["answers"][0]["reward"] == 1.0


def test_more_arms_than_servers_take_turns_and_those_that_run_come_first(
    client: TestClient, job: Job, folders: dict[str, Path]
) -> None:
    for _ in range(2):
        assert all(arm["error"] is None for arm in ask(client, job, row=2)["arms"])
    starts = sorted(len((folder / "started").read_text()) for folder in folders.values())
    assert starts == [1, 1, 2], "the second time only the one that had been pushed out"


@pytest.mark.parametrize(("patience_s", "code"), [(arms.PATIENCE_S, None), (0.0, "students_busy")])
def test_an_arm_waits_for_a_server_while_others_use_all(
    client: TestClient,
    job: Job,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    patience_s: float,
    code: str | None,
) -> None:
    monkeypatch.setattr("s2d.errors.Unavailable.retry_after_s", 0.1)
    monkeypatch.setattr(arms, "PATIENCE_S", patience_s)
    slow = ("base", "direct_grpo")
    for arm in slow:
        say(folders[arm], r"\boxed{5}", seconds=4)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, job, row=2, arms=slow)
        deadline = time.monotonic() + 20
        while not all(asked(folders[arm]) for arm in slow):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (third,) = ask(client, job, row=2, arms=["workflow"])["arms"]
        assert (third["error"] or {}).get("code") == code
        assert all(arm["error"] is None for arm in first.result()["arms"])


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"job": "job_nope"}, 404, "job_not_found", "job"),
        ({"row": 500}, 404, "row_not_found", "row"),
        ({"row": "0" * 32}, 404, "row_not_found", "row"),
        ({"row": 0}, 400, "invalid_request", None),
        ({"row": True}, 400, "invalid_request", None),
        ({"row": "x"}, 400, "invalid_request", None),
        ({"row": None}, 400, "invalid_request", None),
        ({"messages": [{"role": "user", "content": "1"}]}, 400, "invalid_request", None),
        ({"row": None, "messages": []}, 400, "invalid_request", "messages"),
        ({"arms": ["base", "replay"]}, 404, "arm_not_found", "arms"),
        ({"arms": []}, 400, "invalid_request", "arms"),
        ({"n": 9}, 400, "invalid_request", "n"),
        ({"temperature": 3}, 400, "invalid_request", "temperature"),
        ({"stream": True}, 400, "invalid_request", "stream"),
    ],
)
def test_bad_requests(
    client: TestClient, job: Job, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    body = {"job": job["id"], "row": 2, **change}
    problem = assert_problem(client.post("/v1/compare", json=body), status, code)
    assert param is None or problem["error"]["param"] == param


def test_a_job_without_students(client: TestClient, job: Job) -> None:
    problem = assert_problem(client.post("/v1/compare", json={"job": job["id"], "row": 2}), 404, "model_not_found")
    assert problem["error"]["param"] == "job"


@pytest.mark.usefixtures("folders")
def test_the_models_name_their_arms_and_the_newest_is_the_workflows(client: TestClient, job: Job) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert {model["arm"] for model in listed} == set(ARMS)
    assert (listed[0]["arm"], listed[0]["job"]) == ("workflow", job["id"])
    for model in listed:
        assert client.get(f"/v1/models/{model['id']}").json() == model


def test_another_tenants_job_is_not_there(client: TestClient, ctx: Context, job: Job, folders: dict[str, Path]) -> None:
    with ctx.db.begin() as session:
        row = session.get(JobRow, job["id"])
        assert row is not None
        row.tenant = "other"
    assert_problem(client.post("/v1/compare", json={"job": job["id"], "row": 2}), 404, "job_not_found")
    assert asked(folders["workflow"]) == []


def test_nobody_is_asked_who_has_left(remote: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = threading.Event()

    async def endless(*_: Any, **__: Any) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(service, "compare", endless)
    with pytest.raises(httpx.ReadTimeout):
        remote.post("/v1/compare", json={"job": "job_1", "row": 2}, timeout=1)
    assert cancelled.wait(5)
