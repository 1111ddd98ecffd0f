"""Walks through small directed graphs: problems, and the pre-training text that answers them.

A problem such as `d:bc.gf.ab.fd.cd.gb.af>a=` names the goal, the directed edges and the start. Right is every walk from
start to goal along edges, `\\boxed{abcd}` as well as `\\boxed{afd}`. A graph has two routes of `ROUTE` edges that share
only their ends, and `EXTRA` more edges that begin at vertices which no route leads to: whoever follows any edge from
where he is gets to the goal. No edge joins start and goal. Two problems are the same when they have the same edges, in
whatever order, and the same ends.

A completion is a walk in one of three styles:

- careful: every step is an edge, but for rare slips
- loose: the same with many slips, each to a vertex that no edge leads to
- jump: the start and the goal alone, which is never right

Careful text is thus more often right, without being always right: that is what RL can select.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from s2d.demo.task import Problem, write_rows

VERTICES = "abcdefghij"
ROUTE, EXTRA = 3, 3
#: A walk that slipped so often that it has grown to this many vertices goes on with the goal.
MAX_WALK = 3 * ROUTE
#: Steps of a walk around a ring.
RING_STEPS = 10


@dataclass(frozen=True)
class Mixture:
    """How often each style is drawn (`jump` is what is left), and how often a step in it is a slip."""

    careful: float
    loose: float
    careful_slip: float
    loose_slip: float


def random_text(rng: Random) -> str:
    """One problem's text."""
    start, goal, *others = rng.sample(VERTICES, len(VERTICES))
    inside = ROUTE - 1
    first, second, stray = others[:inside], others[inside : 2 * inside], others[2 * inside :]
    edges = [a + b for route in (first, second) for a, b in pairwise([start, *route, goal])]
    while len(edges) < 2 * ROUTE + EXTRA:
        edge = rng.choice(stray) + rng.choice(others)
        if edge[0] != edge[1] and edge not in edges:
            edges.append(edge)
    return _text(edges, start, goal, rng)


def ring(size: int, rng: Random) -> tuple[str, str]:
    """A ring of so many vertices and a walk around it, as a problem's text and completion: practice in following."""
    vertices = rng.sample(VERTICES, size)
    walk = "".join(vertices[step % size] for step in range(RING_STEPS + 1))
    edges = [a + b for a, b in pairwise([*vertices, vertices[0]])]
    return _text(edges, walk[0], walk[-1], rng), f"\\boxed{{{walk}}}"


def _text(edges: Iterable[str], start: str, goal: str, rng: Random) -> str:
    shuffled = list(edges)
    rng.shuffle(shuffled)
    return f"{goal}:{'.'.join(shuffled)}>{start}="


def label(text: str) -> str:
    """A text's graph as the verifier reads it: `bc.ab>ac` for `c:bc.ab>a=`."""
    goal, graph = text.rstrip("=").split(":")
    return graph + goal


def identity(text: str) -> tuple[frozenset[str], str]:
    """Equal for texts of the same problem: its edges, and its start and goal."""
    edges, ends = label(text).split(">")
    return frozenset(edges.split(".")), ends


def problems(n: int, seed: int, exclude: Collection[str] = ()) -> list[Problem]:
    """`n` different problems, each with its graph as the verifier `path` reads it for an answer.

    The same seed gives the same ones; none is the same as one whose text is in `exclude`.
    """
    rng = Random(seed)
    taken = {identity(text) for text in exclude}
    made: list[Problem] = []
    while len(made) < n:
        text = random_text(rng)
        if identity(text) not in taken:
            taken.add(identity(text))
            made.append(Problem(text, label(text)))
    return made


def completion(text: str, mixture: Mixture, rng: Random) -> str:
    """One pre-training completion for a problem's text, in a style and with slips drawn from the mixture."""
    style = rng.random()
    if style < mixture.careful:
        walk = _walk(text, mixture.careful_slip, rng)
    elif style < mixture.careful + mixture.loose:
        walk = _walk(text, mixture.loose_slip, rng)
    else:
        walk = identity(text)[1]
    return f"\\boxed{{{walk}}}"


def _walk(text: str, slip: float, rng: Random) -> str:
    """A walk from start to goal; each step before the last is with probability `slip` to where no edge leads."""
    edges, ends = identity(text)
    walk, goal = ends[0], ends[1]
    while walk[-1] != goal and len(walk) < MAX_WALK:
        here = walk[-1]
        # Sorted: a set of strings has another order in every process.
        onward = sorted(edge[1] for edge in edges if edge[0] == here)
        if rng.random() < slip or not onward:
            onward = [b for b in VERTICES if b != here and here + b not in edges]
        walk += rng.choice(onward)
    return walk if walk[-1] == goal else walk + goal


def write_jsonl(path: Path, n_labeled: int, n_unlabeled: int, seed: int) -> None:
    """Write different problems as rows {"problem", "answer"}; the unlabeled rows, which come last, have no answer."""
    write_rows(path, problems(n_labeled + n_unlabeled, seed), n_labeled)
