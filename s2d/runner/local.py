"""The same plan without API, broker or database: what `s2d train` does."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from s2d.data.ingest import ingest
from s2d.data.summary import summarize
from s2d.errors import Conflict, InvalidPlan
from s2d.events import NewEvent
from s2d.plan.document import Plan, load_plan
from s2d.plan.graph import Account
from s2d.plan.request import DataSummary
from s2d.plan.service import check_against_data
from s2d.runner.child import Wish, stage_command
from s2d.runner.layout import JobLayout
from s2d.runner.pipeline import Outcome, Pipeline


@dataclass
class _LocalHost:
    on_event: Callable[[NewEvent], None]
    stopping: Callable[[], bool]
    epoch: int | None = None

    def missed(self, layout: JobLayout, stages: Iterable[str]) -> Iterable[list[NewEvent]]:
        """A local run keeps no events but those in the stages' own files."""
        return ()

    def events(self, events: list[NewEvent]) -> None:
        for event in events:
            self.on_event(event)

    def wish(self) -> Wish:
        return "stop" if self.stopping() else "run"

    def spend(self, account: Account, role: str, labels: Sequence[str]) -> None:
        """The ledger in the folder is all that a local run has."""


def summary_of(upload: Path) -> DataSummary:
    """What the planner asks of a file; its name stands for its id.

    Raises:
        InvalidData: see `s2d.data.ingest.ingest`.
    """
    with TemporaryDirectory() as folder, upload.open("rb") as stream:
        rows = Path(folder) / "rows.jsonl"
        report, counted = ingest(stream, rows), summarize(rows)
    return DataSummary(
        file_id=upload.name,
        sha256=report.sha256,
        labeled=report.labeled,
        unlabeled=report.unlabeled,
        mean_prompt_chars=counted.prompt_chars_mean,
        p95_prompt_chars=counted.prompt_chars_p95,
    )


def run_plan(
    plan: Plan,
    upload: Path,
    out: Path,
    on_event: Callable[[NewEvent], None],
    *,
    stopping: Callable[[], bool] = lambda: False,
    command: Callable[[int], list[str]] = stage_command,
) -> Outcome:
    """Run `plan` on the labels of `upload` in the folder `out`; call it again with the same folder to resume.

    Args:
        stopping: asked all the time; true: checkpoint and end.
        command: the program that runs a stage on so many devices.

    Raises:
        InvalidPlan: the folder holds another plan's run, or the file is not the one that the plan counts on.
        InvalidData: see `s2d.data.ingest.ingest`.
        Conflict: another run is at work in the folder.
    """
    layout = JobLayout(out.absolute())
    if layout.plan.exists() and load_plan(layout.plan.read_text()).id != plan.id:
        raise InvalidPlan(f"{out} holds the run of another plan; choose another folder.", param="out")
    layout.root.mkdir(parents=True, exist_ok=True)
    with _alone(layout.root):
        return _run(plan, upload, layout, _LocalHost(on_event, stopping), command)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run at a time in a folder: two would be two trainers on the same checkpoints."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise Conflict(f"Another run is at work in {folder}.", code="run_in_progress") from err
        yield


def _run(plan: Plan, upload: Path, layout: JobLayout, host: _LocalHost, command: Callable[[int], list[str]]) -> Outcome:
    rows = layout.root / "rows.jsonl"
    with upload.open("rb") as stream:
        report = ingest(stream, rows)
    if plan.data.file_sha256 not in (None, report.sha256):
        raise InvalidPlan(f"The plan was made for another file than {upload}.", param="file")
    check_against_data(plan, report.labeled, report.unlabeled)
    return Pipeline(plan, rows, layout, host, command=command).run()
