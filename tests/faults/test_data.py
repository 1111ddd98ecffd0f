"""Uploads that are large, broken or contradictory (row 13); rows without a label, problems that would leak (row 14).

Over HTTP against a service of real processes, on each database; what is measured of it is its own process.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import unicodedata
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from faults_testing import Fault
from processes_testing import descendants
from tiny import SHORT

from api.problems import MEDIA_TYPE, Problem
from benchmarks.rig import until
from s2d.data import read_rows
from s2d.runner.ledger import Ledger

MILLION = 1_000_000
#: What `s2d.data` promises is about 200 bytes a row; a third more for what the allocator keeps.
MAX_BYTES_A_ROW = 270


def send(fault: Fault, content: Any, name: str = "labels.jsonl") -> httpx.Response:
    return fault.client.http.post("/files", files={"file": (name, content)}, timeout=600)


def refused(response: httpx.Response, status: int, code: str) -> Problem:
    """The answer is this error, in the one shape."""
    assert response.headers["content-type"] == MEDIA_TYPE, response.text
    told = Problem.model_validate_json(response.content)
    assert (response.status_code, told.status, told.code) == (status, status, code), response.text
    assert (told.error.message, told.error.code) == (told.detail, code)
    return told


def kept(fault: Fault) -> set[str]:
    """Every file of an upload that lies in the state folder, temporary ones included."""
    folder = fault.rig.settings.state_dir / "files"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def million(number: int) -> bytes:
    """Line `number` of a large file: every hundredth is not as it should be, in one of four ways."""
    match number % 400:
        case 100:
            return b'{"problem":"caf\xe9 %d","answer":1}\n' % number
        case 200:
            return b'{"problem":"%d","answer":\n' % number
        case 300:
            return million(number - 1)
        case 0:
            return b'{"problem":"%d?"}\n' % number
    return b'{"problem":"%d+1","answer":%d}\n' % (number, number + 1)


class Stream(io.RawIOBase):
    """The large file, made while it is sent. It cannot be sought in, so that it goes out without a length."""

    def __init__(self) -> None:
        self._lines = map(million, range(1, MILLION + 1))
        self.sha256, self.bytes = hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        chunk = b"".join(islice(self._lines, 4096))
        self.sha256.update(chunk)
        self.bytes += len(chunk)
        return chunk

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation

    def fileno(self) -> int:
        raise io.UnsupportedOperation


def peak_bytes(process: psutil.Process) -> int:
    """The most memory that the process has had."""
    (line,) = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1]) * 1024


def api_process(fault: Fault) -> psutil.Process:
    port = str(fault.rig.settings.port)
    # The guard that watches over it has the same words on its command line, after its own.
    (found,) = (one for one in descendants(port) if port in (words := one.cmdline()) and "-P" not in words)
    return found


@pytest.mark.fault(13)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_million_rows_are_read_in_bounded_memory_and_every_line_is_accounted_for(fault: Fault) -> None:
    process, stream = api_process(fault), Stream()
    before = peak_bytes(process)
    answer = send(fault, stream)
    assert answer.status_code == 200, answer.text
    assert peak_bytes(process) - before < MAX_BYTES_A_ROW * MILLION
    file, report = answer.json(), answer.json()["report"]
    assert (file["bytes"], report["sha256"]) == (stream.bytes, stream.sha256.hexdigest())
    each = MILLION // 400
    counts = {name: report[name] for name in ("rows", "labeled", "unlabeled", "duplicates", "rejected")}
    assert counts == {
        "rows": MILLION - 3 * each,
        "labeled": MILLION - 4 * each,
        "unlabeled": each,
        "duplicates": each,
        "rejected": 2 * each,
    }
    assert report["rejected_by_reason"] == {"not UTF-8": each, "broken JSON": each}
    assert [one["line"] for one in report["rejections"]] == [n for n in range(1, 20_000) if n % 400 in (100, 200)][:100]
    assert report["rejections"][:2] == [
        {"line": 100, "reason": "not UTF-8: byte 16 of the line"},
        {"line": 200, "reason": "broken JSON: Expecting value, column 27"},
    ]
    assert len(answer.content) < 20_000
    assert fault.client.http.get(f"/files/{file['id']}").json() == file


@pytest.mark.fault(13)
def test_contradictions_fail_the_whole_file_and_leave_nothing(fault: Fault) -> None:
    before = kept(fault)
    rows = [{"problem": f"{n} + 1", "answer": n + 1} for n in range(20_000)]
    other = [{"question": f" {n}  +\t1", "answer": f"{n + 2}.0"} for n in range(1_000)]
    same = [{"prompt": f"{n} + 1", "solution": f"#### ${n + 1:,}.00"} for n in range(1_000, 2_000)]
    told = refused(send(fault, jsonl(*rows, *other, *same)), 400, "invalid_data")
    assert told.error.param == "file"
    assert told.detail.startswith(
        "1000 rows give another answer to a problem than an earlier row, first on lines 1 and "
    )
    assert told.details == {"conflicts": [[n, 20_000 + n] for n in range(1, 6)]}
    assert kept(fault) == before
    assert len(fault.client.http.get("/files").json()["data"]) == 1
    # Without them the file is taken: an answer in another spelling is no contradiction.
    report = send(fault, jsonl(*rows, *same)).json()["report"]
    assert (report["labeled"], report["duplicates"], report["rejected"]) == (20_000, 1_000, 0)


@pytest.mark.fault(13)
def test_a_file_without_a_usable_row_is_refused_with_a_capped_list_of_its_lines(fault: Fault) -> None:
    before = kept(fault)
    ways = (b'{"problem": "\xff", "answer": 1}', b'{"problem": ', b'{"problem": "\\ud800"}', b"\0", b"[" * 50_000, b"7")
    content = b"\n\n".join(ways[n % len(ways)] for n in range(300))
    told = refused(send(fault, content), 400, "invalid_data")
    assert told.details is not None
    assert told.details["rejected"] == 300
    assert [one["line"] for one in told.details["rejections"]] == list(range(1, 200, 2))
    assert [one["reason"].split(":")[0] for one in told.details["rejections"][: len(ways)]] == [
        "not UTF-8",
        "broken JSON",
        "broken Unicode",
        "NUL bytes",
        "JSON nested too deeply",
        "not a JSON object",
    ]
    assert "none of the 300 rows is usable; the first, line 1: not UTF-8" in told.detail
    for content in (b"", '{"problem": "x"}'.encode("utf-16"), b"question,answer\n1+1,2\n"):
        refused(send(fault, content), 400, "invalid_data")
    assert kept(fault) == before


@pytest.mark.fault(13)
def test_what_only_one_database_could_not_hold_is_taken_by_both(fault: Fault) -> None:
    """PostgreSQL refuses a NUL in a text, which SQLite takes."""
    form = b'--b\r\ncontent-disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n--b--\r\n'
    row = b'{"problem": "x", "answer": 1, "na\\u0000me\\ud800": 1}\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = fault.client.http.post("/files", content=form % (b"la\0bels\x1b[2J.jsonl", row), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == "labels[2J.jsonl"
    assert fault.client.http.get(f"/files/{answer.json()['id']}").json() == answer.json()


#: A job of no more stages and steps than it takes.
SHORTEST: dict[str, Any] = {
    "controls": [],
    "stages": {name: stage for name, stage in SHORT["stages"].items() if name != "direct_grpo"},
}
#: Spellings of one problem that differ for a machine alone.
SPELLINGS = (
    lambda text: f"  {text}\n",
    lambda text: text.replace(" ", "\u00a0\t "),
    lambda text: text.replace(" ", " \u200b"),
    lambda text: "\ufeff" + text.replace("e", "e\u00ad"),
    lambda text: unicodedata.normalize("NFD", text),
)


def spelled_apart(labeled: int, unlabeled: int) -> tuple[bytes, int]:
    """A file in which each problem comes in all spellings, in random order; and how many rows it has too many."""
    rows: list[dict[str, Any]] = []
    for n in range(labeled + unlabeled):
        text = f"Élodie a {n} pommes, reçoit {n + 1} : combien ?"
        answer = {"answer": str(2 * n + 1)} if n < labeled else {}
        rows.append({"problem": text, **answer})
        rows += [{"question": spell(text), **answer} for spell in SPELLINGS]
        # A copy without its answer would be in the prompt pool while the other is tested on.
        rows.append({"messages": [{"role": "user", "content": SPELLINGS[n % 5](text)}]})
    random.Random(0).shuffle(rows)
    return jsonl(*rows), len(rows) - labeled - unlabeled


def texts(path: Path) -> set[str]:
    """The problems in a file of rows, by nothing but what a reader sees of them."""
    return {
        "".join(filter(str.isalnum, unicodedata.normalize("NFKC", row.messages[-1].content))) for row in read_rows(path)
    }


@pytest.mark.fault(14)
def test_unlabeled_rows_join_the_prompt_pool_cost_no_label_and_no_spelling_leaks(fault: Fault) -> None:
    content, too_many = spelled_apart(labeled=200, unlabeled=100)
    upload = send(fault, content).json()
    report = upload["report"]
    assert (report["labeled"], report["unlabeled"], report["duplicates"]) == (200, 100, too_many)
    fault.file = upload["id"]
    job = fault.job(**SHORTEST)
    fault.rig.start_worker()
    shown = fault.client.wait(job, "succeeded")
    data, plan = fault.layout(job).data, fault.client.http.get(f"/plans/{shown['plan']}").json()
    labels = plan["data"]["labels"]
    roles = {role: texts(data / f"{role}.jsonl") for role in ("teacher_rl", "student_rl", "validation", "test")}
    assert {role: len(problems) for role, problems in roles.items()} == labels
    assert len(set.union(*roles.values())) == sum(labels.values())
    # The pool: stage 1's problems and all unlabeled ones, none of the held-out ones, and no answer.
    pool = texts(data / "prompts.jsonl")
    assert len(pool) == plan["data"]["bridge_prompts"] == labels["teacher_rl"] + 100
    assert pool & set.union(*roles.values()) == roles["teacher_rl"]
    assert all(row.answer is None for row in read_rows(data / "prompts.jsonl"))
    spent = fault.client.http.get(f"/jobs/{job}/labels").json()["data"]
    assert {one["role"]: one["labels"] for one in spent if one["arm"] == "workflow"} == labels
    free = {row.id for row in read_rows(data / "prompts.jsonl")} - {
        row.id for row in read_rows(data / "teacher_rl.jsonl")
    }
    assert len(free) == 100
    assert free.isdisjoint(entry.label for entry in Ledger(fault.layout(job).ledger).read())
    fault.check(job)


@pytest.mark.fault(14)
def test_a_held_out_problem_among_the_labels_stops_the_job_before_it_is_read(fault: Fault) -> None:
    job = fault.job(**SHORTEST)
    fault.rig.start_worker()
    data = fault.layout(job).data
    until("the rows are dealt", lambda: (data / "split.json").exists())
    leaked = (data / "test.jsonl").read_bytes().splitlines(keepends=True)[0]
    with (data / "student_rl.jsonl").open("ab") as file:
        file.write(leaked)
    shown = fault.client.wait(job, "failed")
    assert (shown["error"]["code"], shown["error"]["stage"]) == ("label_spent", "student_rl")
    assert json.loads(leaked)["id"] in shown["error"]["message"]
    done = [stage["id"] for stage in shown["stages"] if stage["state"] == "succeeded"]
    assert done == ["teacher_rl", "teacher_rollouts", "warmup", "opd"]
    assert not (fault.layout(job).stage("student_rl") / "checkpoints").exists()
