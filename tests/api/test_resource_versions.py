"""Every resource that can be changed has an ETag: a poll that finds nothing new has no body, and a change that was
meant for another version is a 412 and changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from api_testing import assert_problem, jsonl
from fastapi import FastAPI
from fastapi.testclient import TestClient

from s2d.services.context import Context
from s2d.store import jobs, students

Upload = Callable[..., httpx.Response]


class Resource(NamedTuple):
    """Where it is, and a change that one can ask of it."""

    url: str
    method: str
    change: str


@pytest.fixture(params=["file", "model", "key", "job", "fine-tuning job"])
def resource(
    request: pytest.FixtureRequest, client: TestClient, ctx: Context, upload: Upload, tmp_path: Path
) -> Resource:
    if request.param == "file":
        url = f"/v1/files/{upload().json()['id']}"
        return Resource(url, "DELETE", url)
    if request.param == "key":
        url = f"/v1/keys/{client.post('/v1/keys', json={'name': 'a', 'scopes': ['read']}).json()['id']}"
        return Resource(url, "DELETE", url)
    job: dict[str, Any] = request.getfixturevalue("job")
    if request.param == "model":
        with ctx.db.begin() as session:
            students.register(session, student_id="team/student", job_id=job["id"], path=str(tmp_path))
        return Resource("/v1/models/team/student", "DELETE", "/v1/models/team/student")
    url = f"/v1/{'fine_tuning/' if request.param != 'job' else ''}jobs/{job['id']}"
    return Resource(url, "POST", f"{url}/cancel")


def test_a_poll_that_finds_nothing_new_has_no_body(client: TestClient, resource: Resource) -> None:
    first = client.get(resource.url)
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(resource.url, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    for other in ('"other"', tag.strip('"')):
        again = client.get(resource.url, headers={"if-none-match": other})
        assert (again.status_code, again.json(), again.headers["etag"]) == (200, first.json(), tag)


def test_a_change_is_made_only_to_the_version_that_was_seen(client: TestClient, resource: Resource) -> None:
    def change(if_match: str) -> httpx.Response:
        headers = {"if-match": if_match}
        return client.request(resource.method, resource.change, headers=headers)  # type: ignore[return-value]

    seen = client.get(resource.url)
    tag = seen.headers["etag"]
    for stale in ('"other"', f"W/{tag}"):
        refused = assert_problem(change(stale), 412, "changed_meanwhile")
        assert refused["error"]["param"] == "if-match"
    assert assert_problem(change("other"), 400)["error"]["param"] == "if-match"
    assert client.get(resource.url).json() == seen.json(), "nothing was changed"
    assert change(f'"other", {tag}').is_success
    after = client.get(resource.url)
    assert after.status_code == 404 or after.headers["etag"] != tag


def test_what_is_not_there_is_no_other_version_of_it(client: TestClient) -> None:
    for url in ("/v1/files/file_none", "/v1/models/none", "/v1/keys/key_none"):
        assert client.delete(url, headers={"if-match": '"other"'}).status_code == 404, url
    for what in ("cancel", "pause", "resume"):
        url = f"/v1/fine_tuning/jobs/job_none/{what}"
        assert client.post(url, headers={"if-match": '"other"'}).status_code == 404, url


def test_a_files_etag_is_the_hash_of_its_content(client: TestClient, upload: Upload) -> None:
    made = upload()
    assert made.headers["etag"] == f'"{hashlib.sha256(jsonl(100)).hexdigest()}"'
    assert client.get(f"/v1/files/{made.json()['id']}").headers["etag"] == made.headers["etag"]


def test_a_key_that_was_revoked_is_not_revoked_again_for_whoever_saw_it_valid(client: TestClient) -> None:
    made = client.post("/v1/keys", json={"name": "a", "scopes": ["read"]})
    url, valid = f"/v1/keys/{made.json()['id']}", made.headers["etag"]
    assert client.get(url).json() == {name: value for name, value in made.json().items() if name != "secret"}
    revoked = client.delete(url, headers={"if-match": valid})
    assert (revoked.status_code, revoked.headers["etag"]) == (200, client.get(url).headers["etag"])
    assert_problem(client.delete(url, headers={"if-match": valid}), 412, "changed_meanwhile")
    assert client.delete(url).json() == revoked.json()


def test_a_students_name_that_is_given_again_is_another_version(
    client: TestClient, ctx: Context, job: dict[str, Any], tmp_path: Path
) -> None:
    tags = set()
    for _ in range(2):
        with ctx.db.begin() as session:
            students.register(session, student_id="s", job_id=job["id"], path=str(tmp_path))
        tags.add(client.get("/v1/models/s").headers["etag"])
        assert client.delete("/v1/models/s").status_code == 200
    assert len(tags) == 2


@pytest.mark.parametrize("change", ["cancel", "pause", "resume"])
def test_both_faces_of_a_job_have_the_same_versions(
    client: TestClient, ctx: Context, job: dict[str, Any], change: str
) -> None:
    native, url = f"/v1/jobs/{job['id']}", f"/v1/fine_tuning/jobs/{job['id']}"
    if change == "resume":
        client.post(f"{native}/pause")
    else:
        with ctx.db.begin() as session:
            jobs.claim(session, job["id"], "worker", 60)
    tag = client.get(url).headers["etag"]
    assert client.get(native, headers={"if-none-match": tag}).status_code in (200, 304)
    assert_problem(client.post(f"{url}/{change}", headers={"if-match": '"0-1"'}), 412, "changed_meanwhile")
    done = client.post(f"{url}/{change}", headers={"if-match": tag})
    assert (done.status_code, done.headers["etag"]) == (200, client.get(native).headers["etag"])
    assert done.headers["etag"] != tag


def test_the_document_tells_of_every_condition(app: FastAPI) -> None:
    operations = {
        f"{method} {path}": operation
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    }
    headers = {
        name: {one["name"] for one in operation.get("parameters", []) if one["in"] == "header"}
        for name, operation in operations.items()
    }
    changed = {name for name in operations if name.endswith(("/cancel", "/pause", "/resume")) or "delete " in name}
    assert changed == {name for name, given in headers.items() if "if-match" in given}
    assert len(changed) == 9
    assert all("412" in operations[name]["responses"] for name in changed)
    polled = {name for name, given in headers.items() if "if-none-match" in given}
    resources = {name.rpartition("/")[0] for name in changed if name.startswith("post")}
    resources |= {name for name in changed if name.startswith("delete")}
    assert polled == {f"get {name.partition(' ')[2]}" for name in resources}
    for name in polled:
        assert all("ETag" in operations[name]["responses"][status]["headers"] for status in ("200", "304")), name
