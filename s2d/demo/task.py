"""Left-to-right arithmetic modulo 10: problems, and the pre-training text that works them out.

A problem such as `4*9+3*0*3*9=` has five operations, applied from left to right without precedence, each result taken
modulo 10. A completion ends in `\\boxed{r}`, in one of three styles:

- full: every result is written, `;6;9;0;0;0\\boxed{0}`
- half: every other result is written, `;9;0\\boxed{0}`
- bare: the answer alone, `\\boxed{0}`

Each result that is written down is wrong with a slip probability, and the working goes on from what was written.
Careful text is thus more often right, without being always right: that is what RL can select. A model of the demo's
size cannot work out five operations within one token, so its bare answers are mostly guesses.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

OPERATIONS = "+*"
N_OPERATIONS = 5


@dataclass(frozen=True)
class Problem:
    """The text of a prompt, and what an answer is checked by: here the right digit."""

    text: str
    answer: str


@dataclass(frozen=True)
class Mixture:
    """How often each style is drawn (`bare` is what is left), and how often a written result is wrong."""

    full: float
    half: float
    full_slip: float
    half_slip: float


def apply(operation: str, left: int, right: int) -> int:
    """`left operation right`, modulo 10."""
    return (left + right if operation == "+" else left * right) % 10


def results(text: str) -> list[int]:
    """The five running results of a problem's text."""
    value = int(text[0])
    running = []
    for operation, digit in zip(text[1:-1:2], text[2:-1:2], strict=True):
        value = apply(operation, value, int(digit))
        running.append(value)
    return running


def random_text(rng: Random) -> str:
    """One problem's text, every digit and operation drawn evenly."""
    tail = "".join(rng.choice(OPERATIONS) + str(rng.randrange(10)) for _ in range(N_OPERATIONS))
    return f"{rng.randrange(10)}{tail}="


def problems(n: int, seed: int, exclude: Collection[str] = ()) -> list[Problem]:
    """`n` different problems, the same for the same seed, none with a text in `exclude`."""
    rng = Random(seed)
    taken = set(exclude)
    made: list[Problem] = []
    while len(made) < n:
        text = random_text(rng)
        if text not in taken:
            taken.add(text)
            made.append(Problem(text, str(results(text)[-1])))
    return made


def completion(text: str, mixture: Mixture, rng: Random) -> str:
    """One pre-training completion for a problem's text, in a style and with slips drawn from the mixture."""
    style = rng.random()
    if style < mixture.full:
        return _working(text, 1, mixture.full_slip, rng)
    if style < mixture.full + mixture.half:
        return _working(text, 2, mixture.half_slip, rng)
    return f"\\boxed{{{results(text)[-1]}}}"


def _working(text: str, stride: int, slip: float, rng: Random) -> str:
    """Working that writes every `stride`-th result, wrong with probability `slip`, then the boxed answer."""
    value, written = int(text[0]), ""
    steps = list(zip(text[1:-1:2], text[2:-1:2], strict=True))
    for number, (operation, digit) in enumerate(steps, start=1):
        value = apply(operation, value, int(digit))
        if number % stride == 0:
            value = _slipped(value, slip, rng)
            written += f";{value}"
    return f"{written}\\boxed{{{value}}}"


def _slipped(value: int, slip: float, rng: Random) -> int:
    """The value, or with probability `slip` one of the nine other digits."""
    return (value + rng.randrange(1, 10)) % 10 if rng.random() < slip else value


def write_jsonl(path: Path, n_labeled: int, n_unlabeled: int, seed: int) -> None:
    """Write different problems as rows {"problem", "answer"}; the unlabeled rows, which come last, have no answer."""
    write_rows(path, problems(n_labeled + n_unlabeled, seed), n_labeled)


def write_rows(path: Path, problems: Iterable[Problem], n_labeled: int) -> None:
    """Write problems as JSON lines, the first `n_labeled` with their answers."""
    with path.open("w", encoding="utf-8") as file:
        for number, problem in enumerate(problems):
            row = {"problem": problem.text}
            if number < n_labeled:
                row["answer"] = problem.answer
            file.write(json.dumps(row) + "\n")
