"""Keys: made and revoked over HTTP, each with its scopes, its rate, and its tenant's things only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_testing import PLAN, assert_problem, every_operation, jsonl
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.access import scopes_for
from s2d.services.context import Context, first_key
from s2d.settings import Settings
from s2d.store import students
from s2d.store.keys import SCOPES

MakeKey = Callable[..., dict[str, Any]]


@pytest.fixture
def make_key(client: TestClient) -> MakeKey:
    def make(*scopes: str, **fields: Any) -> dict[str, Any]:
        made = client.post("/v1/keys", json={"name": "a key", "scopes": list(scopes), **fields})
        assert made.status_code == 201, made.text
        return made.json()  # type: ignore[no-any-return]

    return make


def with_key(key: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {key['secret']}"}


def test_a_key_is_shown_once_listed_and_revoked(client: TestClient, make_key: MakeKey, settings: Settings) -> None:
    key = make_key("infer", "read", tenant="team-a", requests_per_min=60)
    assert (key["scopes"], key["tenant"], key["requests_per_min"]) == (["infer", "read"], "team-a", 60)
    assert client.get("/v1/jobs", headers=with_key(key)).status_code == 200
    listed = client.get("/v1/keys").json()
    assert [entry["name"] for entry in listed["data"]] == ["a key", "first"]
    assert key["secret"] not in client.get("/v1/keys").text
    assert not any(key["secret"].encode() in path.read_bytes() for path in settings.state_dir.glob("s2d.db*"))
    revoked = client.delete(f"/v1/keys/{key['id']}").json()
    assert revoked["revoked_at"] is not None
    assert client.delete(f"/v1/keys/{key['id']}").json() == revoked, "again changes nothing"
    assert_problem(client.get("/v1/jobs", headers=with_key(key)), 401, "invalid_api_key")
    assert_problem(client.delete("/v1/keys/key_none"), 404, "key_not_found")


def test_pages_of_keys(client: TestClient, make_key: MakeKey) -> None:
    made = [make_key("read")["id"] for _ in range(3)]
    first = client.get("/v1/keys", params={"limit": 2}).json()
    rest = client.get("/v1/keys", params={"limit": 2, "after": first["last_id"]}).json()
    assert [key["id"] for key in first["data"] + rest["data"]][:3] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)


@pytest.mark.parametrize(
    "change",
    [{"scopes": []}, {"scopes": ["root"]}, {"tenant": "A team"}, {"tenant": "a" * 41}, {"name": ""},
     {"requests_per_min": 0}, {"secret": "mine"}],
)  # fmt: skip
def test_a_key_that_makes_no_sense_is_not_made(client: TestClient, change: dict[str, Any]) -> None:
    assert_problem(client.post("/v1/keys", json={"name": "a", "scopes": ["read"], **change}), 400)
    assert len(client.get("/v1/keys").json()["data"]) == 1


def test_a_key_cannot_revoke_itself(client: TestClient) -> None:
    (own,) = client.get("/v1/keys").json()["data"]
    assert_problem(client.delete(f"/v1/keys/{own['id']}"), 409, "own_key")


def test_the_key_file_always_opens(client: TestClient, ctx: Context, make_key: MakeKey, settings: Settings) -> None:
    """An operator who revokes the first key and then loses the other one finds a new one after the next start."""
    (own,) = client.get("/v1/keys").json()["data"]
    assert client.delete(f"/v1/keys/{own['id']}", headers=with_key(make_key("admin"))).status_code == 200
    before = settings.key_file.read_text()
    secret = first_key(ctx)
    assert secret != before.strip()
    assert first_key(ctx) == settings.key_file.read_text().strip() == secret
    assert settings.key_file.stat().st_mode & 0o077 == 0
    assert client.get("/v1/keys", headers={"authorization": f"Bearer {secret}"}).status_code == 200


def test_each_scope_opens_what_it_names_and_nothing_else(app: FastAPI, client: TestClient, make_key: MakeKey) -> None:
    keys = {scope: make_key(scope) for scope in SCOPES}
    opens = {
        "admin": {"admin", "train", "infer", "read"},
        "train": {"train", "read"},
        "infer": {"infer"},
        "read": {"read"},
    }
    for method, path in every_operation(app):
        if path == "/healthz":
            continue
        enough = scopes_for(method, path)
        for scope, key in keys.items():
            status = client.request(method, path, headers=with_key(key)).status_code
            assert (status == 403) != bool(opens[scope] & enough), (scope, method, path, status)
            assert status != 401


def test_which_scope_is_needed() -> None:
    """Written out, so that a change of the rules shows."""
    assert scopes_for("POST", "/v1/keys") == scopes_for("GET", "/v1/keys") == scopes_for("GET", "/metrics") == {"admin"}
    assert scopes_for("POST", "/v1/chat/completions") == scopes_for("POST", "/v1/completions") == {"infer"}
    assert scopes_for("GET", "/v1/models") == {"read", "infer"}
    for path in ("/v1/files", "/v1/plans", "/v1/jobs", "/v1/jobs/x/cancel", "/v1/fine_tuning/jobs", "/v1/compare"):
        assert scopes_for("POST", path) == {"train"}
        assert scopes_for("GET", path) == {"read"}
    assert scopes_for("DELETE", "/v1/files/x") == scopes_for("DELETE", "/v1/models/x") == {"train"}


def test_a_refusal_names_the_scope(client: TestClient, make_key: MakeKey) -> None:
    refused = assert_problem(client.post("/v1/plans", headers=with_key(make_key("read"))), 403, "insufficient_scope")
    assert "scope train" in refused["detail"]
    assert refused["error"]["type"] == "permission_error"


def test_a_key_over_its_rate_is_told_when_to_come_again(client: TestClient, make_key: MakeKey) -> None:
    key = make_key("read", requests_per_min=2)
    answers = [client.get("/v1/jobs", headers=with_key(key)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert_problem(answers[-1], 429, "rate_limited")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
    assert client.get("/v1/jobs").status_code == 200, "another key is not held up"


# --- tenants --------------------------------------------------------------------------------------------------------


def test_a_tenants_key_against_every_id_of_another_is_all_404(
    app: FastAPI, client: TestClient, ctx: Context, make_key: MakeKey, tmp_path: Path
) -> None:
    """And the answer is the same, but for the id, as for one that there never was."""
    theirs = of_tenant(client, ctx, with_key(make_key("train", "infer", tenant="theirs")), tmp_path)
    mine = with_key(make_key("train", "infer", tenant="mine"))
    asked = 0
    for method, path in every_path(app):
        for kind, ident in theirs.items():
            if f"{{{kind}}}" not in path:
                continue
            got = send(client, method, path.replace(f"{{{kind}}}", ident), mine)
            never = send(client, method, path.replace(f"{{{kind}}}", f"{kind}_none"), mine)
            assert got.status_code == never.status_code == 404, (method, path, got.text, never.text)
            assert got.json()["detail"].replace(ident, "") == never.json()["detail"].replace(f"{kind}_none", "")
            asked += 1
    assert asked > 12
    for path in ("/v1/files", "/v1/plans", "/v1/jobs", "/v1/models"):
        assert client.get(path, headers=mine).json()["data"] == []
    for path, kind in (("/v1/files", "file_id"), ("/v1/plans", "plan_id"), ("/v1/jobs", "job_id")):
        assert_problem(client.get(path, headers=mine, params={"after": theirs[kind]}), 400, "invalid_cursor")


def test_what_is_anothers_cannot_be_named_in_a_body(
    client: TestClient, ctx: Context, make_key: MakeKey, tmp_path: Path
) -> None:
    their_key = with_key(make_key("train", tenant="theirs"))
    theirs = of_tenant(client, ctx, their_key, tmp_path)
    mine = with_key(make_key("train", "infer", tenant="mine"))
    own = client.post("/v1/files", files={"file": ("a", jsonl(100))}, headers=mine).json()["id"]
    bodies = [
        ("/v1/plans", PLAN | {"training_file": theirs["file_id"]}),
        ("/v1/jobs", {"plan": theirs["plan_id"], "training_file": own}),
        ("/v1/chat/completions", {"model": theirs["model_id"], "messages": [{"role": "user", "content": "2+2?"}]}),
    ]
    for path, body in bodies:
        assert client.post(path, json=body, headers=mine).status_code == 404, path


def test_two_tenants_may_make_the_same_plan(client: TestClient, make_key: MakeKey) -> None:
    one, two = (with_key(make_key("train", tenant=name)) for name in ("one", "two"))
    request = PLAN | {"labeled_budget": 500}
    first = client.post("/v1/plans", json=request, headers=one).json()["id"]
    assert client.get(f"/v1/plans/{first}", headers=two).status_code == 404
    assert client.post("/v1/plans", json=request, headers=two).json()["id"] == first
    for key in (one, two):
        assert [plan["id"] for plan in client.get("/v1/plans", headers=key).json()["data"]] == [first]


def test_tenants_do_not_share_idempotency_keys(client: TestClient, make_key: MakeKey) -> None:
    jobs = set()
    for name in ("one", "two"):
        key = with_key(make_key("train", tenant=name))
        file = client.post("/v1/files", files={"file": ("a", jsonl(100))}, headers=key).json()["id"]
        plan = client.post("/v1/plans", json=PLAN | {"training_file": file}, headers=key).json()["id"]
        body = {"plan": plan, "training_file": file}
        made = [client.post("/v1/jobs", json=body, headers=key | {"idempotency-key": "k"}).json() for _ in range(2)]
        assert made[0]["id"] == made[1]["id"]
        jobs.add(made[0]["id"])
    assert len(jobs) == 2


def of_tenant(client: TestClient, ctx: Context, key: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """One of everything that has an id, by the name of its path parameter."""
    file = client.post("/v1/files", files={"file": ("a", jsonl(100))}, headers=key).json()["id"]
    plan = client.post("/v1/plans", json=PLAN | {"training_file": file}, headers=key).json()["id"]
    job = client.post("/v1/jobs", json={"plan": plan, "training_file": file}, headers=key).json()["id"]
    with ctx.db.begin() as session:
        student = students.register(session, student_id=f"student-{job}", job_id=job, path=str(tmp_path)).id
    return {"file_id": file, "plan_id": plan, "job_id": job, "model_id": student}


def every_path(app: FastAPI) -> list[tuple[str, str]]:
    """Method and address of each endpoint that takes an id of a tenant's; the keys are the operator's."""
    paths = app.openapi()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return [(method, path.replace("{picture}", "curves")) for method, path in found if "/keys" not in path]


def send(client: TestClient, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    return client.request(method, path, headers=headers)  # type: ignore[return-value]
