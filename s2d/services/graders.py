"""Graders as the OpenAI surface describes them, and which of our verifiers a job takes for one."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StringConstraints, model_validator

from s2d.data.columns import ANSWER_COLUMNS
from s2d.errors import InvalidRequest
from s2d.services import formula
from s2d.services.templates import Template, names_only
from s2d.verifiers.base import VerifierName, VerifierSpec

#: Each part may take the verifier's deadline.
MAX_PARTS = 8

_REFUSED = {
    "text_similarity": "s2d has none of its metrics, and one that differed from its name would be worse than none",
    "python": "s2d runs no code of its callers",
    **dict.fromkeys(("score_model", "label_model"), "s2d rewards answers that can be checked, and asks no judge"),
}

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
#: What a formula can name.
PartName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StringCheck(_Document):
    """1 or 0. `eq` and `ne`: the texts are equal or not; `like`: input holds reference; `ilike`: in any case."""

    type: Literal["string_check"]
    name: Name
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]


class Verify(_Document):
    """One of our verifiers: is the final answer in `input` the label `reference`?"""

    type: Literal["s2d"]
    verifier: VerifierName | VerifierSpec = "math"
    name: Name = "s2d"
    input: Template = "{{sample.output_text}}"
    reference: Template = "{{item.answer}}"

    @property
    def spec(self) -> VerifierSpec:
        return self.verifier if isinstance(self.verifier, VerifierSpec) else VerifierSpec(name=self.verifier)


def _refuse(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in _REFUSED:
        raise ValueError(
            f"{kind} graders are refused: {_REFUSED[kind]}. There are string_check, multi, and our verifiers, such as "
            '{"type": "s2d", "verifier": "math"}'
        )
    return value


Part = Annotated[
    Annotated[StringCheck | Verify, Discriminator("type")],
    BeforeValidator(_refuse),
]


def _by_name(value: Any) -> Any:
    """The client's own types have one grader here, its guide a mapping of them."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        return {value.get("name", ""): value}
    return value


class Multi(_Document):
    """Several graders, and the formula that makes one score of theirs."""

    type: Literal["multi"]
    name: Name
    graders: Annotated[dict[PartName, Part], BeforeValidator(_by_name)] = Field(
        min_length=1, max_length=MAX_PARTS, description="By the name that the formula uses; a single one stands alone."
    )
    calculate_output: str = Field(
        max_length=formula.MAX_CHARS, description="Numbers, names of graders, + - * / ^, min, max, abs, floor, ceil, "
        "exp, sqrt, log."
    )  # fmt: skip

    @model_validator(mode="after")
    def _computable(self) -> Self:
        formula.read(self.calculate_output, self.graders)
        return self


Grader = Annotated[
    Annotated[StringCheck | Verify | Multi, Discriminator("type")],
    BeforeValidator(_refuse),
]


def as_client_knows(grader: StringCheck | Verify | Multi) -> dict[str, Any] | None:
    """The document in a form that the client's own types can say; None where they have none for it."""
    document = grader.model_dump(mode="json")
    if isinstance(grader, StringCheck):
        return document
    if isinstance(grader, Multi) and len(grader.graders) == 1:
        (name, part), *_ = grader.graders.items()
        if isinstance(part, StringCheck) and part.name == name:
            return document | {"graders": part.model_dump(mode="json")}
    return None


def verifier_for(grader: StringCheck | Verify | Multi) -> VerifierSpec:
    """The verifier of a job that asks for this grader.

    A job's verifier always compares the final answer of a completion with the row's label.

    Raises:
        InvalidRequest: code "unsupported_grader"; no verifier does what this grader does.
    """
    if isinstance(grader, Multi):
        raise _unsupported("A job is graded by one verifier, not by several graders. Give one.")
    completion, label = names_only(grader.input), names_only(grader.reference)
    if completion != "sample.output_text" or label not in {f"item.{name}" for name in ANSWER_COLUMNS}:
        raise _unsupported(
            "A job compares the completion with the label of its row: input must be '{{sample.output_text}}' and "
            "reference '{{item.answer}}' (or another column that holds the label)."
        )
    if isinstance(grader, Verify):
        return grader.spec
    if grader.operation != "eq":
        raise _unsupported(f"No verifier does what string_check's {grader.operation!r} does; 'eq' is there.")
    return VerifierSpec(name="exact", options={"ignore_case": False})


def _unsupported(reason: str) -> InvalidRequest:
    return InvalidRequest(reason, code="unsupported_grader", param="method.reinforcement.grader")
