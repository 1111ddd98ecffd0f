"""What a verifier is, how one is named in a plan, and how one is built."""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from s2d.errors import InvalidRequest
from s2d.verifiers.choice import ChoiceOptions, ChoiceVerifier
from s2d.verifiers.exact import ExactOptions, ExactVerifier
from s2d.verifiers.numeric import NumericOptions, NumericVerifier
from s2d.verifiers.path import PathVerifier

VerifierName = Literal["math", "exact", "numeric", "choice", "path"]

#: The names that `VerifierSpec` takes.
KNOWN: tuple[VerifierName, ...] = get_args(VerifierName)


class Verifier(Protocol):
    """Grades a completion against a label. Pure, but may hang or die: train through the pool."""

    name: str

    def grade(self, completion: str, answer: str) -> float:
        """The reward in [0, 1]. ValueError if the label is none that this verifier can compare with."""
        ...


class NoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_OPTIONS: dict[VerifierName, type[BaseModel]] = {
    "math": NoOptions,
    "exact": ExactOptions,
    "numeric": NumericOptions,
    "choice": ChoiceOptions,
    "path": NoOptions,
}


class VerifierSpec(BaseModel):
    """A verifier's name and its options, as plans keep them. InvalidRequest on an unknown name or option."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: VerifierName = "math"
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name", mode="before")
    @classmethod
    def _known(cls, name: Any) -> Any:
        if name not in KNOWN:
            raise InvalidRequest(f"unknown verifier {name!r}; known are: {', '.join(KNOWN)}", param="verifier.name")
        return name

    @model_validator(mode="after")
    def _typed(self) -> VerifierSpec:
        try:
            _OPTIONS[self.name].model_validate(self.options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["options", *map(str, first["loc"])])
            raise InvalidRequest(
                f"verifier {self.name!r}: {where}: {first['msg']}", param=f"verifier.{where}"
            ) from error
        return self


def build(spec: VerifierSpec) -> Verifier:
    """The verifier that `spec` names. Building a math verifier takes about a second: it loads sympy."""
    match spec.name:
        case "exact":
            return ExactVerifier(ExactOptions.model_validate(spec.options))
        case "numeric":
            return NumericVerifier(NumericOptions.model_validate(spec.options))
        case "choice":
            return ChoiceVerifier(ChoiceOptions.model_validate(spec.options))
        case "path":
            return PathVerifier()
        case "math":
            from s2d.verifiers.math import MathVerifier  # the only one with a heavy import

            return MathVerifier()
