"""`s2d chat --compare`: the arms of a job side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from s2d.cli.client import Client

#: The servers of all arms may have to start, a few at a time.
PATIENCE_S = 3600.0
#: Narrower columns are hard to read: the answers come one below the other then.
MIN_COLUMN = 24


def compare(client: Client, job: str, arms: Sequence[str], prompt: str | None, row: str | None) -> None:
    """One question, or one after the other until an empty line. Raises typer.Exit(1) when no arm answers the one."""
    from s2d.cli.output import console

    chosen = {"job": job, **({"arms": list(arms)} if arms else {})}
    screen = console()
    if row is not None or prompt is not None:
        if not _ask(client, screen, {**chosen, **_question(prompt, row)}):
            raise typer.Exit(1)
        return
    typer.echo(f"Asking the arms of {job}. Each line is a question of its own; an empty one or Ctrl-D ends.", err=True)
    for said in _said():
        _ask(client, screen, {**chosen, **_question(said, None)})


def job_of(client: Client, model: str) -> str:
    """The job that made this student; a job's own id is taken as it is."""
    return model if model.startswith("job_") else str(client.get(f"/v1/models/{quote(model)}")["job"])


def _question(prompt: str | None, row: str | None) -> dict[str, Any]:
    if row is not None:
        return {"row": int(row) if len(row) < 32 and row.isdecimal() else row}
    return {"messages": [{"role": "user", "content": prompt}]}


def _said() -> Iterator[str]:
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            return
        if not said:
            return
        yield said


def _ask(client: Client, screen: Console, body: Mapping[str, Any]) -> bool:
    """Whether any arm has answered."""
    found = client.post("/v1/compare", body, patience_s=PATIENCE_S)
    show(screen, found)
    return any(arm["answers"] for arm in found["arms"])


def show(screen: Console, compared: Mapping[str, Any]) -> None:
    """The answers in columns where a terminal is wide enough, else one below the other."""
    from rich.text import Text

    arms = compared["arms"]
    if compared["row"] is not None:
        screen.print(Text(_about(compared["row"])), soft_wrap=True)
    if screen.is_terminal and screen.width >= MIN_COLUMN * len(arms):
        _columns(screen, arms)
        return
    for arm in arms:
        for line in (f"\n== {arm['arm']}: {_mark(arm)}", *_texts(arm)):
            screen.print(Text(line), soft_wrap=True)


def _columns(screen: Console, arms: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    made = Table(expand=True, show_lines=True)
    for arm in arms:
        made.add_column(Text(arm["arm"]), ratio=1, overflow="fold")
    made.add_row(*(Text(_mark(arm)) for arm in arms))
    texts = [_texts(arm) for arm in arms]
    for number in range(max(map(len, texts))):
        made.add_row(*(Text(one[number]) if number < len(one) else "" for one in texts))
    screen.print(made)


def _about(row: Mapping[str, Any]) -> str:
    if row["answer"] is None:
        return f"Row {row['line']}: unlabeled, so nothing is graded."
    return f"Row {row['line']} ({row['role'] or 'read by no stage'}): the answer is {row['answer']}."


def _mark(arm: Mapping[str, Any]) -> str:
    """How the arm did: rewards where there are any, time, and whether it knew the label."""
    if arm["error"] is not None:
        return "no answer"
    told = [_reward(answer) for answer in arm["answers"] if answer["reward"] is not None]
    seen = [f"had this label in {', '.join(arm['label_seen_by'])}"] if arm["label_seen_by"] else []
    return "; ".join([*([" ".join(told)] if told else []), f"{arm['seconds']:.1f} s", *seen])


def _reward(answer: Mapping[str, Any]) -> str:
    known = {"correct": "✓", "wrong": "✗" if answer["reward"] == 0 else f"{answer['reward']:.2f}"}
    return known.get(answer["outcome"], f"✗ (verifier: {answer['outcome']})")


def _texts(arm: Mapping[str, Any]) -> list[str]:
    return [arm["error"]["detail"]] if arm["error"] is not None else [answer["text"] for answer in arm["answers"]]
