"""What a person sees of a job on the command line: the live display, and the report."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from s2d.cli import progress as live
from s2d.cli.board import Board
from s2d.cli.progress import Progress
from s2d.cli.report import show_report
from s2d.events import NewEvent


def event(type: Any, **fields: Any) -> dict[str, Any]:
    return NewEvent(type=type, **fields).model_dump()


RUN = [
    event("state", data={"state": "running"}),
    event("stage", stage="teacher_rl", data={"state": "running", "index": 0, "count": 2}),
    event("message", stage="teacher_rl", message="loading libraries and models"),
    event("metrics", stage="teacher_rl", step=3, data={"steps": 30, "metrics": {"reward_mean": 0.4567}}),
]


def test_the_board_follows_a_job() -> None:
    board = Board.of({"teacher_rl": "teacher_rl", "opd": "opd"})
    for one in RUN[:3]:
        board.take(one)
    assert board.running is not None
    assert board.running.told == "loading libraries and models"
    board.take(RUN[3])
    assert board.running.count == "3/30"
    assert board.running.told == "reward mean 0.457"
    assert board.rows["opd"].state == "waiting"
    board.take(event("stage", stage="teacher_rl", data={"state": "succeeded", "steps": 7, "seconds": 5.0}))
    assert board.running is None
    assert board.rows["teacher_rl"].line().startswith("teacher_rl  succeeded  3/30  reward mean 0.457")


def test_a_stage_of_a_job_that_ended_no_longer_runs() -> None:
    for state, left in (("failed", "failed"), ("cancelled", "waiting"), ("queued", "waiting")):
        board = Board()
        for one in RUN:
            board.take(one)
        assert board.take(event("state", data={"state": state})) == f"job {state}"
        assert board.running is None
        assert board.rows["teacher_rl"].state == left


def test_gates_and_warnings_are_kept_as_lines() -> None:
    board = Board()
    assert board.take(event("gate", stage="warmup", message="C2 holds")) == "warmup: C2 holds"
    killed = event("message", level="warn", stage="opd", message="killed by signal 9")
    assert board.take(killed) == "warning: opd: killed by signal 9"
    assert board.take(event("checkpoint", stage="opd", message="checkpoint-5 written", step=5)) is None


def test_without_a_terminal_a_line_comes_even_when_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PLAIN_LINE_S", 0.3)
    out = io.StringIO()
    with Progress(Console(file=out, width=100), {"teacher_rl": "teacher_rl", "opd": "opd"}) as shown:
        for one in RUN:
            shown.take(one)
        time.sleep(1.2)
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["job running", "teacher_rl  running  0 s"]
    assert len([line for line in lines[2:] if line.startswith("teacher_rl  running  3/30  reward mean 0.457")]) >= 2


def test_on_a_terminal_something_moves_all_the_time() -> None:
    out = io.StringIO()
    with Progress(
        Console(file=out, width=100, force_terminal=True), {"teacher_rl": "teacher_rl", "opd": "opd"}
    ) as shown:
        frames = set()
        for one in (None, *RUN):
            if one is not None:
                shown.take(one)
            before = len(out.getvalue())
            time.sleep(0.4)
            frames.add(out.getvalue()[before:])
    assert "" not in frames
    assert "job running" not in out.getvalue().split("3/30")[-1]
    assert "3/30" in out.getvalue()
    assert "reward mean 0.457" in out.getvalue()


def test_the_report_is_shown_with_intervals_and_its_path(tmp_path: Path) -> None:
    def arm(model: str, label: str, mean: float) -> dict[str, Any]:
        measured = {"avg_at_k": mean, "low": mean - 0.01, "high": mean + 0.01, "k": 4, "problems": 1000}
        return {
            "model": model,
            "label": label,
            "pass_at_k": [],
            "truncated": 0.0,
            "arm": "workflow",
            "labels_used": 512,
            "updates": 140,
            "flops": 1e12,
            "seconds": 61.2,
        } | (measured)

    report = {
        "complete": True,
        "arms": [arm("rl_student", "student after RL (3)", 0.947), arm("direct_grpo", "direct GRPO", 0.282)],
        "comparisons": [{"arm": "rl_student", "baseline": "direct_grpo", "gain": 0.665, "low": 0.64, "high": 0.69}],
        "stages": [
            {
                "id": "opd",
                "arm": "workflow",
                "kind": "opd",
                "steps": 90,
                "tokens": 123456,
                "flops": 1e12,
                "seconds": 37.4,
                "labels": 0,
                "dropped_prompts": 0,
            },
        ],
        "gates": [],
        "labels": {"teacher_rl": 512, "student_rl": 512, "validation": 256, "test": 1000},
        "ledger": [],
        "curves": {},
        "provenance": {
            "teacher": "t",
            "student": "s",
            "verifier": "math",
            "plan_id": "plan_x",
            "plan_sha256": "x",
            "data_sha256": {},
            "seed": 0,
            "versions": {},
            "hardware": {},
            "created_at": "now",
        },
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    out = io.StringIO()
    show_report(Console(file=out, width=120), path)
    told = out.getvalue()
    for words in ("94.7%", "93.7% to 95.7%", "512", "61", "+66.5% (+64.0% to +69.0%)", "123,456", f"report: {path}"):
        assert words in told
