"""Uploads, good and bad: what is read, what is refused, and with which words."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.data import IngestReport, Limits, Row, find_row, ingest, read_rows, summarize
from s2d.errors import InvalidData, TooLarge


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def take(raw: bytes, out: Path, **limits: int) -> tuple[IngestReport, list[Row]]:
    report = ingest(io.BytesIO(raw), out, Limits(**limits))
    return report, list(read_rows(out))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


GOOD = {"problem": "a fine problem", "answer": "1"}


@pytest.mark.parametrize("prompt", ["problem", "question", "prompt", "Problem"])
@pytest.mark.parametrize("answer", ["answer", "solution", "final_answer", "ground_truth", "label", "Answer"])
def test_common_column_names(out: Path, prompt: str, answer: str) -> None:
    _, (row,) = take(jsonl({prompt: " 6 * 7? ", answer: "42"}), out)
    assert [(m.role, m.content) for m in row.messages] == [("user", "6 * 7?")]
    assert (row.answer, row.line) == ("42", 1)


@pytest.mark.parametrize(
    ("given_answer", "expected"),
    [
        ("48/2 = <<48/2=24>>24 clips.\n48+24 = 72\n#### 72", "72"),
        ("work\n#### $1,234.50", "1234.50"),
        ("work\n#### -7", "-7"),
        (r"so $x=\frac{1}{2}$, that is $\boxed{\frac{1}{\sqrt{2}}}$.", r"\frac{1}{\sqrt{2}}"),
        (r"first \boxed{1}, no: \boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"we get \boxed 5.", "5"),
        (r"$\frac{3}{4}$", r"\frac{3}{4}"),
        ("$1,000", "1000"),
        ("Paris", "Paris"),
        ("The answer is 12.", "12"),
        (42, "42"),
        (-3, "-3"),
        (0, "0"),
        (0.10, "0.1"),
        (1.5e30, "1.5E+30"),
        (None, None),
        ("", None),
        ("  ", None),
    ],
)
def test_final_answer(out: Path, given_answer: Any, expected: str | None) -> None:
    report, (row,) = take(jsonl({"problem": "p", "answer": given_answer}), out)
    assert row.answer == expected
    assert (report.labeled, report.unlabeled) == ((0, 1) if expected is None else (1, 0))


def test_short_answer_column_wins_over_the_solution_and_rescues_an_unmarked_one(out: Path) -> None:
    long = "First we add the numbers.\nThen we are done."
    _, rows = take(
        jsonl(
            {"problem": "a", "solution": r"\boxed{2}", "answer": "1"},
            {"problem": "b", "answer": long, "solution": r"\boxed{2}"},
        ),
        out,
    )
    assert [row.answer for row in rows] == ["1", "2"]


def test_chats(out: Path) -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}
    solved = {"role": "assistant", "content": r"It is \boxed{4}"}
    parts = {"role": "user", "content": [{"type": "text", "text": "3+"}, {"type": "text", "text": "3?"}]}
    report, rows = take(
        jsonl({"messages": [system, user, solved]}, {"messages": [user]}, {"prompt": [parts], "answer": 6}), out
    )
    assert [[m.content for m in row.messages] for row in rows] == [["Be brief.", "2+2?"], ["2+2?"], ["3+3?"]]
    assert [row.answer for row in rows] == ["4", None, "6"]
    assert report.columns == ["answer", "messages", "prompt"]


BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"problem": "caf\xe9", "answer": 1}', "not UTF-8"),
    (b'{"problem": "x", "answer": 1', "broken JSON"),
    (b'{"problem": "x", "answer": NaN}', "a number that cannot be read"),
    (b'{"problem": "x", "answer": ' + b"9" * 5000 + b"}", "a number that cannot be read"),
    (b"[1, 2]", "not a JSON object: the line holds a list"),
    (b"null", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b'{"problem": "x\0y"}', "NUL bytes"),
    (rb'{"problem": "x\u0000y"}', "NUL characters: problem"),
    (rb'{"problem": "x\ud800y"}', "broken Unicode: problem"),
    (b'{"problem": "x", "answer": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "JSON nested too deeply"),
    (b'{"problem": "' + b"x" * 200_000 + b'"}', "line too long: more than 150,000 bytes"),
    (b'{"answer": 1}', "no problem: give one of the columns problem, question, prompt, messages"),
    (b'{"problem": "  ", "answer": 1}', "no problem"),
    (b'{"problem": 5, "answer": 1}', "the problem has the wrong type: problem is a number, not text"),
    (b'{"messages": "hi"}', "the problem has the wrong type: messages is a string, not a list of chat turns"),
    (b'{"messages": [{"role": "tool", "content": "x"}]}', "a chat turn without a known role: messages, turn 1"),
    (b'{"messages": ["x"]}', "a chat turn without a known role"),
    (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "a chat turn without text"),
    (b'{"messages": [{"role": "assistant", "content": "x"}]}', "no problem: messages must have a user turn"),
    (
        b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, '
        b'{"role": "user", "content": "z"}]}',
        "a chat of several rounds",
    ),
    (b'{"problem": "x", "answer": true}', "the answer has the wrong type: answer is a boolean"),
    (b'{"problem": "x", "answer": {"value": 1}}', "the answer has the wrong type: answer is a object"),
    (
        b'{"problem": "x", "solution": "We add.\\nThen we are done."}',
        "a worked solution without a marked final answer: solution: end it with '#### <answer>'",
    ),
    (b'{"problem": "x", "answer": "' + b"word " * 30 + b'"}', "a worked solution without a marked final answer"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_bad_row_is_reported_and_the_others_stay(out: Path, bad: bytes, reason: str) -> None:
    raw = jsonl(GOOD) + b"\n" + bad + b"\r\n" + jsonl({"problem": "other", "answer": "2"})
    report, rows = take(raw, out, max_line_bytes=150_000)
    assert [row.line for row in rows] == [1, 4]
    (rejection,) = report.rejections
    assert rejection.line == 3
    assert rejection.reason.startswith(reason)
    assert report.rejected_by_reason == {rejection.reason.split(":")[0]: 1}


def test_all_bad_rows_are_counted_and_the_first_hundred_kept(out: Path) -> None:
    report, _ = take(jsonl(GOOD) + b"nonsense\n" * 150 + b"[]\n" * 7, out)
    assert report.rejected == 157
    assert report.rejected_by_reason == {"broken JSON": 150, "not a JSON object": 7}
    assert [rejection.line for rejection in report.rejections] == list(range(2, 102))


def test_bom_crlf_blank_lines_and_a_last_line_without_newline(out: Path) -> None:
    raw = b'\xef\xbb\xbf{"problem": "a"}\r\n\r\n   \n{"problem": "b"}'
    report, rows = take(raw, out)
    assert [row.line for row in rows] == [1, 4]
    assert (report.bytes, report.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert report.rejected == 0


def test_duplicates_are_dropped_however_they_are_spelled(out: Path) -> None:
    report, rows = take(
        jsonl(
            {"problem": "caf\u00e9  now", "answer": "1,000"},
            {"question": "cafe\u0301 now\n", "answer": 1000.0},
            {"messages": [{"role": "user", "content": "caf\u00e9 now"}], "answer": "$1000"},
        ),
        out,
    )
    assert (report.rows, report.duplicates) == (1, 2)
    assert rows[0].answer == "1000"


def test_label_wins_over_no_label_in_either_order(out: Path) -> None:
    report, rows = take(
        jsonl(
            {"problem": "a"},
            {"problem": "b", "answer": "2"},
            {"problem": "a", "answer": "1"},
            {"problem": "b"},
            {"problem": "a"},
        ),
        out,
    )
    assert [(row.line, row.answer) for row in rows] == [(2, "2"), (3, "1")]
    assert (report.rows, report.labeled, report.unlabeled, report.duplicates) == (2, 2, 0, 3)


def test_two_answers_to_one_problem_name_both_lines(out: Path) -> None:
    raw = jsonl(GOOD, {"problem": "q", "answer": "2"}, {"problem": " a  fine problem", "answer": "3"})
    with pytest.raises(InvalidData, match="first on lines 1 and 3: keep one answer") as caught:
        take(raw, out)
    assert caught.value.details["conflicts"] == [(1, 3)]
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \r\n", "the file is empty"),
        (gzip.compress(jsonl(GOOD), mtime=0), "gzip file: decompress it first"),
        (b"PAR1\x15\x04\x15", "Parquet file: export it as JSONL"),
        (b"PK\x03\x04zip", "a zip file"),
        ('{"problem": "x"}'.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        (b"question,answer\nwhat?,42\n", "a CSV file .its first line is 'question,answer'.: convert it"),
        (b"question\tanswer\nwhat?\t42\n", "a tab-separated file"),
        (b'[\n{"problem": "x"},\n{"problem": "y"}\n]\n', "a JSON array: write one object per line"),
        (b'{\n "problem": "x"\n}\n', "pretty-printed JSON: write each object on one line"),
        (b"<html></html>", "HTML or XML"),
        (b'{"x": 1}\n{"x": 2}\n', "none of the 2 rows is usable; the first, line 1: no problem"),
    ],
)
def test_unusable_file_is_refused_with_what_it_is_and_leaves_nothing(out: Path, raw: bytes, message: str) -> None:
    with pytest.raises(InvalidData, match=message):
        take(raw, out)
    assert list(out.parent.iterdir()) == []


def test_refusal_carries_the_first_rejections(out: Path) -> None:
    with pytest.raises(InvalidData) as caught:
        take(b'{"x": 1}\n{"problem": 2}\n', out)
    assert caught.value.details["rejected"] == 2
    assert [rejection["line"] for rejection in caught.value.details["rejections"]] == [1, 2]


def test_limits(out: Path) -> None:
    raw = jsonl({"problem": "a"}, {"problem": "b"})
    take(raw, out, max_bytes=len(raw), max_rows=2)
    before = out.read_bytes()
    with pytest.raises(TooLarge, match="larger than 33 bytes"):
        take(raw, out, max_bytes=len(raw) - 1)
    with pytest.raises(TooLarge, match="more than 1 rows"):
        take(raw, out, max_rows=1)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_a_huge_line_is_never_held(out: Path) -> None:
    class Endless(io.RawIOBase):
        """A good row, 300 MiB without a newline, then another good row."""

        def __init__(self) -> None:
            self.left, self.asked = 300 << 20, 0

        def readline(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 < size <= 1025
            self.asked += 1
            if self.asked == 1:
                return b'{"problem": "a"}\n'
            self.left, chunk = self.left - size, b"x" * size
            return chunk if self.left > 0 else (b"\n" if self.left > -2 * size else b"")

    report = ingest(Endless(), out, Limits(max_line_bytes=1024))  # type: ignore[arg-type]
    assert (report.rows, report.rejected) == (1, 1)


MEMORY = """
import io, json, resource, sys
from pathlib import Path
from s2d.data import ingest, split

class Rows(io.RawIOBase):
    def __init__(self): self.rows = (json.dumps({"problem": f"{i} " + "word " * 800, "answer": i}).encode() + b"\\n"
                                     for i in range(20_000))
    def readline(self, size=-1): return next(self.rows, b"")

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder, before = Path(sys.argv[1]), peak()
report = ingest(Rows(), folder / "rows.jsonl")
split(folder / "rows.jsonl", {"teacher_rl": 10_000, "test": 100, "prompts": 5_000}, 0, folder)
print(report.bytes >> 20, (peak() - before) >> 10)
"""


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    read_mib, grown_mib = map(int, result.stdout.split())
    assert read_mib > 70
    assert grown_mib < 30


@settings(max_examples=150, deadline=None)
@given(raw=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda s: s.encode("utf-8", "surrogatepass"))))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    out = tmp_path_factory.mktemp("any") / "rows.jsonl"
    try:
        ingest(io.BytesIO(raw), out)
    except (InvalidData, TooLarge):
        assert not out.exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
COLUMNS = st.sampled_from(["problem", "question", "prompt", "messages", "answer", "solution", "label", "other"])


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.dictionaries(COLUMNS, JSON, max_size=4), max_size=6))
def test_every_line_is_accounted_for(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    out = tmp_path_factory.mktemp("any") / "rows.jsonl"
    try:
        report, kept = take(jsonl(GOOD, *rows), out)
    except InvalidData as error:
        if "conflicts" not in error.details:
            raise
        return
    assert report.rows + report.duplicates + report.rejected == len(rows) + 1
    assert report.rows == len(kept) == report.labeled + report.unlabeled
    assert len({row.id for row in kept}) == len(kept)


def test_gsm8k(gsm8k: Path, out: Path) -> None:
    for name, rows in (("train", 7473), ("test", 1319)):
        with (gsm8k / f"{name}.jsonl").open("rb") as file:
            report = ingest(file, out)
        assert (report.rows, report.labeled, report.duplicates, report.rejected) == (rows, rows, 0, 0)
        assert report.sha256 == hashlib.sha256((gsm8k / f"{name}.jsonl").read_bytes()).hexdigest()
        assert all(row.answer is not None and row.answer.lstrip("-").isdigit() for row in read_rows(out))


def test_summary(out: Path) -> None:
    take(jsonl(*({"problem": "x" * n, "answer": 1 if n > 90 else None} for n in range(1, 101))), out)
    summary = summarize(out)
    assert (summary.labeled, summary.unlabeled) == (10, 90)
    assert (summary.prompt_chars_mean, summary.prompt_chars_p95, summary.prompt_chars_max) == (50.5, 95, 100)
    out.write_bytes(b"")
    assert summarize(out).prompt_chars_max == 0


def test_a_file_of_rows_that_was_tampered_with_names_the_line(out: Path) -> None:
    take(jsonl(GOOD), out)
    out.write_bytes(out.read_bytes() + b'{"id": "zz"}\n')
    with pytest.raises(InvalidData, match=r"rows\.jsonl, line 2: not a row"):
        list(read_rows(out))


def test_a_row_is_found_by_its_line_and_by_its_id_and_by_nothing_else(out: Path) -> None:
    tricky = {"problem": 'What ends in ,"line":1}', "answer": 'x ,"line":2}'}
    _, rows = take(
        jsonl(GOOD, {"no": "problem"}, tricky, {"problem": "unlabeled"}, *({"problem": f"p{n}"} for n in range(9))), out
    )
    assert [row.line for row in rows][:3] == [1, 3, 4]
    for row in rows:
        assert find_row(out, line=row.line) == find_row(out, row_id=row.id) == row
    assert find_row(out, line=2) is None
    assert find_row(out, line=14) is None
    assert find_row(out, row_id="0" * 32) is None
