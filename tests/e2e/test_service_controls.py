"""A user's own file and every control arm, once through HTTP, Celery, Redis and a worker, and once as `s2d train`.

One plan document makes both runs, and all that may differ between them is time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import warm_stages
from service_testing import Client, start
from sqlalchemy import select
from tiny import SHORT

from s2d.data.rows import read_rows
from s2d.demo.task import write_jsonl
from s2d.plan.document import Plan, load_plan
from s2d.plan.names import Control
from s2d.rollouts.prompts import render
from s2d.runner.layout import JobLayout
from s2d.runner.ledger import Ledger, Spent
from s2d.runner.local import run_plan
from s2d.stages.models import tokenizer_of
from s2d.store.database import Database
from s2d.store.tables import LedgerRow
from s2d.verifiers.pool import GradingPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PATIENCE_S = 1500.0
RATES = [3e-4, 1e-3]
STEPS: dict[str, dict[str, Any]] = {
    "teacher_rl": {"steps": 2},
    "warmup": {"steps": 2, "max_steps": 3},
    "opd": {"steps": 2},
    "student_rl": {"steps": 2},
    # Wide steps: it goes on to the FLOPs of the whole workflow, and many short ones take longer.
    "direct_grpo": {"steps": 2, "prompts_per_step": 32, "learning_rates": RATES},
}
#: Every control. C2 is out of reach, so the number of warmup steps that controls match is measured, not planned.
OPTIONS: dict[str, Any] = {
    "controls": get_args(Control),
    "compute_matched": True,
    "prompt": {"suffix": " Go:"},
    "stages": {name: {**given, **STEPS.get(name, {})} for name, given in SHORT["stages"].items()},
    "gates": {"c2": {"max_kl": 1e-6, "prompts": 8}},
}


MATCHED = tuple(f"{name}_compute" for name in ("direct_grpo", "raw_teacher_bridge", "opd_only", "warmup_only"))
COMPARED = ["base", "direct_grpo", "workflow"]
#: Of each arm.
ANSWERS = 2


@dataclass(frozen=True)
class Both:
    """What the service has shown and kept of its job, and the folder of the local run beside the job's own."""

    plan: Plan
    shown: dict[str, Any]
    report: dict[str, Any]
    labels: list[dict[str, Any]]
    database: list[Spent]
    models: list[dict[str, Any]]
    compared: dict[str, Any]
    rows: Path
    service: JobLayout
    local: JobLayout

    @property
    def local_report(self) -> dict[str, Any]:
        return dict(json.loads((self.local.report / "report.json").read_text()))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    root = tmp_path_factory.mktemp("both")
    upload = root / "mine.jsonl"
    write_jsonl(upload, 200, 100, seed=2026)
    # A lease for a machine that is busy twice: both runs go at once.
    with start(root, lease_s=60.0, stage_command=warm_stages.command(1)) as service:
        client = Client(service)
        file_id = client.upload(upload)
        plan_id = client.plan(file_id, **OPTIONS)
        job = client.start(plan_id, file_id)
        plan = load_plan(client.http.get(f"/plans/{plan_id}").text)
        outcome = run_plan(plan, upload, root / "local", lambda _: None, command=warm_stages.command)
        assert outcome.state == "succeeded", outcome.error
        shown = client.wait(job, "succeeded", patience_s=PATIENCE_S)
        report = client.http.get(f"/jobs/{job}/report").json()
        labels = client.http.get(f"/jobs/{job}/labels").json()["data"]
        models = client.http.get("/models").json()["data"]
        database, layout = spent(service.settings.database, job), JobLayout(service.settings.job_dir(job))
        label = next(entry.label for entry in database if entry.role == "teacher_rl")
        question = {"job": job, "row": label, "arms": COMPARED, "n": ANSWERS, "seed": 1}
        compared = client.http.post("/compare", json=question, timeout=PATIENCE_S).json()
    rows = root / "local" / "rows.jsonl"
    return Both(plan, shown, report, labels, database, models, compared, rows, layout, JobLayout(root / "local"))


def spent(url: str, job: str) -> list[Spent]:
    """The ledger in the database, label by label."""
    with Database(url).read() as session:
        rows = session.scalars(select(LedgerRow).where(LedgerRow.job_id == job))
        return [Spent(label=row.label_id, role=row.role, arm=row.arm, stage=row.stage) for row in rows]


def without_time(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nor memory: both are the machine's, and another process takes a little more or less of them."""
    return [{name: value for name, value in row.items() if name not in ("seconds", "peak_memory_gib")} for row in rows]


def in_order(rows: Iterable[Spent | dict[str, Any]]) -> list[str]:
    return sorted(str(sorted(dict(row).items())) for row in rows)


def test_every_stage_of_the_plan_has_succeeded(both: Both) -> None:
    assert both.plan.controls == get_args(Control)
    states = {stage["id"]: stage["state"] for stage in both.shown["stages"]}
    assert states == dict.fromkeys(both.plan.ids(), "succeeded")
    assert both.shown["plan"] == both.plan.id == both.report["provenance"]["plan_id"]
    assert without_time(both.report["stages"]) == without_time(both.local_report["stages"])


def test_every_arm_has_the_same_accuracy_updates_labels_and_flops(both: Both) -> None:
    arms = {arm["model"]: arm for arm in both.report["arms"]}
    assert set(arms) >= {"base_teacher", "rl_teacher", "base_student", "rl_student", *get_args(Control), *MATCHED}
    told = {"avg_at_k", "low", "high", "updates", "labels_used", "flops"}
    assert all(told <= set(arm) for arm in arms.values())
    assert without_time(arms.values()) == without_time(both.local_report["arms"])
    assert both.report["comparisons"] == both.local_report["comparisons"]


def test_every_model_is_the_same_byte_for_byte(both: Both) -> None:
    made = {arm["model"] for arm in both.report["arms"]} - {"base_teacher", "base_student"}
    for name in made:
        one, other = (layout.model(name) / "model.safetensors" for layout in (both.service, both.local))
        assert one.read_bytes() == other.read_bytes(), name


def test_the_gates_have_measured_the_same(both: Both) -> None:
    gates = both.report["gates"]
    assert {(gate["arm"], gate["gate"]) for gate in gates} >= {("workflow", "c1"), ("workflow", "c2")}
    assert all(gate["measured"] for gate in gates)
    assert gates == both.local_report["gates"]


def test_the_ledgers_are_equal_entry_by_entry(both: Both) -> None:
    entries = Ledger(both.local.ledger).read()
    assert entries
    assert Ledger(both.service.ledger).read() == entries
    assert in_order(both.database) == in_order(entries)
    assert both.report["ledger"] == both.local_report["ledger"]
    assert in_order(both.labels) == in_order(both.local_report["ledger"])


def test_every_arm_has_left_a_student(both: Both) -> None:
    first = both.shown["student"]
    others = ("base", *get_args(Control), *MATCHED)
    assert {model["id"]: model["arm"] for model in both.models} == {
        first: "workflow",
        **{f"{first}.{arm}": arm for arm in others},
    }
    assert both.models[0]["id"] == first, "who takes the newest takes no control"


def test_the_arms_are_asked_the_same_labeled_row_as_in_the_evaluation(both: Both) -> None:
    row = both.compared["row"]
    (known,) = [one for one in read_rows(both.rows) if one.id == row["id"]]
    assert (row["line"], row["answer"], row["role"]) == (known.line, known.answer, "teacher_rl")
    assert [arm["arm"] for arm in both.compared["arms"]] == COMPARED
    prompt = render(known, tokenizer_of(both.plan, "base_student", both.plan.student.name))
    for arm in both.compared["arms"]:
        assert arm["error"] is None
        assert arm["usage"]["prompt_tokens"] == ANSWERS * len(prompt.ids), "with the plan's suffix, the base too"
        pairs = [(answer["text"], str(known.answer)) for answer in arm["answers"]]
        with GradingPool(both.plan.verifier) as pool:
            rewards = [grade.reward for grade in pool.grade(pairs)]
        assert [answer["reward"] for answer in arm["answers"]] == rewards
        assert len(rewards) == ANSWERS
    seen = {arm["arm"]: arm["label_seen_by"] for arm in both.compared["arms"]}
    assert seen == {"base": [], "direct_grpo": ["direct_grpo_1", "direct_grpo_2"], "workflow": ["teacher_rl"]}
