"""Is the final answer a walk from the start to the goal, each step an edge of the label's graph?

The label is the specification of the problem, `ab.bc.cd.ae.ed>ad`: directed edges, then start and goal; a vertex is one
ASCII letter or digit, and its case counts. Every such walk is right, `abcd` as well as `aed`, also one that visits a
vertex twice. Nothing says that a label's graph has any: where it has none, every answer is wrong.
"""

from __future__ import annotations

import re

from s2d.verifiers.extract import MAX_COMPLETION_CHARS, final_answer, unwrap

#: Longer labels are refused; an uploaded one has at most `s2d.data.answers.MAX_ANSWER_CHARS`.
MAX_LABEL_CHARS = 4096

_GRAPH = re.compile(
    r"(?P<edges>[A-Za-z0-9]{2}(?:\.[A-Za-z0-9]{2})*)>(?P<start>[A-Za-z0-9])(?P<goal>[A-Za-z0-9])", re.ASCII
)
# What people write between two vertices: `a b`, `a, b`, `a-b`, `a->b`, `a→b`.
_BETWEEN = str.maketrans("", "", " \t\n,->→")


class PathVerifier:
    """1 if the final answer (the whole completion, where none is marked) is such a walk, else 0."""

    name = "path"

    def grade(self, completion: str, answer: str) -> float:
        graph = _GRAPH.fullmatch(answer.strip()) if len(answer) <= MAX_LABEL_CHARS else None
        if graph is None:
            raise ValueError(f"the label {answer[:80]!r} is no graph such as ab.bc>ac")
        walk = _walk(completion)
        if not walk or walk[0] != graph["start"] or walk[-1] != graph["goal"]:
            return 0.0
        edges = set(graph["edges"].split("."))
        return float(all(walk[i : i + 2] in edges for i in range(len(walk) - 1)))


def _walk(completion: str) -> str:
    """The final answer's vertices, one character each; empty if there is no answer."""
    found = final_answer(completion)
    if found is None and len(completion) <= MAX_COMPLETION_CHARS:
        found = completion
    return (unwrap(found or "") or "").translate(_BETWEEN)
