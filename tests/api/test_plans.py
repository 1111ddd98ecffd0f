"""Plans over HTTP."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from api_testing import PLAN, assert_problem
from fastapi.testclient import TestClient

from s2d.plan.document import Plan
from s2d.plan.whatif import WhatIf
from s2d.services.context import Context
from s2d.store.database import db_now
from s2d.store.tables import PlanRow, PlanTenantRow

BUDGET = PLAN | {"labeled_budget": 1000}


def test_a_plan_is_made_kept_and_the_same_again(client: TestClient) -> None:
    made = client.post("/v1/plans", json=BUDGET)
    assert made.status_code == 201, made.text
    plan = Plan.model_validate_json(made.content)
    assert plan.sealed().id == plan.id
    assert made.headers["location"] == f"/v1/plans/{plan.id}"
    assert client.get(made.headers["location"]).json() == made.json()
    assert client.post("/v1/plans", json=BUDGET).json()["id"] == plan.id
    assert [item["id"] for item in client.get("/v1/plans").json()["data"]] == [plan.id]


def test_a_plan_for_a_file_counts_its_rows(
    client: TestClient, job_body: dict[str, str], upload: Callable[..., httpx.Response]
) -> None:
    data = client.get(f"/v1/plans/{job_body['plan']}").json()["data"]
    assert (data["file_id"], data["labeled"]) == (job_body["training_file"], 100)
    assert sum(data["labels"].values()) <= 100
    missing = client.post("/v1/plans", json=PLAN | {"training_file": "file_0"})
    assert assert_problem(missing, 404, "file_not_found")["error"]["param"] == "training_file"
    few = client.post("/v1/plans", json=PLAN | {"training_file": upload(b'{"problem":"1","answer":"1"}').json()["id"]})
    assert_problem(few, 400, "invalid_plan")


@pytest.mark.parametrize("how", [{"params": {"format": "markdown"}}, {"headers": {"accept": "text/markdown"}}])
def test_a_plan_as_a_page(client: TestClient, how: dict[str, dict[str, str]]) -> None:
    made = client.post("/v1/plans", json=BUDGET, **how)
    assert made.status_code == 201
    page = client.get(made.headers["location"], **how)
    for answer in (made, page):
        assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
        assert answer.text.startswith("#")
        assert "Qwen/Qwen3-8B" in answer.text
    as_json = client.get(made.headers["location"], params={"format": "json"}, headers={"accept": "text/markdown"})
    assert as_json.json()["schema_version"] == "s2d.plan/3"


def test_pages(client: TestClient) -> None:
    ids = [client.post("/v1/plans", json=BUDGET | {"seed": seed}).json()["id"] for seed in range(3)]
    first = client.get("/v1/plans", params={"limit": 2}).json()
    assert [item["id"] for item in first["data"]] == ids[:0:-1]
    assert first["has_more"]
    rest = client.get("/v1/plans", params={"limit": 2, "after": first["last_id"]}).json()
    assert [item["id"] for item in rest["data"]] == ids[:1]
    assert not rest["has_more"]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"student": "meta-llama/Llama-3.2-1B-Instruct"}, "incompatible_pair", None),
        ({"teacher": "/etc"}, "model_refused", "teacher"),
        ({"student": "nobody/nothing"}, "invalid_plan", "student"),
        ({"labeled_budget": 0}, "invalid_request", "labeled_budget"),
        ({"labeled_budget": 1}, "invalid_plan", None),
        ({"labeled_budget": None}, "invalid_request", None),
        ({"verifier": "astrology"}, "invalid_request", "verifier.name"),
        ({"hardware": {"device": "tpu"}}, "invalid_request", "hardware.device"),
        ({"max_completion_tokens": 10**9}, "invalid_plan", "max_completion_tokens"),
        ({"epochs": 3}, "invalid_request", "epochs"),
    ],
)
def test_requests_that_make_no_plan(client: TestClient, change: dict[str, object], code: str, param: str) -> None:
    body = assert_problem(client.post("/v1/plans", json=BUDGET | change), 400)
    assert (body["code"], body["error"]["param"]) == (code, param or body["error"]["param"])
    assert client.get("/v1/plans").json()["data"] == []


def test_a_plan_of_an_older_version_is_named_and_stands_in_nobodys_way(client: TestClient, ctx: Context) -> None:
    made = client.post("/v1/plans", json=BUDGET).json()
    with ctx.db.begin() as session:
        session.add(PlanRow(id="plan_old", document={"schema_version": "s2d.plan/1"}, created_at=db_now()))
        session.flush()
        session.add(PlanTenantRow(plan_id="plan_old", tenant="default"))
    assert [plan["id"] for plan in client.get("/v1/plans").json()["data"]] == [made["id"]]
    assert_problem(client.get("/v1/plans/plan_old"), 400, "plan_outdated")


WHAT_IF = {
    "plan": BUDGET,
    "vary": {"labeled_budget": [3, 500, 1000], "hardware": [{"name": "H100"}, {"name": "A100", "price_per_hour": 2}]},
}


def test_what_if_is_what_plans_would_say_and_keeps_none(client: TestClient) -> None:
    answer = client.post("/v1/what-if", json=WHAT_IF)
    assert answer.status_code == 200, answer.text
    table = WhatIf.model_validate_json(answer.content)
    assert table.varied == ("hardware", "labeled_budget")
    assert [row.feasible for row in table.rows] == [False, True, True, False, True, True]
    assert client.get("/v1/plans").json()["data"] == []
    priced, free = table.rows[-1], table.rows[2]
    plan = client.post("/v1/plans", json=BUDGET | {"hardware": {"name": "A100", "price_per_hour": 2}}).json()
    assert priced.outcome is not None
    assert priced.outcome.labels.model_dump() == plan["data"]["labels"]
    assert priced.outcome.cost is not None
    assert free.outcome is not None
    assert free.outcome.cost is None
    refused = table.rows[0].refusal
    body = assert_problem(client.post("/v1/plans", json=BUDGET | {"labeled_budget": 3}), 400)
    assert refused is not None
    assert (refused.code, refused.message, refused.param) == (body["code"], body["detail"], body["error"]["param"])


def test_what_if_as_a_page(client: TestClient) -> None:
    page = client.post("/v1/what-if", json=WHAT_IF, headers={"accept": "text/markdown"})
    assert page.headers["content-type"] == "text/markdown; charset=utf-8"
    assert page.text.startswith("| machine | labels | fits |")
    assert "| H100 | 1,000 | yes |" in page.text


def test_what_if_over_a_file(client: TestClient, job_body: dict[str, str]) -> None:
    plan = PLAN | {"training_file": job_body["training_file"]}
    table = client.post("/v1/what-if", json={"plan": plan, "vary": {"student_rl": [True, False]}}).json()
    assert [sum(row["outcome"]["labels"].values()) for row in table["rows"]] == [100, 100]
    missing = {"plan": PLAN | {"training_file": "file_0"}, "vary": {}}
    body = assert_problem(client.post("/v1/what-if", json=missing), 404, "file_not_found")
    assert body["error"]["param"] == "plan.training_file"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"vary": {"labeled_budget": [500, 0]}}, "invalid_request", "vary.labeled_budget.1"),
        ({"vary": {"epochs": [1]}}, "invalid_request", "vary.epochs"),
        ({"plan": PLAN}, "invalid_request", "plan"),
        ({"vary": {"labeled_budget": list(range(16, 2017))}}, "invalid_plan", "vary"),
    ],
)
def test_tables_that_cannot_be(client: TestClient, change: dict[str, object], code: str, param: str) -> None:
    body = assert_problem(client.post("/v1/what-if", json=WHAT_IF | change), 400)
    assert (body["code"], body["error"]["param"]) == (code, param)
