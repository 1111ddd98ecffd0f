"""docs/labels.md says how rows are read and answers graded: it is held against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from s2d.data.answers import MAX_ANSWER_CHARS, MAX_ANSWER_WORDS, label_of
from s2d.data.columns import ANSWER_COLUMNS, PROMPT_COLUMNS
from s2d.data.ingest import KEPT_REJECTIONS
from s2d.verifiers import KNOWN, VerifierSpec, build
from s2d.verifiers.choice import ChoiceOptions
from s2d.verifiers.exact import ExactOptions
from s2d.verifiers.extract import MAX_COMPLETION_CHARS
from s2d.verifiers.numeric import NumericOptions

PAGE = (Path(__file__).parents[2] / "docs" / "labels.md").read_text()


def test_columns_are_told_in_their_order() -> None:
    for columns in (PROMPT_COLUMNS, ANSWER_COLUMNS):
        assert ", ".join(f"`{name}`" for name in columns) in PAGE


def test_limits_are_those_of_the_code() -> None:
    for said in (
        f"longer than {MAX_ANSWER_CHARS}\ncharacters",
        f"more than {MAX_ANSWER_WORDS} words",
        f"first {KEPT_REJECTIONS} are listed",
        f"last {MAX_COMPLETION_CHARS:,} characters",
    ):
        assert said in PAGE
    assert label_of("$1,234.50") == "1234.50"


def test_every_verifier_has_a_row_with_its_defaults() -> None:
    assert tuple(re.findall(r"^\| `(\w+)` \|.*\|$", PAGE.split("| name | right when")[1], re.MULTILINE)) == KNOWN
    for options in (ExactOptions(), NumericOptions(), ChoiceOptions()):
        for name, value in options.model_dump().items():
            shown = f"{value:g}" if type(value) is float else str(value)
            assert re.search(rf"`{name}` \(`?{re.sub('e-0?', 'e-0?', shown)}`?\)", PAGE, re.IGNORECASE), name


@pytest.mark.parametrize(
    ("verifier", "completion", "label", "reward"),
    [
        ("math", r"\boxed{0.5}", r"\frac{1}{2}", 1),
        ("math", "0.5", r"\frac{1}{2}", 0),
        ("exact", "Paris", "paris", 1),
        ("numeric", "first 3, then 4", "4", 1),
        ("choice", "Option B: the second", "B", 1),
        ("choice", "(b)", "B", 1),
        ("path", "aed", "ab.bc.cd.ae.ed>ad", 1),
    ],
)
def test_what_the_table_says_of_them_is_so(verifier: str, completion: str, label: str, reward: float) -> None:
    assert build(VerifierSpec.model_validate({"name": verifier})).grade(completion, label) == reward
