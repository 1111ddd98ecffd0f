"""The page of a plan: whole at 80 columns, the same in both layouts, and true to the plan."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_pair import CPU
from rich.console import Console

from s2d.plan.document import Plan, Range
from s2d.plan.models import ModelPolicy
from s2d.plan.page import units
from s2d.plan.page.facts import page_of
from s2d.plan.render import to_markdown, to_rich
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.plan.sizing import USABLE

CONTROLS = ["direct_grpo", "raw_teacher_bridge", "opd_only", "warmup_only", "replay"]


def planned(**fields: Any) -> Plan:
    hardware = {"name": "A100", "devices": 2} | fields.pop("hardware", {})
    request = {"teacher": "Qwen/Qwen3-8B", "student": "Qwen/Qwen3-1.7B", "labeled_budget": 1200, "hardware": hardware}
    return make_plan(read_request(request | fields), None, CPU, ModelPolicy(allow_hub=False))


@pytest.fixture(scope="module")
def simple() -> Plan:
    return planned()


@pytest.fixture(scope="module")
def large() -> Plan:
    """Every section, the longest names, and a price."""
    prompt = {"system": "Think first. " * 20, "template": {"enable_thinking": False}}
    return planned(
        unlabeled_prompts=9000, controls=CONTROLS, compute_matched=True, prompt=prompt, hardware={"price_per_hour": 2.5}
    )


def terminal(plan: Plan, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(to_rich(plan))
    return console.export_text()


def words(text: str) -> str:
    """What is said, without how it is laid out: bars, columns, borders."""
    return " ".join(re.sub(rf"[{units.FULL}{units.MAYBE}{units.EMPTY}{units.LINE}|`*]+", " ", text).split())


@pytest.mark.parametrize("width", [80, 100, 140, 250])
def test_no_line_is_too_long_and_nothing_is_cut(simple: Plan, large: Plan, width: int) -> None:
    for plan in (simple, large):
        page = terminal(plan, width)
        assert max(map(len, page.splitlines())) <= width
        assert page.count("…") == to_markdown(plan).count("…"), "only where the text itself has one"
        for name in ("Timeline", "Cost", "Labels", "Memory of a device, GiB", "Stages", "Gates", "Warnings", "Why"):
            assert f"\n{name}\n" in page, "a heading has a line of its own"
        for stage in plan.stages:
            assert page.count(f"{stage.id} ") >= 3, "timeline, memory and stages"
        headings = re.search(r"\nStages\n(.*?)teacher_rl ", page, re.DOTALL)
        assert headings
        for heading in page_of(plan).stages.header:
            assert set(heading.split()) <= set(headings[1].split())


def test_both_layouts_say_all_of_the_page(large: Plan) -> None:
    page = page_of(large)
    told = [page.answer, page.price, *page.gates, *page.warnings, *(why for _, why in page.whys)]
    told += [value for _, value in page.about]
    told += [f"{one.stage} {one.share} {one.time}" for one in page.times]
    told += [f"{one.use} {one.labels} {one.share} {one.why}" for one in page.uses]
    told += [note for one in page.memory for note in (f"{one.stage} {one.peak}", *one.notes)]
    told += page.advice
    told += [" ".join(row) for row in (*page.costs.rows, *page.stages.rows)]
    for laid_out in (to_markdown(large), terminal(large, 250)):
        said = words(laid_out)
        assert [line for line in told if words(line) not in said] == []


def test_both_layouts_draw_the_same_bars(large: Plan) -> None:
    page = page_of(large)
    for one in (*page.times, *page.uses, *page.memory):
        assert f"`{one.bar(24)}`" in to_markdown(large)
    bars = re.findall(rf"[{units.FULL}{units.MAYBE}{units.EMPTY}{units.LINE}]{{12,}}", terminal(large, 80))
    assert bars == [one.bar(len(bar)) for one, bar in zip((*page.times, *page.uses, *page.memory), bars, strict=True)]


def test_the_answer_comes_first_and_in_three_sentences(large: Plan) -> None:
    answer = page_of(large).answer
    assert answer.startswith("1,200 labels, Qwen3-8B → Qwen3-1.7B on 2 x A100, 79 GiB: fits, with LoRA in teacher_rl")
    assert len(re.split(r"\.\s", answer)) <= 3
    fullest = max(large.stages, key=lambda stage: stage.estimate.memory_gib.high)
    assert f"{fullest.id} takes most" in answer
    assert terminal(large, 80).splitlines()[1].startswith("1,200 labels")


def test_cost_is_time_times_devices_times_price(simple: Plan, large: Plan) -> None:
    seconds = sum(stage.estimate.seconds.high for stage in large.stages)
    *parts, whole = page_of(large).costs.rows
    assert [name for name, *_ in parts] == ["workflow and test", "controls"]
    assert whole[2].endswith(f" {seconds / 3600 * 2:,.0f}")
    assert whole[3].endswith(f" {seconds / 3600 * 2 * 2.5:,.0f}")
    assert "At 2.5 for a device and hour" in page_of(large).price
    unpriced = page_of(simple)
    assert unpriced.costs.header == ("", "time", "device-hours")
    assert [name for name, *_ in unpriced.costs.rows] == ["in all"], "without controls there is one part"
    assert "--price" in unpriced.price
    assert "cost" not in unpriced.answer


def test_the_timeline_has_no_gap_and_labels_say_why(large: Plan) -> None:
    page = page_of(large)
    assert (page.times[0].start, page.times[-1].end) == (0, pytest.approx(1))
    assert all(one.end == other.start for one, other in zip(page.times, page.times[1:], strict=False))
    middles = [stage.estimate.seconds.low + stage.estimate.seconds.high for stage in large.stages]
    assert [one.end - one.start for one in page.times] == pytest.approx([one / sum(middles) for one in middles])
    assert sum(one.part for one in page.uses) == pytest.approx(1)
    assert all(one.why.endswith(".") for one in page.uses)


def test_memory_is_itemised_and_what_does_not_fit_says_by_how_much(large: Plan) -> None:
    notes = {one.stage: one.notes for one in page_of(large).memory}
    for stage in large.stages:
        if (same := re.fullmatch("as (.*)", notes[stage.id][0])) is not None:
            assert units.between(stage.estimate.memory_gib) == units.between(large.stage(same[1]).estimate.memory_gib)
            continue
        of_it = sum(float(item.rpartition(" ")[2].replace(",", "")) for item in notes[stage.id][0].split(", "))
        assert of_it == pytest.approx(sum(item.gib for item in stage.estimate.memory), abs=0.5)
        too_much = [one.over_gib for one in getattr(stage, "alternatives", ()) if one.over_gib]
        said = re.findall(r"by ([\d.,]*\d)", " ".join(notes[stage.id][1:]))
        assert said == [units.number(over) for over in too_much]
    assert "all weights with checkpointing by" in notes["teacher_rl"][1]
    assert notes["opd_only"] == (notes["opd"] if notes["opd"][0].startswith("as ") else ("as opd",)), "not told again"


@given(st.floats(0, 1), st.floats(0, 1), st.integers(8, 200))
def test_a_span_is_as_wide_as_its_column_and_can_be_seen(one: float, other: float, width: int) -> None:
    start, end = sorted((one, other))
    bar = units.span_bar(start, end, width)
    assert len(bar) == width
    assert re.fullmatch(rf"{units.EMPTY}*{units.FULL}+{units.EMPTY}*", bar)
    assert abs(bar.count(units.FULL) - (end - start) * width) <= 1


@given(st.floats(0, USABLE), st.floats(0, USABLE), st.integers(12, 200))
def test_what_fits_ends_before_the_line(one: float, other: float, width: int) -> None:
    low, high = sorted((one, other))
    bar = units.level_bar(low, high, USABLE, width)
    assert len(bar) == width
    assert bar.count(units.LINE) == 1
    pattern = rf"{units.FULL}*{units.MAYBE}*{units.EMPTY}*{units.LINE}{units.EMPTY}*"
    assert re.fullmatch(pattern, bar)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1, 1, "1.0 GiB"),
        (0.45, 151, "0.5 to 151 GiB"),
        (15.2, 151.4, "15 to 151 GiB"),
        (9e3, 9e4, "9,000 to 90,000 GiB"),
    ],
)
def test_a_range_has_no_more_decimals_than_it_means(low: float, high: float, said: str) -> None:
    assert units.between(Range(low=low, high=high), "GiB") == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((30, 90), "30.0 to 90.0 s"),
        ((60, 600), "1.0 to 10.0 min"),
        ((3600, 7200), "1.0 to 2.0 h"),
        ((0, 172_800), "0.0 to 2.0 days"),
    ],
)
def test_a_time_has_the_unit_of_its_upper_end(seconds: tuple[float, float], said: str) -> None:
    assert units.duration(Range(low=seconds[0], high=seconds[1])) == said


def test_small_parts_and_small_money_are_still_told() -> None:
    assert (units.percent(0.001), units.percent(0.0), units.percent(0.256)) == ("<1%", "0%", "26%")
    assert units.money(Range(low=0.5, high=3.25)) == "0.50 to 3.25"
    assert (units.number(80.0), units.number(72.68), units.number(1024.0)) == ("80", "72.7", "1,024")
