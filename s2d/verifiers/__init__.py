"""Verifiers: was a completion's final answer right? One small grader per kind of answer, and the pool.

A verifier is a pure function of two strings and may be slow, hang or die on what a model wrote; that is why
training grades through `GradingPool`, whose processes can be killed. This room imports no torch, and
`math_verify` only where a math verifier is built.

It does not guarantee that a right answer without a final-answer mark is found: only the final answer counts.
"""

from s2d.verifiers.base import KNOWN, Verifier, VerifierName, VerifierSpec, build
from s2d.verifiers.pool import Grade, GradingPool, Outcome

__all__ = ["KNOWN", "Grade", "GradingPool", "Outcome", "Verifier", "VerifierName", "VerifierSpec", "build"]
