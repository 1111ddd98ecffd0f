"""The second family: walks through small graphs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from s2d.data import ingest, read_rows
from s2d.demo import graphs, graphs_pretrain
from s2d.demo.graphs import (
    EXTRA,
    MAX_WALK,
    ROUTE,
    VERTICES,
    Mixture,
    completion,
    identity,
    label,
    problems,
    random_text,
    ring,
    write_jsonl,
)
from s2d.demo.pretrain import WARMUP_STEPS, Phase, Recipe, build_model
from s2d.demo.pretrain import build as pretrain
from s2d.demo.tokenizer import build_tokenizer
from s2d.verifiers import Verifier, VerifierSpec, build

CAREFUL = Mixture(careful=1, loose=0, careful_slip=0, loose_slip=0)


@pytest.fixture(scope="module")
def path() -> Verifier:
    return build(VerifierSpec(name="path"))


def test_the_label_is_the_graph_that_the_text_shows() -> None:
    assert label("d:bc.ab.cd>a=") == "bc.ab.cd>ad"
    assert identity("d:bc.ab.cd>a=") == (frozenset({"ab", "bc", "cd"}), "ad")


def test_every_problem_has_two_answers_and_no_dead_end_on_the_way(path: Verifier) -> None:
    for problem in problems(500, seed=1):
        edges, (start, goal) = identity(problem.text)
        assert len(edges) == 2 * ROUTE + EXTRA
        assert start + goal not in edges
        answers = {completion(problem.text, CAREFUL, Random(seed)) for seed in range(20)}
        assert len(answers) == 2
        assert all(path.grade(answer, problem.answer) == 1 for answer in answers)
        assert {len(answer) for answer in answers} == {len("\\boxed{}") + ROUTE + 1}


def test_a_walk_around_a_ring_is_a_right_answer(path: Verifier) -> None:
    for size in range(3, len(VERTICES) + 1):
        text, walk = ring(size, Random(size))
        assert len(identity(text)[0]) == size
        assert path.grade(walk, label(text)) == 1


def test_problems_are_different_graphs_repeatable_and_keep_clear_of_excluded_ones() -> None:
    first = problems(2000, seed=1)
    assert first == problems(2000, seed=1) != problems(2000, seed=2)
    assert len({identity(problem.text) for problem in first}) == 2000
    # The same graph with its edges in another order is the same problem.
    goal, edges, start = first[0].text.rstrip("=").replace(">", ":").split(":")
    turned = f"{goal}:{'.'.join(reversed(edges.split('.')))}>{start}="
    assert first[0] not in problems(10, seed=1, exclude=[turned])
    known = {identity(problem.text) for problem in first}
    others = problems(300, seed=1, exclude=[problem.text for problem in first])
    assert known.isdisjoint(identity(problem.text) for problem in others)


def test_a_problem_is_the_same_in_every_process() -> None:
    program = (
        "from s2d.demo.graphs import *; text = problems(1, 5)[0].text; "
        "print(text, completion(text, Mixture(1, 0, 0.3, 0), Random(1)))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


def test_a_jump_is_never_right(path: Verifier) -> None:
    jump = Mixture(careful=0, loose=0, careful_slip=0, loose_slip=0)
    assert not any(path.grade(completion(p.text, jump, Random(0)), p.answer) for p in problems(200, seed=3))


def test_slips_come_as_often_as_asked_and_are_no_edges() -> None:
    mixture, rng = Mixture(careful=1, loose=0, careful_slip=0.2, loose_slip=0), Random(0)
    slips = steps = 0
    for _ in range(3000):
        text = random_text(rng)
        walk = completion(text, mixture, rng).removeprefix("\\boxed{").removesuffix("}")
        edges, ends = identity(text)
        assert walk[0] + walk[-1] == ends
        assert len(walk) <= MAX_WALK + 1
        # The first step starts where there is a way on, so only a slip can leave the edges.
        slips += walk[:2] not in edges
        steps += 1
        assert all(a != b for a, b in pairwise(walk))
    assert slips / steps == pytest.approx(0.2, abs=0.03)


def test_careful_text_is_more_often_right_than_loose_text(path: Verifier) -> None:
    shares = []
    for mixture in (Mixture(1, 0, 0.05, 0.4), Mixture(0, 1, 0.05, 0.4)):
        rng = Random(0)
        asked = problems(500, seed=4)
        shares.append(sum(path.grade(completion(p.text, mixture, rng), p.answer) for p in asked) / 500)
    assert shares[0] > 0.8 > 0.4 > shares[1] > 0.1


def test_rows_are_taken_by_the_ingest_with_their_labels(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", n_labeled=30, n_unlabeled=20, seed=0)
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in written] == [["answer", "problem"]] * 30 + [["problem"]] * 20
    with (tmp_path / "rows.jsonl").open("rb") as file:
        report = ingest(file, tmp_path / "kept.jsonl")
    assert (report.labeled, report.unlabeled) == (30, 20)
    assert {row.answer for row in read_rows(tmp_path / "kept.jsonl")} == {row.get("answer") for row in written}


def test_pretraining_is_repeatable(tmp_path: Path) -> None:
    phases = tuple(Phase(WARMUP_STEPS + 1, 1e-3, draw) for draw in (graphs_pretrain.rings, graphs_pretrain.CLEAN))
    for folder in ("first", "second"):
        pretrain(Recipe("tiny", 16, 32, 1, 1, 0.1, phases), tmp_path / folder, seed=3)
    weights = [tmp_path / folder / "tiny" / "model.safetensors" for folder in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_family_imports_without_torch() -> None:
    program = "import sys, s2d.demo.graphs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_student_is_the_smaller_model() -> None:
    tokenizer = build_tokenizer(64)
    models = [build_model(recipe, tokenizer, 0) for recipe in (graphs_pretrain.STUDENT, graphs_pretrain.TEACHER)]
    sizes = [model.num_parameters() for model in models]
    assert 2 * sizes[0] < sizes[1]


def test_no_room_that_plans_runs_or_judges_knows_a_family() -> None:
    root = Path(graphs.__file__).parents[1]
    rooms = ("plan", "runner", "stages", "report", "evaluate")
    files = [file for room in rooms for file in (root / room).rglob("*.py")]
    assert len(files) > 40
    named = re.compile(r"demo|\bedges?\b|\bvert(ex|ices)\b|\bgraphs_|[\"']path[\"']|PathVerifier")
    assert [str(file) for file in files if named.search(file.read_text())] == []
