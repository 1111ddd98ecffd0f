"""What each verifier takes for a right answer, and that no text, however odd, makes the extraction slow."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.data import ingest, read_rows
from s2d.errors import InvalidRequest
from s2d.verifiers import Verifier, VerifierSpec, build
from s2d.verifiers.extract import final_answer
from s2d.verifiers.math import MathVerifier, _in_box, _verified


@pytest.fixture(scope="module")
def math() -> Verifier:
    return build(VerifierSpec(name="math"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{1} and a truncated \boxed{2", "1"),
        (r"{ a stray brace } } \boxed{3}", "3"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\fbox{4}", "4"),
        (r"\boxed{}", None),
        ("#### Step 1\nadd\n#### 72\n", "72"),
        ("#### Step 1\nThe answer is 5.\nBye", "5"),
        ("#### yes", "yes"),
        (r"#### 3 but \boxed{4}" + "\n#### 5", "4"),
        ("The final answer is: **12**. I hope it is right.", "12"),
        ("answer: 3.5.", "3.5"),
        ("The answer is 1. No, the answer is $2$", "2"),
        ("nothing marked 5", None),
        ("", None),
    ],
)
def test_final_answer(text: str, expected: str | None) -> None:
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    "flood", ["\\boxed{", "{", "}", "\\", " ", "\n", "#### ", "answer is ", "answer:", "#", "\\boxed ", "$", "**"]
)
def test_extraction_is_fast_on_floods(flood: str) -> None:
    started = time.perf_counter()
    final_answer(flood * 100_000)
    final_answer("answer is" + flood * 100_000 + "x")
    assert time.perf_counter() - started < 0.5


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="\\boxed{}#$. answeri\n12:*", max_size=200))
def test_extraction_takes_any_text(text: str) -> None:
    found = final_answer(text)
    assert found is None or found.strip()


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        (r"\boxed{72}", "72", 1),
        (r"\boxed{72.0}", "72", 1),
        (r"\boxed{\$1,234}", "1234", 1),
        (r"\boxed{1234}", "1,234", 1),
        (r"\boxed{72\text{ apples}}", "72", 1),
        (r"\boxed{0.5}", r"\frac{1}{2}", 1),
        (r"\boxed{\dfrac12}", "$0.5$", 1),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1),
        (r"\boxed{(3,4]}", "(3,4]", 1),
        (r"\boxed{\text{Evelyn}}", "Evelyn", 1),
        ("#### 72", "72", 1),
        ("The answer is 72 apples.", "72", 1),
        (r"The answer is $\frac{1}{2}$.", "0.5", 1),
        (r"\boxed{73}", "72", 0),
        (r"\boxed{72}, no, \boxed{73}", "72", 0),
        (r"\boxed{72 or 73}", "72", 0),
        (r"\boxed{71,72}", "72", 0),
        (r"\boxed{\pm 72}", "72", 0),
        ("72", "72", 0),
        ("", "72", 0),
        (r"\boxed{}", "72", 0),
        ("\\boxed{７２}", "72", 0),
        ("\\boxed{٧٢}", "72", 0),
        ("\\boxed{\U0001d7d5\U0001d7d0}", "72", 0),
        ("\\boxed{7\u0417}", "73", 0),
        ("\0", "72", 0),
        ("\\boxed{\ud800}", "72", 0),
        (r"\boxed{72}" + " " * 20_000, "72", 0),
        (r"\boxed{" + "9" * 3_000 + "}", "9" * 3_000, 0),
    ],
)
def test_math(math: Verifier, completion: str, answer: str, reward: float) -> None:
    assert math.grade(completion, answer) == reward


@settings(max_examples=80, deadline=None)
@given(given=st.from_regex(r"-?0{0,2}[0-9]{1,18}", fullmatch=True), answer=st.integers(-(10**17), 10**17))
def test_the_plain_path_of_math_agrees_with_math_verify(given: str, answer: int) -> None:
    verifier = MathVerifier()
    for label in (str(answer), str(int(given[:18]))):
        assert verifier.grade(_in_box(given[:18]), label) == _verified(_in_box(given[:18]), label)


def test_math_on_every_gsm8k_label(math: Verifier, gsm8k: Path, tmp_path: Path) -> None:
    labels: list[str] = []
    for name in ("train", "test"):
        with (gsm8k / f"{name}.jsonl").open("rb") as file:
            ingest(file, tmp_path / "rows.jsonl")
        labels += [row.answer or "" for row in read_rows(tmp_path / "rows.jsonl")]
    assert len(labels) == 8792
    for label in labels:
        assert math.grade(rf"so it is \boxed{{{label}}}.", label) == 1
        assert math.grade(rf"so it is \boxed{{{int(label) + 1}}}.", label) == 0
    for label in sorted(set(labels)):  # and math-verify itself, without the plain path, says the same
        assert _verified(_in_box(label), label)
        assert not _verified(_in_box(str(int(label) + 1)), label)


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        (r"\boxed{The  Hague}", "the hague", 1),
        ("cafe\u0301", "caf\u00e9", 1),
        ("The answer is **Paris**.", "Paris", 1),
        ("Paris", "Paris.", 1),
        ("Paris or Rome", "Paris", 0),
        ("", "Paris", 0),
        ("", "", 0),
    ],
)
def test_exact(completion: str, answer: str, reward: float) -> None:
    assert build(VerifierSpec(name="exact")).grade(completion, answer) == reward


def test_exact_with_case() -> None:
    assert build(VerifierSpec(name="exact", options={"ignore_case": False})).grade("paris", "Paris") == 0


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("first 70, then 72.", "72", 1),
        ("It is -72.", "-72", 1),
        ("x = -3", "-3", 1),
        ("80-8", "8", 1),
        ("80 - 8", "8", 1),
        ("-$5", "-5", 1),
        (r"\boxed{1,234.50}", "1234.5", 1),
        (r"\boxed{-\frac{1}{2}}", "-0.5", 1),
        (r"\boxed{0.3333333}", "1/3", 1),
        (r"\boxed{0.333}", "1/3", 0),
        (r"\boxed{1e3} apples", "1000", 1),
        (r"\boxed{71 72}", "72", 0),
        (r"\boxed{1/0}", "1", 0),
        (r"\boxed{" + "9" * 5_000 + "}", "1", 0),
        ("٧٢", "72", 0),
        ("no number", "72", 0),
    ],
)
def test_numeric(completion: str, answer: str, reward: float) -> None:
    assert build(VerifierSpec(name="numeric")).grade(completion, answer) == reward


def test_numeric_tolerance_is_an_option() -> None:
    assert build(VerifierSpec(name="numeric", options={"rel_tol": 0.01})).grade("100.5", "100") == 1


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("C", "C", 1),
        ("(c)", "C", 1),
        (r"\boxed{\text{C}}", "(C)", 1),
        ("The answer is (C) 42.", "C", 1),
        ("Answer: C) 42", "C", 1),
        ("**C**", "C", 1),
        ("The answer is a number", "A", 0),
        ("A, B and C are all possible. Answer: D", "C", 0),
        ("Cat", "C", 0),
        ("", "C", 0),
    ],
)
def test_choice(completion: str, answer: str, reward: float) -> None:
    assert build(VerifierSpec(name="choice")).grade(completion, answer) == reward


@pytest.mark.parametrize(("name", "label"), [("numeric", "blue"), ("choice", "blue")])
def test_a_label_that_cannot_be_compared_is_an_error(name: str, label: str) -> None:
    with pytest.raises(ValueError, match="the label 'blue'"):
        build(VerifierSpec.model_validate({"name": name})).grade("x", label)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "vibes"}, "unknown verifier 'vibes'; known are: math, exact, numeric, choice"),
        ({"name": ["math"]}, "unknown verifier"),
        ({"name": "math", "options": {"rel_tol": 1}}, "verifier 'math': options.rel_tol: Extra inputs"),
        ({"name": "numeric", "options": {"rel_tol": -1}}, "verifier 'numeric': options.rel_tol"),
        ({"name": "choice", "options": {"letters": "abc"}}, "verifier 'choice': options.letters"),
    ],
)
def test_a_wrong_spec_is_refused(spec: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        VerifierSpec.model_validate(spec)


@pytest.mark.parametrize(
    ("imports", "absent"),
    [
        ("s2d.data, s2d.verifiers", "torch transformers fastapi sqlalchemy celery math_verify sympy"),
        ("s2d.verifiers.worker, s2d.verifiers.math", "torch transformers fastapi sqlalchemy celery numpy"),
    ],
)
def test_imports_are_lean(imports: str, absent: str) -> None:
    program = f"import sys, {imports}; print(*[name for name in {absent.split()} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
