"""`s2d chat --compare`: what it asks the service, and how answers look on a terminal and elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from s2d.cli import compare as arms
from s2d.cli.app import app
from s2d.cli.client import Client


def arm(name: str, text: str, reward: float | None = None, **more: Any) -> dict[str, Any]:
    outcome = {None: None, 1.0: "correct"}.get(reward, "wrong")
    answers = [{"text": text, "finish_reason": "stop", "reward": reward, "outcome": outcome}]
    plain = {"model": f"student-1.{name}", "usage": None, "seconds": 1.25, "label_seen_by": [], "error": None}
    return {"arm": name, "answers": answers, **plain, **more}


def failed(name: str) -> dict[str, Any]:
    return arm(name, "", answers=[], error={"code": "student_server_failed", "detail": "it ended while starting"})


COMPARED: dict[str, Any] = {
    "row": {"id": "0" * 32, "line": 7, "answer": "4", "role": "test"},
    "arms": [
        arm("base", "[bold]five[/] :smile:", 0.0),
        failed("direct_grpo"),
        arm("workflow", "four", 1.0, label_seen_by=["teacher_rl"]),
    ],
}


class Service:
    """Answers as it is told to and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.compared = COMPARED

    def get(self, path: str, **_: Any) -> Any:
        students = [{"id": "student-1.base", "arm": "base"}, {"id": "student-1", "arm": "workflow"}]
        return {"data": students} if path == "/v1/models" else {"job": f"job_of_{path.rsplit('/', 1)[-1]}"}

    def post(self, path: str, body: Any, *, patience_s: float) -> Any:
        assert (path, patience_s) == ("/v1/compare", arms.PATIENCE_S)
        self.asked.append(body)
        return self.compared

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    made = Service()
    monkeypatch.setattr(Client, "connect", lambda *_: made)
    return made


def shown(width: int | None) -> str:
    out = io.StringIO()
    arms.show(Console(file=out, force_terminal=width is not None, width=width or 160, no_color=True), COMPARED)
    return out.getvalue()


def test_elsewhere_than_on_a_terminal_one_comes_below_the_other() -> None:
    assert shown(None).splitlines() == [
        "Row 7 (test): the answer is 4.",
        "",
        "== base: ✗; 1.2 s",
        "[bold]five[/] :smile:",
        "",
        "== direct_grpo: no answer",
        "it ended while starting",
        "",
        "== workflow: ✓; 1.2 s; had this label in teacher_rl",
        "four",
    ]


def test_on_a_terminal_they_are_columns_while_there_is_room() -> None:
    wide = shown(120).splitlines()
    (heads,) = [line for line in wide if "direct_grpo" in line]
    (marks,) = [line for line in wide if "✓" in line]
    (texts,) = [line for line in wide if "four" in line]
    assert "base" in heads
    assert "✗" in marks
    assert "[bold]five[/] :smile:" in texts
    assert "it ended while starting" in texts
    assert "== base" in shown(60)


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["2+2?"], {"job": "job_of_student-1", "messages": [{"role": "user", "content": "2+2?"}]}),
        (["--row", "7"], {"job": "job_of_student-1", "row": 7}),
        (["--row", "1" * 32], {"job": "job_of_student-1", "row": "1" * 32}),
        (["--model", "job_9", "--row", "7"], {"job": "job_9", "row": 7}),
        (["--model", "student-2.base", "--row", "7"], {"job": "job_of_student-2.base", "row": 7}),
        (
            ["--row", "7", "--arm", "base", "--arm", "workflow"],
            {"job": "job_of_student-1", "row": 7, "arms": ["base", "workflow"]},
        ),
    ],
)
def test_what_is_asked(service: Service, arguments: list[str], body: dict[str, Any]) -> None:
    done = CliRunner().invoke(app, ["chat", "--compare", *arguments])
    assert done.exit_code == 0, done.output
    assert service.asked == [body]
    assert "== workflow: ✓" in done.output


def test_each_line_is_a_question_of_its_own(service: Service) -> None:
    done = CliRunner().invoke(app, ["chat", "--compare"], input="2+2?\n3+3?\n\n4+4?\n")
    assert done.exit_code == 0, done.output
    assert [len(body["messages"]) for body in service.asked] == [1, 1]
    assert [body["messages"][0]["content"] for body in service.asked] == ["2+2?", "3+3?"]


def test_it_fails_when_no_arm_answers(service: Service) -> None:
    service.compared = COMPARED | {"arms": [failed("base"), failed("workflow")]}
    assert CliRunner().invoke(app, ["chat", "--compare", "2+2?"]).exit_code == 1


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("arguments", [["--row", "7"], ["--arm", "base"], ["--compare", "--row", "7", "2+2?"]])
def test_options_that_would_do_nothing_are_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["chat", *arguments]).exit_code == 2


def test_verifier_trouble_and_partial_rewards_are_told() -> None:
    hung = arm("base", "", 0.0)
    hung["answers"][0]["outcome"] = "timeout"
    assert arms._mark(hung) == "✗ (verifier: timeout); 1.2 s"
    assert arms._mark(arm("base", "", 0.5)) == "0.50; 1.2 s"
    assert arms._mark(arm("base", "")) == "1.2 s"
