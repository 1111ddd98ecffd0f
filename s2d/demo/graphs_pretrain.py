"""Pre-train the second family's pair: `python -m s2d.demo.graphs_pretrain --out DIR [--seed N]`.

As `pretrain` does for arithmetic, and with its code, on the walks of `graphs`.
"""

from __future__ import annotations

from random import Random

from s2d.demo.graphs import VERTICES, Mixture, completion, random_text, ring
from s2d.demo.pretrain import Documents, Draw, Phase, Recipe, run

SMALLEST_RING, STEPS_PER_RING = 3, 40


def rings(n: int, step: int, rng: Random) -> Documents:
    """Walks around rings that get one vertex larger every `STEPS_PER_RING` steps.

    To look up an edge takes two layers together, which they learn only from graphs this small.
    """
    size = min(len(VERTICES), SMALLEST_RING + step // STEPS_PER_RING)
    pairs = [ring(size, rng) for _ in range(n)]
    return [text for text, _ in pairs], [walk for _, walk in pairs]


def walks(mixture: Mixture) -> Draw:
    """Random problems with completions of the mixture."""

    def draw(n: int, _step: int, rng: Random) -> Documents:
        texts = [random_text(rng) for _ in range(n)]
        return texts, [completion(text, mixture, rng) for text in texts]

    return draw


CLEAN = walks(Mixture(careful=1.0, loose=0.0, careful_slip=0.0, loose_slip=0.0))
TEACHER_TEXT = walks(Mixture(careful=0.25, loose=0.30, careful_slip=0.05, loose_slip=0.4))
STUDENT_TEXT = walks(Mixture(careful=0.10, loose=0.40, careful_slip=0.3, loose_slip=0.55))

# Both first learn to follow edges, then to walk from start to goal, then to do it rarely and with slips, the student
# with more. Two layers do not learn it in this time from every seed.
TEACHER = Recipe(
    "teacher", 96, 256, 3, 4, 0.08, (Phase(350, 3e-3, rings), Phase(250, 2e-3, CLEAN), Phase(120, 5e-4, TEACHER_TEXT))
)
STUDENT = Recipe(
    "student", 48, 128, 3, 4, 0.1, (Phase(420, 4e-3, rings), Phase(300, 4e-3, CLEAN), Phase(150, 1e-3, STUDENT_TEXT))
)


if __name__ == "__main__":
    run("Pre-train a teacher and a student that walk through graphs.", (TEACHER, STUDENT))
