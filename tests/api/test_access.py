"""Nobody gets anything without a key."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from api_testing import assert_problem, every_operation
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from api.limits import UPLOAD_SLACK
from s2d.services.context import Context
from s2d.settings import Settings
from s2d.store import keys


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer s2d-wrong", "Basic dXNlcjpwdw==", "Bearer s2d-\u00e9".encode("latin-1")],
)
def test_everything_but_the_health_check_needs_a_key(
    app: FastAPI, client: TestClient, header: str | bytes | None
) -> None:
    del client.headers["authorization"]
    headers = {} if header is None else {"authorization": header}
    for method, path in [*every_operation(app), ("GET", "/openapi.json"), ("GET", "/nothing"), ("GET", "//healthz")]:
        response = client.request(method, path, headers=headers)
        if path == "/healthz":
            assert response.json()["status"] == "ok"
            continue
        body = assert_problem(response, 401)
        assert body["error"]["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"


def test_unknown_and_revoked_keys_get_the_same_answer(
    client: TestClient, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2d.services.keys.TRUST_S", 0.2)
    with ctx.db.begin() as session:
        row, secret = keys.create(session, "second")
    client.headers["authorization"] = f"Bearer {secret}"
    assert client.get("/v1/jobs").status_code == 200
    # As another API process would do it: this one's memory of the key ends by itself.
    with ctx.db.begin() as session:
        keys.revoke(session, row.id)
    time.sleep(0.3)
    revoked = client.get("/v1/jobs")
    client.headers["authorization"] = "Bearer s2d-never-made"
    assert assert_problem(revoked, 401) == client.get("/v1/jobs").json()


def test_a_stranger_cannot_store_anything(client: TestClient, settings: Settings) -> None:
    """The key is checked before the body: an upload that is too large is a 401, too."""
    body = b"x" * (settings.max_upload_bytes + UPLOAD_SLACK + 1)
    response = client.post("/v1/files", files={"file": body}, headers={"authorization": "Bearer no"})
    assert_problem(response, 401)


def test_the_first_key_is_for_its_owner_alone_and_stored_hashed(client: TestClient, settings: Settings) -> None:
    assert client.get("/v1/jobs").status_code == 200
    assert settings.key_file.stat().st_mode & 0o077 == 0
    secret = settings.key_file.read_text().strip().encode()
    database = [path for path in Path(settings.state_dir).iterdir() if path.name.startswith("s2d.db")]
    assert database
    assert not any(secret in path.read_bytes() for path in database)


def test_a_known_key_is_believed_while_the_database_is_away(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no database goes on; a stranger is still nobody."""
    assert client.get("/metrics").status_code == 200
    monkeypatch.setattr("s2d.services.keys.TRUST_S", 0.0)

    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("away"))

    monkeypatch.setattr("s2d.services.keys.authenticate", away)
    assert client.get("/metrics").status_code == 200
    assert_problem(client.get("/metrics", headers={"authorization": "Bearer s2d-new"}), 503, "database_unavailable")
    monkeypatch.setattr("s2d.services.keys.TRUST_ALONE_S", 0.0)
    assert_problem(client.get("/metrics"), 503, "database_unavailable")


def test_a_prefix_of_a_proxy_opens_nothing(app: FastAPI, settings: Settings) -> None:
    """`uvicorn --root-path /s2d`: the router takes the prefix off, and so do the scopes."""
    with TestClient(app, root_path="/s2d", raise_server_exceptions=False) as client:
        admin = {"authorization": f"Bearer {settings.key_file.read_text().strip()}"}
        made = client.post("/s2d/v1/keys", headers=admin, json={"name": "a", "scopes": ["train"]})
        assert made.status_code == 201, made.text
        train = {"authorization": f"Bearer {made.json()['secret']}"}
        for path in ("/v1/keys", "/s2d/v1/keys", "/s2d/metrics", "/metrics"):
            assert_problem(client.get(path, headers=train), 403)
        assert_problem(client.post("/s2d/v1/keys", headers=train, json={"name": "a", "scopes": ["admin"]}), 403)
        assert client.get("/s2d/v1/jobs", headers=train).status_code == 200
        assert client.get("/s2d/healthz").status_code == 200


def test_a_key_that_is_known_to_be_revoked_stays_out_when_the_database_goes_away(
    client: TestClient, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2d.services.keys.TRUST_S", 0.0)
    with ctx.db.begin() as session:
        row, secret = keys.create(session, "second")
    headers = {"authorization": f"Bearer {secret}"}
    assert client.get("/metrics", headers=headers).status_code == 200
    with ctx.db.begin() as session:
        keys.revoke(session, row.id)
    assert_problem(client.get("/metrics", headers=headers), 401)

    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("away"))

    monkeypatch.setattr("s2d.services.keys.authenticate", away)
    assert_problem(client.get("/metrics", headers=headers), 503)
