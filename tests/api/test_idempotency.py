"""Files and keys are made once for one `Idempotency-Key`, however often and at whatever moments they are asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_testing import assert_problem, jsonl
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from s2d.errors import Conflict
from s2d.services.context import Context
from s2d.services.once import digest_of, once
from s2d.settings import Settings
from s2d.store.database import Database, db_now
from s2d.store.ids import new_id
from s2d.store.tables import FileRow

KEY = {"idempotency-key": "k-1"}
NEW_KEY: dict[str, Any] = {"name": "a", "scopes": ["read", "infer"]}


def send(client: TestClient | httpx.Client, content: bytes | None = None, name: str = "labels.jsonl") -> httpx.Response:
    files = {"file": (name, jsonl(20) if content is None else content)}
    return client.post("/v1/files", files=files, data={"purpose": "fine-tune"}, headers=KEY)  # type: ignore[return-value]


def folders(settings: Settings) -> list[str]:
    return [path.name for path in (settings.state_dir / "files").iterdir()]


# --- files ----------------------------------------------------------------------------------------------------------


def test_one_key_is_one_file(client: TestClient, settings: Settings) -> None:
    first = send(client)
    again = send(client)
    assert (again.status_code, again.json(), again.headers["etag"]) == (200, first.json(), first.headers["etag"])
    assert folders(settings) == [first.json()["id"]], "what was sent again leaves nothing"
    for other in (send(client, jsonl(21)), send(client, name="other.jsonl")):
        assert_problem(other, 409, "idempotency_key_reused")
        assert other.headers["x-should-retry"] == "false"
    assert client.post("/v1/files", files={"file": ("labels.jsonl", jsonl(20))}).json()["id"] != first.json()["id"]
    assert len(client.get("/v1/files").json()["data"]) == len(folders(settings)) == 2


def test_a_refused_upload_leaves_its_key_free(client: TestClient, settings: Settings) -> None:
    assert_problem(send(client, b"nonsense"), 400, "invalid_data")
    assert send(client).status_code == 200
    assert len(folders(settings)) == 1


def test_a_file_that_was_deleted_does_not_come_back(client: TestClient, settings: Settings) -> None:
    file_id = send(client).json()["id"]
    assert client.delete(f"/v1/files/{file_id}").status_code == 200
    spent = assert_problem(send(client), 409, "idempotency_key_spent")
    assert spent["details"] == {"id": file_id}
    assert folders(settings) == []


def test_one_file_for_one_key_at_the_same_moment(remote: httpx.Client, settings: Settings) -> None:
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: send(remote), range(6)))
    assert [response.status_code for response in made] == [200] * 6
    (file_id,) = {response.json()["id"] for response in made}
    assert folders(settings) == [file_id]


# --- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_its_secret_never_told_again(client: TestClient) -> None:
    made = client.post("/v1/keys", json=NEW_KEY, headers=KEY).json()
    for same in (NEW_KEY, NEW_KEY | {"scopes": ["infer", "read", "infer"], "tenant": "default"}):
        again = client.post("/v1/keys", json=same, headers=KEY)
        spent = assert_problem(again, 409, "idempotency_key_spent")
        assert (spent["details"], again.headers["x-should-retry"]) == ({"id": made["id"]}, "false")
        assert made["secret"] not in again.text
        assert f"DELETE /v1/keys/{made['id']}" in spent["detail"], "it says how to go on"
    for other in ({"name": "b"}, {"scopes": ["read"]}, {"tenant": "team"}, {"requests_per_min": 5}):
        assert_problem(client.post("/v1/keys", json=NEW_KEY | other, headers=KEY), 409, "idempotency_key_reused")
    assert len(client.get("/v1/keys").json()["data"]) == 2, "the first one, and this one"
    assert client.post("/v1/keys", json=NEW_KEY).status_code == 201


def test_one_key_for_one_idempotency_key_at_the_same_moment(remote: httpx.Client) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: remote.post("/v1/keys", json=NEW_KEY, headers=KEY), range(6)))
    assert sorted(answer.status_code for answer in answers) == [201, *[409] * 5]
    assert {answer.json().get("code") for answer in answers} == {None, "idempotency_key_spent"}
    assert len(remote.get("/v1/keys").json()["data"]) == 2


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_of_no_length_or_too_long_is_refused(client: TestClient, key: str) -> None:
    headers = {"idempotency-key": key}
    for answer in (
        client.post("/v1/keys", json=NEW_KEY, headers=headers),
        client.post("/v1/files", files={"file": ("a", jsonl(20))}, headers=headers),
    ):
        assert assert_problem(answer, 400)["error"]["param"] == "idempotency-key"


# --- on both databases ----------------------------------------------------------------------------------------------


def test_of_many_at_once_one_makes_it(database_url: str, tmp_path: Path) -> None:
    db = Database(database_url)
    db.migrate()
    ctx = Context(Settings(state_dir=tmp_path), db)

    def make(session: Session) -> FileRow:
        fields = {"filename": "a", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "labeled": 1, "unlabeled": 0}
        row = FileRow(id=new_id("file"), **fields, report={}, created_at=db_now())
        session.add(row)
        session.flush()
        return row

    def ask(turn: int) -> str:
        return once(ctx, "s", f"k{turn}", "same", make=make, again=lambda session, id: session.get_one(FileRow, id)).id

    with ThreadPoolExecutor(6) as pool:
        for turn in range(5):
            assert len(set(pool.map(ask, [turn] * 6))) == 1
    with pytest.raises(Conflict):
        once(ctx, "s", "k0", "other", make=make, again=lambda session, id: session.get_one(FileRow, id))
    assert once(ctx, "s", None, "same", make=make, again=lambda *_: pytest.fail("no key, no memory")).id
    db.close()


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_a_digest_is_of_the_parts_and_not_of_their_sum(one: list[str], other: list[str]) -> None:
    assert (digest_of(*one) == digest_of(*other)) == (one == other)
    assert digest_of("ab", "c") != digest_of("a", "bc")
