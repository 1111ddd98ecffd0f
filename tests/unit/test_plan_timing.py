"""How long stages take: the formulas, and what machines that have run some teach them."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_pair import CPU, config, policy, write_model, write_pair

from benchmarks.planner.times import judged
from s2d.errors import InvalidPlan
from s2d.plan.calibration import LEAST_SPREAD, Ran, calibrate, middle_of, ratio
from s2d.plan.document import Plan, Training
from s2d.plan.machine import Factor, Hardware, Rates
from s2d.plan.machines import UNPROBED, Machines, kind_of
from s2d.plan.models import ModelPolicy, read_model
from s2d.plan.names import StageKind
from s2d.plan.request import PlanRequest
from s2d.plan.service import make_plan
from s2d.plan.timing import PROBED, Generate, Lengths, StageWork, Train, cost, expected_s, guessed
from s2d.plan.work import Ground, lengths, work
from s2d.runner import observed
from s2d.runner.layout import JobLayout
from s2d.runner.observed import remember
from s2d.runner.task import StageResult

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
GPU = Hardware(device="cuda", devices=1, memory_gib=80, cpu_threads=8, name="H100", tflops=989, bandwidth_gbs=3350)
BIG, SMALL = (read_model(f"Qwen/Qwen3-{size}", ModelPolicy(allow_hub=False)) for size in ("8B", "1.7B"))
RATES = Rates(
    flops=1e11,
    bytes=1e10,
    decode_step_s=1e-3,
    decode_layer_s=1e-3,
    micro_batch_s=1e-2,
    micro_layer_s=1e-3,
    step_s=1e-2,
    start_s=5,
    load_bytes=1e9,
)


def high(steps: int, devices: int = 1, **train: Any) -> float:
    hardware = GPU.model_copy(update={"devices": devices})
    generate = Generate(SMALL, steps * 64, 64 // devices, devices)
    trained = replace(Train(SMALL, steps, 64, 8, True, (BIG,)), **train)
    return cost("warmup", hardware, Lengths(150, 2048), StageWork((generate,), (trained,))).seconds.high


def test_time_falls_with_devices_and_rises_with_work() -> None:
    assert high(100, devices=8) < high(100) < high(200)
    assert high(100, checkpoint=False) < high(100)
    assert high(100, scorers=()) < high(100)
    assert high(100, micro_batch=16) < high(100)


def test_an_adapter_saves_the_gradients_of_the_weights_and_nearly_all_of_the_optimizer() -> None:
    assert high(100, lora=True) < high(100)


def test_a_known_length_of_completions_takes_its_part_out_of_the_range() -> None:
    done = StageWork((Generate(SMALL, 640, 64, 1),))
    known = GPU.model_copy(update={"calibration": calibrate(RATES, [], PROBED)})
    unknown, told = (cost("opd", known, Lengths(150, 2048, mean), done) for mean in (None, 700.0))
    assert told.tokens.low == told.tokens.high == 640 * 700
    assert unknown.seconds.low < told.seconds.low < told.seconds.high < unknown.seconds.high


def test_the_cpu_range_holds_what_a_probe_measured(tmp_path: Path) -> None:
    """Student GRPO, 256 sequences a step, 13 + 14 tokens: 0.295 s a step in stock TRL, 0.105 s in a plain loop."""
    student = read_model(str(write_model(tmp_path / "m", config(48, 2, 4, 192, vocab_size=32))), policy(tmp_path))
    one_core = CPU.model_copy(update={"cpu_threads": 1, "tflops": 0.1})
    done = StageWork((Generate(student, 200 * 256, 256, 1),), (Train(student, 200, 256, 256, False),))
    seconds = cost("student_rl", one_core, Lengths(13, 14), done).seconds
    assert seconds.low < 200 * 0.295 < seconds.high


# --- what machines teach --------------------------------------------------------------------------------------------


def plan_on(folder: Path, machines: Machines | None = None, **fields: Any) -> Plan:
    if not (folder / "teacher").exists():
        write_pair(folder)
    base = {"teacher": str(folder / "teacher"), "student": str(folder / "student"), "labeled_budget": 400}
    return make_plan(PlanRequest.model_validate(base | fields), None, CPU, policy(folder), machines)


def as_expected(plan: Plan, name: str, rates: Rates, times: float = 1.0, completion: float = 100.0) -> Ran:
    """The stage, had it drawn completions of this length and taken so many times what the rates give."""
    ground, stage = Ground.of(plan), plan.stage(name)
    done, long = work(ground, plan.stages, stage), lengths(ground, stage)
    if trained := sum(part.steps * part.sequences for part in done.train):
        tokens = trained * (long.prompt + completion)
    else:
        tokens = completion * sum(part.sequences for part in done.generate)
    seconds = times * expected_s(plan.hardware, rates, long, completion, done)
    return Ran(name, seconds, round(tokens), getattr(stage, "steps", 0))


def test_a_stage_that_took_what_was_expected_has_the_ratio_one(tmp_path: Path) -> None:
    plan = plan_on(tmp_path, controls=["direct_grpo", "raw_teacher_bridge"], lora=True)
    for stage in plan.ids():
        assert ratio(plan, as_expected(plan, stage, RATES), RATES) == pytest.approx(1, rel=1e-3)
        assert ratio(plan, as_expected(plan, stage, RATES, times=3), RATES) == pytest.approx(3, rel=1e-3)


@given(st.floats(0.05, 20), st.integers(20, 60))
def test_many_alike_are_believed(often: float, count: int) -> None:
    seen: list[tuple[StageKind, float]] = [("opd", often)] * count
    factor = calibrate(RATES, seen, UNPROBED).factor("opd")
    assert abs(math.log(factor.middle / often)) < 0.4
    assert factor.spread >= LEAST_SPREAD
    # A kind that was never seen is drawn along, and believed less.
    other = calibrate(RATES, seen, UNPROBED).factor("teacher_rl")
    assert abs(math.log(other.middle / often)) < 0.4
    assert other.spread > factor.spread


def as_factor(one: Factor) -> Factor:
    return Factor(middle=one.middle, spread=one.spread)


def test_nothing_seen_is_what_was_believed() -> None:
    before = Factor(middle=1.0, spread=1.6)
    assert as_factor(calibrate(RATES, [], before).factor("warmup")) == before


@pytest.mark.parametrize("count", [2, 5, 20])
@pytest.mark.parametrize("sigma", [0.15, 0.3])
def test_the_range_holds_the_next_stage_four_times_in_five(count: int, sigma: float) -> None:
    """Machines that are off by up to twice, and stages that scatter; the least spread makes it more for calm ones."""
    draw = random.Random(0)
    held = 0
    for _ in range(400):
        off = draw.uniform(-0.7, 0.7)
        seen: list[tuple[StageKind, float]] = [("opd", math.exp(draw.gauss(off, sigma))) for _ in range(count)]
        factor = calibrate(RATES, seen, Factor(middle=1.0, spread=1.6)).factor("opd")
        apart = abs(math.log(math.exp(draw.gauss(off, sigma)) / factor.middle))
        held += apart <= math.log(factor.spread)
    assert 0.7 <= held / 400 <= 0.98


def test_a_machine_is_remembered(tmp_path: Path) -> None:
    machines = Machines(tmp_path / "machines")
    assert plan_on(tmp_path, machines).hardware.calibration is None
    machines.keep_probe(CPU, RATES)
    # What was read is kept for the request.
    assert machines.calibrated(CPU).calibration is None
    plan = plan_on(tmp_path, Machines(machines.folder))
    assert plan.hardware.calibration == calibrate(RATES, [], Factor(middle=1.0, spread=1.6))
    machines.keep_stages(plan, tmp_path, [as_expected(plan, stage, RATES, times=4) for stage in plan.ids()])
    slower = plan_on(tmp_path, Machines(machines.folder))
    assert slower.hardware.calibration is not None
    assert slower.hardware.calibration.observed == len(plan.stages)
    assert slower.stage("opd").estimate.seconds.high > plan.stage("opd").estimate.seconds.high


def test_stages_count_against_the_rates_that_they_were_told_for(tmp_path: Path) -> None:
    machines = Machines(tmp_path / "machines")
    plan = plan_on(tmp_path, machines)
    rates = middle_of(*guessed(CPU))
    machines.keep_stages(plan, tmp_path, [as_expected(plan, "opd", rates, times=2)])
    found = Machines(machines.folder).calibrated(CPU).calibration
    assert found is not None
    assert found.rates == rates
    assert found.observed == 1
    assert found.factor("opd").middle > 1
    machines.keep_probe(CPU, RATES)
    probed = Machines(machines.folder).calibrated(CPU).calibration
    assert probed is not None
    assert probed.observed == 0


def test_half_a_line_and_a_probe_of_another_version_are_left_out(tmp_path: Path) -> None:
    machines = Machines(tmp_path / "machines")
    plan = plan_on(tmp_path, machines)
    machines.keep_stages(plan, tmp_path, [as_expected(plan, "opd", RATES)])
    place = machines.folder / kind_of(CPU)
    (place / "probe.json").write_text('{"flops": 1}')
    (good,) = (place / "stages-1.jsonl").read_text().splitlines()
    with (place / "stages-1.jsonl").open("ab") as file:
        for ratio in ("0.0", "-1", "1e-9", "NaN", "1e400"):
            file.write(re.sub('"ratio":[^}]*', f'"ratio":{ratio}', good).encode() + b"\n")
        file.write(b'\xff\xfe\n{"rates": "')
    found = Machines(machines.folder).calibrated(CPU).calibration
    assert found is not None
    assert found.observed == 1


def test_the_same_stages_are_counted_once(tmp_path: Path) -> None:
    machines, plan = Machines(tmp_path / "machines"), plan_on(tmp_path)
    for _ in range(2):
        machines.keep_stages(plan, tmp_path, [as_expected(plan, "opd", RATES)])
    assert seen(machines) == 1


def test_jobs_never_make_a_machine_less_known_than_its_datasheet_does(tmp_path: Path) -> None:
    machines, plan = Machines(tmp_path / "machines"), plan_on(tmp_path)
    rates, before = middle_of(*guessed(CPU)), plan.stage("teacher_rl").estimate.seconds
    for number in range(6):
        machines.keep_stages(plan, tmp_path / str(number), [as_expected(plan, s, rates) for s in plan.ids()])
        now = plan_on(tmp_path, Machines(machines.folder)).stage("teacher_rl").estimate.seconds
        assert before.low <= now.low
        assert now.high <= before.high
    # One that took what nobody had guessed is believed.
    for number in range(30):
        machines.keep_stages(plan, tmp_path / f"x{number}", [as_expected(plan, "opd", rates, times=60)])
    assert (
        plan_on(tmp_path, Machines(machines.folder)).stage("opd").estimate.seconds.high
        > 3 * plan.stage("opd").estimate.seconds.high
    )


def test_a_speed_that_is_asked_for_is_not_hidden_by_a_measured_one(tmp_path: Path) -> None:
    machines = Machines(tmp_path / "machines")
    machines.keep_probe(CPU, RATES)
    for wish in ({"tflops": 7.0}, {"bandwidth_gbs": 70.0}):
        assert plan_on(tmp_path, machines, hardware=wish).hardware.calibration is None
    # Another machine, of which nothing is known.
    assert plan_on(tmp_path, machines, hardware={"cpu_threads": 5}).hardware.calibration is None


def test_a_probe_is_of_one_device_and_holds_for_several(tmp_path: Path) -> None:
    machines = Machines(tmp_path / "machines")
    machines.keep_probe(GPU.model_copy(update={"devices": 4}), RATES)
    assert machines.calibrated(GPU).calibration is not None


def test_names_of_one_gpu_are_one_machine() -> None:
    driver = GPU.model_copy(update={"name": "NVIDIA H100 80GB HBM3"})
    assert kind_of(GPU) == kind_of(driver) == kind_of(GPU.model_copy(update={"devices": 8})) == "h100"
    assert kind_of(GPU.model_copy(update={"name": "../x"})) == "-x"


def test_completions_over_the_limit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPlan) as caught:
        plan_on(tmp_path, mean_completion_tokens=500, max_completion_tokens=400)
    assert caught.value.param == "mean_completion_tokens"


# --- a job that has ended -------------------------------------------------------------------------------------------


def job(folder: Path, plan: Plan, attempts: dict[str, int] | None = None) -> JobLayout:
    layout = JobLayout(folder / "job")
    for stage in plan.stages:
        layout.stage(stage.id).mkdir(parents=True)
        for attempt in range((attempts or {}).get(stage.id, 1)):
            (layout.stage(stage.id) / f"events-{attempt + 1:03d}.jsonl").touch()
        steps = stage.steps if isinstance(stage, Training) else 0
        result = StageResult(stage=stage.id, kind=stage.kind, steps=steps, tokens=50_000, seconds=60)
        layout.result(stage.id).write_text(result.model_dump_json())
    return layout


def seen(machines: Machines) -> int:
    found = Machines(machines.folder).calibrated(CPU).calibration
    return found.observed if found else 0


def test_a_job_on_this_machine_teaches_the_next_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "detect", lambda: CPU)
    machines, plan = Machines(tmp_path / "machines"), plan_on(tmp_path)
    remember(tmp_path, plan, job(tmp_path, plan, {"opd": 2}))
    # One that was interrupted does not count.
    assert seen(machines) == len(plan.stages) - 1


def test_a_job_elsewhere_teaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines, plan = Machines(tmp_path / "machines"), plan_on(tmp_path)
    monkeypatch.setattr(observed, "detect", lambda: CPU.model_copy(update={"cpu_threads": 64}))
    remember(tmp_path, plan, job(tmp_path, plan))
    assert seen(machines) == 0


def test_a_full_disk_does_not_fail_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observed, "detect", lambda: CPU)
    (tmp_path / "machines").write_text("a file where the folder should be")
    plan = plan_on(tmp_path)
    remember(tmp_path, plan, job(tmp_path, plan))
    assert "could not be kept" in caplog.text


def test_a_machine_that_cannot_be_looked_at_does_not_fail_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> Hardware:
        raise ZeroDivisionError

    monkeypatch.setattr(observed, "detect", fails)
    plan = plan_on(tmp_path)
    remember(tmp_path, plan, job(tmp_path, plan))
    assert "could not be kept" in caplog.text


def test_the_ranges_hold_what_stages_took() -> None:
    stored = json.loads((RESULTS / "planner.json").read_text())["times"]
    found = judged(Rates.model_validate(stored["rates"]), stored["rows"])
    assert min(found["coverage_probe"], found["coverage_after_others"]) >= 0.7
