"""What may be deleted of a job, what never, and how much of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.runner import retention
from s2d.runner.layout import JobLayout
from s2d.runner.retention import TRASH, Ended, Leftover, beyond, remove, resumable, set_aside, spent
from s2d.runner.retention import remains as remains_of
from s2d.settings import Settings
from s2d.stages.checkpoints import newest_valid, seal

#: Below a job and below each stage: what stays, whatever happens.
KEPT = (
    "plan.json", "ledger.jsonl", "heartbeat-1", "trainer.lock", "models/rl_teacher/model.safetensors",
    "data/split.json", "data/.test.jsonl.1.tmp", "rollouts/teacher_rollouts/.part-0.jsonl.1.tmp",
    "rollouts/teacher_rollouts/part-0.jsonl", "evaluations/a.json", "report/report.json", "report/.report.md.9.tmp",
)  # fmt: skip
KEPT_OF_STAGE = (
    "events-001.jsonl", "log-001.txt", "task-1-001.json", "micro_batch", "rolled_back", "checkpoints/README.md",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    result: bool
    checkpoints: int
    quarantined: int
    teacher: bool
    trash: bool


@dataclass(frozen=True)
class Job:
    ended_s: float | None
    stages: tuple[Stage, ...]


STAGE = st.builds(Stage, st.booleans(), st.integers(0, 2), st.integers(0, 2), st.booleans(), st.booleans())
JOB = st.builds(Job, st.none() | st.integers(0, 20).map(float), st.lists(STAGE, max_size=3).map(tuple))


def write(path: Path, size: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def make(root: Path, job: Job) -> JobLayout:
    """The job's folder. A checkpoint has 10 bytes."""
    for name in KEPT:
        write(root / name)
    write(root / ".plan.json.12.tmp")
    write(root / "evaluations" / ".test-a.json.12.tmp")
    for number, stage in enumerate(job.stages):
        folder = root / "stages" / f"s{number}"
        for name in KEPT_OF_STAGE:
            write(folder / name)
        write(folder / ".failure.json.12.tmp")
        if stage.result:
            write(folder / "result.json")
        for step in range(stage.checkpoints):
            write(folder / f"checkpoints/checkpoint-{step + 1}/model.safetensors", 6)
            write(folder / f"checkpoints/checkpoint-{step + 1}/deep/state.json", 4)
        for index in range(stage.quarantined):
            write(folder / f"checkpoints/quarantine-{index}-checkpoint-9/model.safetensors")
        if stage.teacher:
            write(folder / "teacher/0.safetensors")
        if stage.trash:
            write(folder / f"checkpoints/{TRASH}ab-checkpoint-7/model.safetensors")
            write(folder / f"{TRASH}ab-teacher/0.safetensors")
    return JobLayout(root)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def may_go(name: str, job: Job) -> bool:
    """Said once more, by the path alone."""
    parts = name.split("/")
    if parts[0] != "stages":
        return job.ended_s is not None and name in (".plan.json.12.tmp", "evaluations/.test-a.json.12.tmp")
    stage, below = job.stages[int(parts[1][1:])], parts[2:]
    if any(part.startswith(TRASH) for part in below):
        return True
    if below[0] == "checkpoints" and below[1].startswith(("checkpoint-", "quarantine-")):
        return stage.result or job.ended_s is not None
    if below[0] == "teacher":
        return stage.result
    return job.ended_s is not None and below == [".failure.json.12.tmp"]


def clean(layouts: dict[str, JobLayout], jobs: dict[str, Job], budget_bytes: float, max_age_s: float) -> list[Leftover]:
    """A turn of the janitor, without its database."""
    going = [one for layout in layouts.values() for one in spent(layout)]
    ended = []
    for name, layout in layouts.items():
        ended_s = jobs[name].ended_s
        if ended_s is not None:
            going += remains_of(layout)
            ended.append(Ended(name, ended_s, tuple(resumable(layout))))
    for chosen in beyond(ended, budget_bytes=budget_bytes, max_age_s=max_age_s):
        going += chosen.job.checkpoints
    for one in going:
        hidden = set_aside(one)
        assert hidden is not None
        remove(hidden)
    return going


def left_in(layout: JobLayout) -> int:
    return sum(one.bytes for one in resumable(layout))


@settings(max_examples=50, deadline=None)
@given(jobs=st.lists(JOB, min_size=1, max_size=4), budget=st.integers(0, 100), age=st.integers(0, 20))
def test_only_what_may_go_goes_and_the_rest_is_within_the_limits(jobs: list[Job], budget: int, age: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        named = {f"job_{number}": job for number, job in enumerate(jobs)}
        layouts = {name: make(Path(folder) / name, job) for name, job in named.items()}
        before = {name: files(layout.root) for name, layout in layouts.items()}
        had = {name: left_in(layout) for name, layout in layouts.items()}
        clean(layouts, named, budget, age)
        for name, job in named.items():
            gone = before[name] - files(layouts[name].root)
            assert [one for one in gone if not may_go(one, job)] == []
            assert files(layouts[name].root) <= before[name], "nothing is left under another name"
            if job.ended_s is None:
                assert left_in(layouts[name]) == had[name], "it may still run and has lost a checkpoint"
            assert left_in(layouts[name]) in (0, had[name]), "it has lost some of its checkpoints"
        ended = {name: job.ended_s for name, job in named.items() if job.ended_s is not None}
        left = {name: left_in(layouts[name]) for name in ended}
        assert sum(left.values()) <= budget
        assert all(not left[name] for name, ended_s in ended.items() if ended_s > age)
        assert clean(layouts, named, budget, age) == [], "a second turn finds nothing"


def ended_job(name: str, ended_s: float, size: int) -> Ended:
    return Ended(name, ended_s, (Leftover(Path(name), size, "opd"),))


@given(
    given_jobs=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), max_size=8),
    budget=st.integers(0, 100),
    age=st.integers(0, 20),
)
def test_who_ended_first_loses_first_and_no_more_than_the_limits_ask(
    given_jobs: list[tuple[int, int]], budget: int, age: int
) -> None:
    jobs = [ended_job(str(number), *about) for number, about in enumerate(given_jobs)]
    chosen = beyond(jobs, budget_bytes=budget, max_age_s=age)
    gone = [one.job for one in chosen]
    left = [job for job in jobs if job not in gone]
    assert sum(job.bytes for job in left) <= budget
    assert all(job.ended_s <= age for job in left)
    assert all(kept.ended_s <= job.ended_s for kept in left for job in gone)
    assert [one.limit for one in chosen] == ["age" if job.ended_s > age else "budget" for job in gone]
    if chosen and chosen[-1].limit == "budget":
        assert sum(job.bytes for job in [*left, gone[-1]]) > budget, "more went than had to"


def test_of_a_job_that_may_still_run_only_finished_stages_are_cleaned(tmp_path: Path) -> None:
    stages = (Stage(True, 2, 1, True, False), Stage(False, 2, 1, True, True))
    layout = make(tmp_path, Job(None, stages))
    assert {str(one.path.relative_to(tmp_path / "stages")) for one in spent(layout)} == {
        "s0/checkpoints/checkpoint-1", "s0/checkpoints/checkpoint-2", "s0/checkpoints/quarantine-0-checkpoint-9",
        "s0/teacher", f"s1/{TRASH}ab-teacher", f"s1/checkpoints/{TRASH}ab-checkpoint-7",
    }  # fmt: skip


def test_past_the_age_limit_all_go_however_small() -> None:
    jobs = [ended_job("new", 1, 5), ended_job("old", 30, 1), ended_job("middle", 9, 5)]
    assert [(one.job.job_id, one.limit) for one in beyond(jobs, budget_bytes=5, max_age_s=20)] == [
        ("old", "age"),
        ("middle", "budget"),
    ]
    assert [one.job.job_id for one in beyond(jobs, budget_bytes=10, max_age_s=20)] == ["old"]
    assert beyond(jobs, budget_bytes=11, max_age_s=30) == []


def test_a_resume_sees_nothing_of_what_was_set_aside(tmp_path: Path) -> None:
    layout = JobLayout(tmp_path)
    root = layout.stage("opd") / "checkpoints"
    for step in (2, 4):
        write(root / f"checkpoint-{step}" / "model.safetensors", 100)
        about = {"plan_id": "plan_1", "stage": "opd", "sampler_position": 0, "labels_spent": 0}
        seal(root / f"checkpoint-{step}", step=step, **about)
    assert newest_valid(root, "plan_1") == root / "checkpoint-4"
    for one in resumable(layout):
        assert set_aside(one) is not None
        assert set_aside(one) is None, "somebody else was first"
    assert newest_valid(root, "plan_1") is None
    assert len(list(root.iterdir())) == 2
    assert all(path.name.startswith(TRASH) for path in root.iterdir())


def test_a_crash_in_the_middle_of_deleting_is_cleaned_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException): ...

    def half(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise Killed

    layout = make(tmp_path, Job(None, (Stage(True, 1, 0, False, False),)))
    (one,) = spent(layout)
    hidden = set_aside(one)
    assert hidden is not None
    with monkeypatch.context() as patch:
        patch.setattr(retention.shutil, "rmtree", half)
        with pytest.raises(Killed):
            remove(hidden)
    (rest,) = spent(layout)
    assert rest.bytes == 4
    place = set_aside(rest)
    assert place == rest.path
    remove(place)
    remove(place)
    assert spent(layout) == []


def test_what_a_link_points_to_is_left_alone(tmp_path: Path) -> None:
    layout = make(tmp_path / "job", Job(5.0, (Stage(False, 1, 0, False, False), Stage(True, 0, 0, False, False))))
    write(tmp_path / "elsewhere" / "model.safetensors")
    for name in ("s0/checkpoints/checkpoint-8", "s1/checkpoints/checkpoint-8", "s1/teacher"):
        (tmp_path / "job" / "stages" / name).symlink_to(tmp_path / "elsewhere")
    found = [*spent(layout), *remains_of(layout), *resumable(layout)]
    assert [one.path.name for one in found if one.path.is_symlink()] == []


def test_a_folder_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    layout = JobLayout(tmp_path / "nothing")
    assert [*spent(layout), *remains_of(layout), *resumable(layout)] == []


def test_the_defaults_are_those_that_the_guide_names() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "deploy.md").read_text()
    for name in ("checkpoint_budget_gib", "checkpoint_days"):
        row = next(line for line in guide.splitlines() if line.startswith(f"| `S2D_{name.upper()}` |"))
        assert row.endswith(f"| {Settings.model_fields[name].default:g} |")
