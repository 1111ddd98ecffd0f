"""The path verifier takes every walk along edges from start to goal, and nothing else, whatever the text."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from s2d.data.answers import label_of
from s2d.verifiers import GradingPool, Verifier, VerifierSpec, build
from s2d.verifiers.path import MAX_LABEL_CHARS

VERTICES = "abcXY12"
GRAPH = "ab.bc.cd.ae.ed.cb>ad"


@pytest.fixture(scope="module")
def path() -> Verifier:
    return build(VerifierSpec(name="path"))


@st.composite
def walked(draw: st.DrawFn) -> tuple[str, str]:
    """A label, and a walk that is right for it: the graph has the walk's steps and other edges."""
    walk = draw(st.text(VERTICES, min_size=1, max_size=12))
    steps = [walk[i : i + 2] for i in range(len(walk) - 1)]
    others = draw(st.lists(st.text(VERTICES, min_size=2, max_size=2), min_size=1, max_size=8))
    edges = draw(st.permutations([*steps, *others]))
    return f"{'.'.join(edges)}>{walk[0]}{walk[-1]}", walk


@given(walked())
def test_any_true_walk_is_right(case: tuple[str, str]) -> None:
    label, walk = case
    verifier = build(VerifierSpec(name="path"))
    assert verifier.grade(f"first this way, \\boxed{{{walk}}}", label) == 1
    assert verifier.grade(walk, label) == 1
    assert verifier.grade(f"The answer is {' -> '.join(walk)}.", label) == 1


@given(walked(), st.data())
def test_a_walk_with_one_wrong_step_is_wrong(case: tuple[str, str], data: st.DataObject) -> None:
    label, walk = case
    at = data.draw(st.integers(0, len(walk) - 1))
    other = data.draw(st.sampled_from(VERTICES + "Z9"))
    changed = walk[:at] + other + walk[at + 1 :]
    edges, ends = label.split(">")
    steps = {changed[i : i + 2] for i in range(len(changed) - 1)}
    assume(changed[0] + changed[-1] != ends or not steps <= set(edges.split(".")))
    assert build(VerifierSpec(name="path")).grade(f"\\boxed{{{changed}}}", label) == 0


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (r"\boxed{abcd}", 1),
        (r"\boxed{aed}", 1),
        (r"\boxed{abcbcd}", 1),
        (r"\boxed{\text{a, b, c, d}}", 1),
        (r"\boxed{ad}", 0),
        (r"\boxed{abc}", 0),
        (r"\boxed{bcd}", 0),
        (r"\boxed{abed}", 0),
        (r"\boxed{dcba}", 0),
        (r"\boxed{ABCD}", 0),
        (r"\boxed{abcd} no, \boxed{ad}", 0),
        (r"\boxed{ab.bc.cd}", 0),
        (r"\boxed{a\u0301bcd}", 0),
        (r"\boxed{}", 0),
        ("\\boxed{\ud800}", 0),
        ("\0", 0),
        ("", 0),
        ("a" + " " * 20_000 + "bcd", 0),
    ],
)
def test_grades(path: Verifier, completion: str, reward: float) -> None:
    assert path.grade(completion, GRAPH) == reward


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text("\\boxed{}abcde->. =", max_size=60))
def test_only_a_walk_gets_a_reward(text: str) -> None:
    reward = build(VerifierSpec(name="path")).grade(text, "ab.bc>cb")  # no way leads from c to b
    assert reward == 0


@pytest.mark.parametrize("flood", ["a", "ab", "\\boxed{", "->", " ", "a.", "\n", "answer is ", "`", "\u2192"])
def test_floods_are_fast_and_wrong(path: Verifier, flood: str) -> None:
    started = time.perf_counter()
    assert path.grade(flood * 200_000, GRAPH) == 0
    assert path.grade(f"\\boxed{{{flood * 200_000}}}", GRAPH) == 0
    assert time.perf_counter() - started < 0.5


def test_a_long_walk_is_right(path: Verifier) -> None:
    assert path.grade(f"\\boxed{{{'ab' * 8_000}}}", "ab.ba>ab") == 1


@pytest.mark.parametrize(
    "label", ["", "abcd", "ab>", "ab.bc>a", "ab,bc>ac", "ab.bc>ac=", "a\u0301b>ab", "ab." * MAX_LABEL_CHARS + "ab>ab"]
)
def test_a_label_that_is_no_graph_is_an_error(path: Verifier, label: str) -> None:
    with pytest.raises(ValueError, match="is no graph such as"):
        path.grade("ab", label)


def test_the_pool_grades_walks() -> None:
    with GradingPool(VerifierSpec(name="path")) as pool:
        grades = pool.grade([(r"\boxed{aed}", GRAPH), (r"\boxed{ad}", GRAPH), (r"\boxed{ad}", "no graph")])
    assert [grade.outcome for grade in grades] == ["correct", "wrong", "error"]


def test_a_graph_of_many_edges_is_taken_for_a_label_and_prose_is_not() -> None:
    graph = ".".join("abcdefghijklmnopqrstuvwxyz"[i : i + 2] for i in range(25)) + ">az"
    assert label_of(graph) == graph
    assert label_of("first " + "go on (and on) " * 6) is None
