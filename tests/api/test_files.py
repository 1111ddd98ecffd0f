"""Uploads, good and bad."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from api_testing import assert_problem, jsonl
from fastapi.testclient import TestClient

from api.limits import UPLOAD_SLACK
from s2d.settings import Settings

Upload = Callable[..., httpx.Response]


def kept_files(settings: Settings) -> list[str]:
    folder = settings.state_dir / "files"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_an_upload_is_reported_and_comes_back(client: TestClient, upload: Upload) -> None:
    content = jsonl(3) + b'{"problem": "What is 0 + 0?", "answer": "0"}\n{"problem": "?"}\nnonsense\n'
    made = upload(content, name="../../etc/labels.jsonl")
    assert made.status_code == 200, made.text
    file = made.json()
    assert (file["object"], file["status"], file["purpose"]) == ("file", "processed", "fine-tune")
    assert (file["filename"], file["bytes"]) == ("labels.jsonl", len(content))
    assert isinstance(file["created_at"], int)
    report = file["report"]
    counts = ("rows", "labeled", "unlabeled", "duplicates", "rejected")
    assert [report[name] for name in counts] == [4, 3, 1, 1, 1]
    assert report["rejections"][0]["line"] == 6
    assert report["rejections"][0]["reason"]
    assert client.get(f"/v1/files/{file['id']}").json() == file
    assert client.get(f"/v1/files/{file['id']}/content").content == content


def test_pages_hold_every_file_once(client: TestClient, upload: Upload) -> None:
    ids = [upload(jsonl(n)).json()["id"] for n in range(1, 6)]
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        seen: list[str] = []
        page = client.get("/v1/files", params={"limit": 2, "order": order}).json()
        while True:
            assert (page["object"], page["first_id"]) == ("list", page["data"][0]["id"])
            seen += [item["id"] for item in page["data"]]
            if not page["has_more"]:
                break
            page = client.get("/v1/files", params={"limit": 2, "order": order, "after": page["last_id"]}).json()
        assert seen == expected
    empty = client.get("/v1/files", params={"after": ids[0]}).json()
    assert empty == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"question,answer\n1+1,2\n", "CSV"),
        (b'[{"question": "1+1", "answer": "2"}]', "JSON"),
        (b'{"question": "1+1", "answer": \n', "line 1"),
        (b'{"question": "\xff\xfe", "answer": "2"}\n', "UTF-8"),
        (b"\x1f\x8b\x08\x00rest of an archive", "gzip"),
        (b'{"question": "1+1", "answer": "2"}\n{"question": "1+1", "answer": "3"}\n', "lines 1 and 2"),
        (b'{"text": "no problem here"}\n', "line 1"),
    ],
)
def test_bad_uploads_say_why_and_leave_nothing(upload: Upload, settings: Settings, content: bytes, says: str) -> None:
    body = assert_problem(upload(content), 400, "invalid_data")
    assert says.lower() in body["detail"].lower()
    assert body["error"]["param"] == "file"
    assert kept_files(settings) == []


def test_rejected_rows_are_listed_in_the_error(upload: Upload) -> None:
    body = assert_problem(upload(b"nonsense\nmore\n"), 400)
    assert [rejection["line"] for rejection in body["details"]["rejections"]] == [1, 2]


@pytest.mark.parametrize("excess", [1, UPLOAD_SLACK + 1])
def test_too_large(upload: Upload, settings: Settings, excess: int) -> None:
    """Just over the limit the ingest refuses; further over, the middleware already does."""
    row = json.dumps({"problem": "p" * 1000, "answer": "1"}).encode() + b"\n"
    content = (row * (settings.max_upload_bytes // len(row) + 1))[: settings.max_upload_bytes].ljust(
        settings.max_upload_bytes + excess
    )
    assert_problem(upload(content), 413, "too_large")
    assert kept_files(settings) == []


def test_bad_forms(client: TestClient, upload: Upload) -> None:
    assert assert_problem(upload(purpose="assistants"), 400)["error"]["param"] == "purpose"
    assert assert_problem(client.post("/v1/files", data={"purpose": "fine-tune"}), 400)["error"]["param"] == "file"
    assert_problem(client.post("/v1/files", data={"file": "text", "purpose": "fine-tune"}), 400)
    assert_problem(client.post("/v1/files", json={"file": "x"}), 400)
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    assert_problem(client.post("/v1/files", content=b"--x\r\nbroken", headers=boundary), 400)


def test_deletion(client: TestClient, upload: Upload, settings: Settings) -> None:
    file_id = upload().json()["id"]
    assert client.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    assert_problem(client.get(f"/v1/files/{file_id}"), 404, "file_not_found")
    assert_problem(client.delete(f"/v1/files/{file_id}"), 404, "file_not_found")
    assert kept_files(settings) == []


def test_a_file_that_a_job_used_stays(client: TestClient, job_body: dict[str, str]) -> None:
    client.post("/v1/jobs", json=job_body)
    response = client.delete(f"/v1/files/{job_body['training_file']}")
    assert_problem(response, 409, "file_in_use")
    assert response.headers["x-should-retry"] == "false"
    assert client.get(f"/v1/files/{job_body['training_file']}/content").content == jsonl(100)
