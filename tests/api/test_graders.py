"""Graders with the stock `openai` client and its strict checks, over a real server with real grading processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from api_testing import Server, assert_problem

from api.app import create_app
from s2d.services import formula
from s2d.services.grader_runs import AT_ONCE
from s2d.services.templates import Namespace, Unresolved
from s2d.settings import Settings
from s2d.verifiers.pool import GradingPool

RUN = "/v1/fine_tuning/alpha/graders/run"
VALIDATE = "/v1/fine_tuning/alpha/graders/validate"
MATH: Any = {"type": "s2d", "verifier": "math"}
#: Keeps math-verify busy for longer than any deadline.
#: Nested by braces: without them the reading, and so whether it hangs, differs from process to process.
TOWER = r"\boxed{9^{9^{9^{9}}}}"


def check(operation: str = "eq", **change: Any) -> Any:
    texts = {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    return {"type": "string_check", "name": "check", "operation": operation} | texts | change


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all, as a service's grading processes are. They are gone when it is."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("graders") / "state", allow_hub=False)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Server(create_app(settings)) as server:
        server.key = settings.key_file.read_text().strip()  # type: ignore[attr-defined]
        yield server
    assert_gone(before)


def assert_gone(before: set[int]) -> None:
    """No descendant but those of before, at some moment: the databases of other tests have some that come and go."""
    until = time.monotonic() + 10
    while {child.pid for child in psutil.Process().children(recursive=True)} - before:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture
def stock(server: Any) -> Iterator[openai.OpenAI]:
    url = f"{server.url}/v1"
    with openai.OpenAI(api_key=server.key, base_url=url, max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture
def http(server: Any) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(
    ("operation", "sample", "reward"),
    [
        ("eq", "Fuzzy", 1), ("eq", "fuzzy", 0), ("eq", "Fuzzy ", 0), ("ne", "fuzzy", 1), ("ne", "Fuzzy", 0),
        ("like", "a Fuzzy b", 1), ("like", "a fuzzy b", 0), ("ilike", "a fUzZy b", 1), ("ilike", "fuzz", 0),
    ],
)  # fmt: skip
def test_string_checks(stock: openai.OpenAI, operation: str, sample: str, reward: float) -> None:
    run = stock.fine_tuning.alpha.graders.run(grader=check(operation), model_sample=sample, item={"answer": "Fuzzy"})
    assert (run.reward, run.sub_rewards, run.metadata.scores) == (reward, {}, {"check": reward})
    assert (run.metadata.name, run.metadata.type) == ("check", "string_check")
    assert not any(run.metadata.errors.to_dict().values())


@pytest.mark.parametrize(
    ("verifier", "sample", "answer", "reward"),
    [
        ("math", r"so \boxed{\frac{1}{2}}", "0.5", 1),
        ("math", r"so \boxed{0.4}", "0.5", 0),
        ("exact", "The answer is  Paris.", "paris", 1),
        ({"name": "exact", "options": {"ignore_case": False}}, "The answer is Paris.", "paris", 0),
        ({"name": "numeric", "options": {"abs_tol": 1}}, "#### 41", 42, 1),
        ("choice", "The answer is (C).", "C", 1),
        ("path", "abd", "ab.bd>ad", 1),
    ],
)
def test_our_verifiers(stock: openai.OpenAI, verifier: Any, sample: str, answer: Any, reward: float) -> None:
    grader: Any = {"type": "s2d", "verifier": verifier}
    run = stock.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, item={"answer": answer})
    assert run.reward == reward
    assert run.metadata.model_extra is not None
    assert run.metadata.model_extra["s2d"]["s2d"]["outcome"] == ("correct" if reward else "wrong")


def test_several_graders_in_one(stock: openai.OpenAI) -> None:
    grader: Any = {
        "type": "multi",
        "name": "both",
        "graders": {
            "right": MATH | {"input": "{{sample.output_json.answer}}"},
            "polite": check("ilike", reference="please"),
        },
        "calculate_output": "min(1, 0.75 * right + polite ^ 2 / 4)",
    }
    sample = r'{"answer": "\\boxed{4}", "text": "PLEASE"}'
    run = stock.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, item={"answer": "4"})
    assert (run.reward, run.sub_rewards) == (1.0, {"right": 1.0, "polite": 1.0})
    run = stock.fine_tuning.alpha.graders.run(grader=grader, model_sample="please", item={"answer": "4"})
    assert (run.reward, run.sub_rewards) == (0.25, {"right": 0.0, "polite": 1.0})
    assert run.metadata.errors.sample_parse_error


def test_validate(stock: openai.OpenAI) -> None:
    validate = stock.fine_tuning.alpha.graders.validate
    single = {"type": "multi", "name": "m", "graders": check(), "calculate_output": "check / 2"}
    for grader in (check(), single):
        answer = validate(grader=grader)
        assert answer.grader is not None
        assert answer.grader.to_dict() == grader
    ours = validate(grader=MATH)
    assert ours.grader is None, "the client's types have no name for it"
    assert ours.model_extra == {
        "s2d": {
            "grader": MATH | {"name": "s2d", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"},
        }
    }


@pytest.mark.parametrize(
    ("grader", "word"),
    [
        ({"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}, "runs no code"),
        ({"type": "score_model", "name": "s", "model": "gpt-5", "input": []}, "asks no judge"),
        ({"type": "label_model", "name": "l"}, "asks no judge"),
        ({"type": "text_similarity", "name": "t", "input": "a", "reference": "b", "evaluation_metric": "rouge_l"},
         "text_similarity"),
        ({"type": "astrology"}, "string_check"),
        ("string_check", "valid"),
        (check("gt"), "operation"),
        (check(input="{{secrets.key}}"), "secrets.key"),
        (check(input="{{sample.choices[0]}}"), "sample.choices"),
        (check(input="{{item.__class__()}}"), "item.__class__()"),
        (check(input="x" * 20_001), "20000"),
        (check(extra=1), "extra"),
        ({"type": "s2d", "verifier": "astrology"}, "math"),
        ({"type": "s2d", "verifier": {"name": "numeric", "options": {"rel_tol": 2}}}, "rel_tol"),
        ({"type": "multi", "name": "m", "graders": {}, "calculate_output": "1"}, "at least 1"),
        ({"type": "multi", "name": "m", "graders": {"a b": check()}, "calculate_output": "1"}, "pattern"),
        ({"type": "multi", "name": "m", "graders": {"a": check()}, "calculate_output": "b"}, "'b'"),
        ({"type": "multi", "name": "m", "graders": {"a": {"type": "python", "name": "p", "source": ""}},
          "calculate_output": "a"}, "runs no code"),
        ({"type": "multi", "name": "m", "graders": {f"g{n}": check() for n in range(9)}, "calculate_output": "g1"},
         "at most 8"),
    ],
)  # fmt: skip
def test_what_is_no_grader_is_refused_with_the_reason(http: httpx.Client, grader: Any, word: str) -> None:
    for answer in (
        http.post(VALIDATE, json={"grader": grader}),
        http.post(RUN, json={"grader": grader, "model_sample": "", "item": {}}),
    ):
        assert word in assert_problem(answer, 400)["detail"]


@pytest.mark.parametrize(
    ("change", "item", "sample", "fault"),
    [
        ({"reference": "{{item.other}}"}, {"answer": "1"}, "1", "invalid_variable_error"),
        ({"reference": "{{item.answer.deep[3]}}"}, {"answer": "1"}, "1", "invalid_variable_error"),
        ({"reference": "{{item.answer}}"}, None, "1", "invalid_variable_error"),
        ({"input": "{{sample.output_json.x}}"}, {"answer": "1"}, "not JSON", "sample_parse_error"),
        ({"input": "{{sample.output_json.x}}"}, {"answer": "1"}, "[" * 100_000, "sample_parse_error"),
        ({"input": "{{sample.output_json.x}}"}, {"answer": "1"}, "9" * 10_000, "sample_parse_error"),
        ({"input": "{{sample.output_json.x}}"}, {"answer": "1"}, "{}", "invalid_variable_error"),
    ],
)
def test_a_variable_without_a_value_is_told(
    stock: openai.OpenAI, change: dict[str, str], item: Any, sample: str, fault: str
) -> None:
    run = stock.fine_tuning.alpha.graders.run(grader=check(**change), model_sample=sample, item=item)
    assert run.reward == 0
    assert [name for name, told in run.metadata.errors.to_dict().items() if told] == [fault]


def test_a_sample_that_hangs_its_verifier_scores_0_and_holds_nobody_up(stock: openai.OpenAI) -> None:
    began = time.monotonic()
    run = stock.fine_tuning.alpha.graders.run(grader=MATH, model_sample=TOWER, item={"answer": "3"})
    assert run.reward == 0
    assert run.metadata.errors.unresponsive_reward_error
    assert time.monotonic() - began < 60
    again = stock.fine_tuning.alpha.graders.run(grader=MATH, model_sample=r"\boxed{3}", item={"answer": "3"})
    assert again.reward == 1


@pytest.mark.parametrize("sample", ["", "\0", "x" * 900_000, r"\boxed{" * 20_000, "{{item.answer}}", "9" * 100_000])
@pytest.mark.parametrize("verifier", ["math", "exact", "numeric", "choice", "path"])
def test_hostile_samples_score_0(stock: openai.OpenAI, verifier: str, sample: str) -> None:
    grader: Any = {"type": "s2d", "verifier": verifier}
    answer = {"choice": "A", "path": "ab>ab"}.get(verifier, "5")
    run = stock.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, item={"answer": answer})
    assert run.reward == 0


def test_a_label_that_cannot_be_compared_with_is_told(stock: openai.OpenAI) -> None:
    grader: Any = {"type": "s2d", "verifier": "numeric"}
    run = stock.fine_tuning.alpha.graders.run(grader=grader, model_sample="5", item={"answer": "five"})
    assert (run.reward, run.metadata.errors.other_error) == (0, True)


def test_texts_that_grow_are_refused(http: httpx.Client) -> None:
    grader = check(input="{{item.answer}}" * 1000)
    answer = http.post(RUN, json={"grader": grader, "model_sample": "", "item": {"answer": "x" * 100_000}})
    assert "characters" in assert_problem(answer, 400)["detail"]
    deep = '{"grader": {}, "model_sample": "", "item": ' + "[" * 50_000 + "]" * 50_000 + "}"
    assert http.post(RUN, content=deep, headers={"content-type": "application/json"}).status_code == 400


def test_a_burst_of_what_hangs_is_told_to_come_again(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are few: those who read a job must get one."""
    go, grade = threading.Event(), GradingPool.grade

    def slow(pool: GradingPool, pairs: Any) -> Any:
        assert go.wait(30)
        return grade(pool, pairs)

    monkeypatch.setattr(GradingPool, "grade", slow)
    body = {"grader": {"type": "s2d", "verifier": "exact"}, "model_sample": "1", "item": {"answer": "1"}}
    with ThreadPoolExecutor(AT_ONCE + 20) as pool:
        asked = [pool.submit(http.post, RUN, json=body) for _ in range(AT_ONCE + 20)]
        while sum(one.done() for one in asked) < 20:
            time.sleep(0.01)
        assert http.get("/v1/fine_tuning/jobs").status_code == 200
        go.set()
        answers = [one.result() for one in asked]
    assert [answer.status_code for answer in answers].count(200) == AT_ONCE
    for refused in (answer for answer in answers if answer.status_code != 200):
        assert_problem(refused, 429, "graders_busy")
        assert int(refused.headers["retry-after"]) > 0


# --- formula and templates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 0.25), ("-a + 2 * b", 1.75), ("2 ^ 3", 8), ("2 ** -1", 0.5), ("max(a, b, 0.5)", 1), ("min(a)", 0.25),
        ("sqrt(a) + log(exp(b))", 1.5), ("floor(1.5) + ceil(1.5)", 3), ("abs(a - b)", 0.75),
    ],
)  # fmt: skip
def test_formulas(text: str, value: float) -> None:
    assert formula.read(text, ("a", "b"))({"a": 0.25, "b": 1.0}) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["", "a +", "c", "a.b", "a[0]", "'a'", "True", "a if a else b", "lambda: a", "[a]", "a < b", "min()", "abs(a, b)",
     "exec(a)", "__import__('os')", "min(a, key=b)", "a := b", "1j", "a; b", "(" * 250, "-" * 250, "a" * 257, "\0",
     "1/(a-a) + 'x'", "min(*a)", "a @ b", "~a"],
)  # fmt: skip
def test_what_is_no_formula(text: str) -> None:
    with pytest.raises(ValueError, match="formula"):
        formula.read(text, ("a", "b"))


@pytest.mark.parametrize("text", ["1 / a", "9^9^9^9", "1e999", "log(a)", "sqrt(a - 1)", "(a - 8) ^ 0.5", "ceil(1e999)"])
def test_formulas_without_a_value(text: str) -> None:
    with pytest.raises(ArithmeticError):
        formula.read(text, ("a",))({"a": 0.0})


def test_templates() -> None:
    names = Namespace('{"n": [1, {"x": "y"}]}', {"a": "ä{{item.b}}", "b": None, "c": [True, 1.5]})
    assert names.render("{{ item.a }}|{{item.b}}|{{item.c[1]}}|{{item.c}}") == "ä{{item.b}}|null|1.5|[true, 1.5]"
    assert names.render("{{sample.output_json.n[1].x}} {{ {} }} {{") == "y {{ {} }} {{"
    for missing in ("{{item.c[2]}}", "{{item.c.x}}", "{{item.a[0].b}}"):
        with pytest.raises(Unresolved):
            names.render(missing)


def test_no_grading_process_is_started_before_it_is_needed(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Server(create_app(Settings(state_dir=tmp_path / "state", allow_hub=False))):
        assert_gone(before)
