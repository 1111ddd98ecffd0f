"""`s2d plan --what-if`: options with several values, and the table in each form."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from s2d.cli.app import app
from s2d.cli.client import Client
from s2d.errors import InvalidPlan
from s2d.plan.whatif import WhatIfRequest, WhatIfRow

PAIR = ("--teacher", "Qwen/Qwen3-8B", "--student", "Qwen/Qwen3-1.7B")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("S2D_ALLOW_HUB", "false")
    monkeypatch.setenv("S2D_STATE_DIR", str(tmp_path / "state"))


def what_if(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["plan", "--what-if", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def read(text: str) -> list[WhatIfRow]:
    return [WhatIfRow.model_validate_json(line) for line in text.splitlines()]


def test_several_values_are_given_with_commas_or_again() -> None:
    arguments = ("--labels", "500,1000", "--labels", 2000, "--gpu", "H100,A100", "--devices", "1,4", "--format", "json")
    rows = read(what_if(*PAIR, *arguments))
    seen = [(row.asked.hardware.name, row.asked.hardware.devices, row.asked.labeled_budget) for row in rows]
    assert seen == [(g, d, n) for g in ("H100", "A100") for d in (1, 4) for n in (500, 1000, 2000)]
    assert all(row.feasible for row in rows)


def test_pairs_and_fields_are_varied_and_the_rest_is_the_plans(tmp_path: Path) -> None:
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"unlabeled_prompts": 3000, "hardware": {"name": "A100", "devices": 4}}))
    rows = read(
        what_if(
            "--pair", "Qwen/Qwen3-8B,Qwen/Qwen3-1.7B", "--pair", "Qwen/Qwen3-4B, Qwen/Qwen3-0.6B",
            "--vary", "lora=true,null", "--labels", 800, "--price", 2, "--options", options, "--format", "json",
        )
    )  # fmt: skip
    assert [(row.asked.teacher, row.asked.lora) for row in rows] == [
        (teacher, lora) for teacher in ("Qwen/Qwen3-8B", "Qwen/Qwen3-4B") for lora in (True, None)
    ]
    for row in rows:
        assert row.outcome is not None
        assert (row.outcome.hardware.devices, row.outcome.hardware.price_per_hour) == (4, 2)
        assert row.outcome.cost is not None
        assert row.asked.unlabeled_prompts == 3000


def test_a_table_for_people_tells_each_note_once() -> None:
    page = what_if(*PAIR, "--labels", "500,1000,2000", "--gpu", "H100,4090", "--vary", "lora=false")
    header, *lines = page.splitlines()
    assert header.split()[:3] == ["machine", "labels", "fits"]
    assert "lora" not in header.lower().replace("lora in", "")
    assert [line.split()[:3] for line in lines[:6]] == [
        [gpu, labels, "no"] for gpu in ("H100", "4090") for labels in ("500", "1,000", "2,000")
    ]
    assert page.count("GiB too much") == 2


def test_markdown_and_csv_say_the_same() -> None:
    arguments = (*PAIR, "--labels", "3,1000", "--gpu", "H100", "--price", 2)
    markdown = what_if(*arguments, "--format", "markdown").splitlines()
    refused, planned = csv.DictReader(io.StringIO(what_if(*arguments, "--format", "csv")))
    assert markdown[2].startswith("| 3 | no |")
    assert (refused["feasible"], refused["refusal"]) == ("False", "invalid_plan")
    assert f"1. {refused['message']}" in markdown
    assert planned["labels_teacher_rl"] == markdown[3].split(" | ")[2]
    assert float(planned["cost_high"]) == pytest.approx(2 * float(planned["device_hours_high"]))
    assert float(planned["seconds_high"]) == pytest.approx(3600 * float(planned["device_hours_high"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--labels", "500,1000"), "labeled_budget need --what-if"),
        (("--labels", 500, "--vary", "lora=true"), "lora need --what-if"),
        (("--labels", 500, "--format", "csv"), "csv needs --what-if"),
        (("--what-if", "--labels", 500, "--out", "plan.json"), "no plan to keep"),
        (("--what-if", "--labels", "500,many"), "many"),
        (("--what-if", "--labels", 500, "--vary", "lora=yes"), "is not FIELD=VALUE"),
        (("--what-if", "--labels", 500, "--pair", "one"), "is not TEACHER,STUDENT"),
        (("--what-if", "--labels", "500,600", "--vary", "labeled_budget=1,2"), "varied by two options"),
    ],
)
def test_wrong_usage_is_said(arguments: tuple[object, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["plan", *PAIR, *map(str, arguments)])
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())


def test_a_field_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="epochs"):
        what_if(*PAIR, "--labels", 500, "--vary", "epochs=1,2")


class Service:
    """Answers with rows that were made here."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, WhatIfRequest]] = []

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None: ...

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = WhatIfRequest.model_validate(body)
        self.asked.append((path, request))
        asked = {**PAIR_FIELDS, "labeled_budget": 500}
        refusal = {"code": "invalid_plan", "message": "It is the service that says no.", "param": None}
        return {"varied": request.varied, "rows": [{"asked": asked, "feasible": False, "refusal": refusal}]}


PAIR_FIELDS = {"teacher": "Qwen/Qwen3-8B", "student": "Qwen/Qwen3-1.7B"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service()
    monkeypatch.setattr(Client, "connect", lambda *_: made)
    return made


def test_the_service_makes_the_table_when_asked(service: Service) -> None:
    out = what_if(*PAIR, "--labels", "500,700", "--gpu", "H100", "--remote", "--format", "markdown")
    assert "1. It is the service that says no." in out
    ((path, request),) = service.asked
    assert path == "/v1/what-if"
    assert request.plan.model_fields_set == {"teacher", "student", "labeled_budget", "hardware"}
    assert request.vary.labeled_budget == (500, 700)
