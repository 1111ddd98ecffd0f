"""A host that loses its power: what counts as done was on the disk before it counted.

No test can take the power away. These hold the order of the calls on which it depends: a file is synced, then renamed,
then the folder is synced that it has its name in; only what was synced before is there after.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sqlalchemy import event
from tiny import DEMO, labels, plan_for

from s2d.atomic import make_durable, replace_folder, write_atomic
from s2d.data import ROLES, ingest
from s2d.errors import NotAuthenticated
from s2d.runner.layout import JobLayout
from s2d.runner.local import _LocalHost
from s2d.runner.pipeline import Pipeline
from s2d.runner.task import StageResult, StageTask, this_process
from s2d.services import files
from s2d.services.context import Context, first_key, open_context
from s2d.services.keys import authenticate
from s2d.settings import Settings
from s2d.stages.__main__ import main
from s2d.stages.models import copy_model, load_model, load_tokenizer, save_model
from s2d.stages.runtime import StageRuntime
from s2d.stages.scored import ScoredOnce
from worker.graduates import TEMPLATE_FILE, _linked

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs procfs to tell what is synced")


class Disk:
    """What was synced and renamed, in order: `("sync", path)`, `("rename", source, target)`, and what tests note."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def synced(self, path: Path) -> int:
        """When it was synced first; fails if it never was."""
        return self.calls.index(("sync", path))

    def named(self, target: Path) -> int:
        """When it got its name, once its content was on the disk, and its name soon after."""
        (when,) = (at for at, call in enumerate(self.calls) if call[0] == "rename" and call[2] == target)
        assert ("sync", self.calls[when][1]) in self.calls[:when], f"{target} has a name and perhaps no content"
        assert ("sync", target.parent) in self.calls[when:], f"{target} may lose its name"
        return when


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    record = Disk()
    fsync = os.fsync

    def note_sync(handle: int) -> None:
        record.calls.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def noting(rename: Callable[..., None]) -> Callable[..., None]:
        def note(source: str | Path, target: str | Path, **options: int) -> None:
            record.calls.append(("rename", Path(source), Path(target)))
            rename(source, target, **options)

        return note

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", noting(os.rename))
    monkeypatch.setattr(os, "replace", noting(os.replace))
    return record


def refuse_to_sync(monkeypatch: pytest.MonkeyPatch, refused: Callable[[str], bool], error: int) -> None:
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if refused(os.readlink(f"/proc/self/fd/{handle}")):
            raise OSError(error, os.strerror(error))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)


# --- models -----------------------------------------------------------------------------------------------------------


def saved(target: Path) -> None:
    student = str(DEMO / "student")
    save_model(load_model(student, dtype="float32", device="cpu"), load_tokenizer(student), target)


def copied(target: Path) -> None:
    source = target.parent.parent / "source"
    (source / "below").mkdir(parents=True)
    for path in (source / "model.safetensors", source / "below" / "more.json"):
        path.write_text("x")
    copy_model(source, target)


def linked(target: Path) -> None:
    _linked(DEMO / "student", "template", target)


@pytest.mark.parametrize("make", [saved, copied, linked])
@pytest.mark.parametrize("again", [False, True])
def test_a_model_is_on_the_disk_before_it_has_its_name(
    make: Callable[[Path], None], again: bool, tmp_path: Path, disk: Disk
) -> None:
    target = tmp_path / "models" / "opd"
    if again:
        target.mkdir(parents=True)
        (target / "of-a-run-that-was-cut-short").touch()
    make(target)
    when = disk.named(target)
    partial = target.with_name(".opd.partial")
    parts = [path.relative_to(target) for path in target.rglob("*") if not path.is_symlink()]
    assert parts
    assert [part for part in parts if ("sync", partial / part) not in disk.calls[:when]] == []
    assert not (target / "of-a-run-that-was-cut-short").exists()


def test_what_a_model_only_links_to_is_nobody_elses_to_sync(tmp_path: Path, disk: Disk) -> None:
    linked(tmp_path / "models" / "base_student")
    names = {call[1].name for call in disk.calls if call[0] == "sync" and isinstance(call[1], Path)}
    assert names == {TEMPLATE_FILE, ".base_student.partial", "models"}


def test_a_model_that_does_not_come_to_the_disk_does_not_get_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may be found to be full only now."""
    source, target = tmp_path / ".opd.partial", tmp_path / "opd"
    source.mkdir()
    (source / "model.safetensors").write_text("x")
    refuse_to_sync(monkeypatch, lambda path: path.endswith(".safetensors"), errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        replace_folder(source, target)
    assert not target.exists()


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_result_comes_after_all_that_it_vouches_for(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StageRuntime, "watch", lambda _: None)
    plan = plan_for(labels(tmp_path / "labels.jsonl"))
    layout = JobLayout(tmp_path / "jobs" / "job")
    stage = layout.stage("teacher_rl")
    stage.mkdir(parents=True)
    layout.plan.write_text(plan.model_dump_json())
    layout.ledger.write_text("")
    task = StageTask(job_dir=layout.root, stage="teacher_rl", attempt=1, models={}, supervisor=this_process())
    (stage / "task.json").write_text(task.model_dump_json())
    outputs = [stage / "measured.json", stage / "samples" / "first.txt"]

    def train(_: StageRuntime) -> StageResult:
        for path in (*outputs, stage / "checkpoints" / "checkpoint-1" / "model.safetensors"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        copy_model(DEMO / "student", layout.model("teacher"))
        return StageResult(stage="teacher_rl", kind="teacher_rl")

    assert main([str(stage / "task.json")], lambda _: train) == 0
    done = disk.named(layout.result("teacher_rl"))
    assert disk.named(layout.model("teacher")) < done
    events = stage / task.events_name
    places = [stage / "samples", stage, stage.parent, layout.root]
    for path in (*outputs, events, layout.ledger, *places):
        assert disk.synced(path) < done, path
    assert not [call for call in disk.calls if "checkpoint" in str(call)], "they have hashes, and are of no use now"


def test_the_splits_rows_come_before_what_says_that_it_is_made(tmp_path: Path, disk: Disk) -> None:
    upload = labels(tmp_path / "labels.jsonl")
    layout = JobLayout(tmp_path / "job")
    with upload.open("rb") as stream:
        ingest(stream, layout.root / "rows.jsonl")
    host = _LocalHost(lambda _: None, lambda: False)
    Pipeline(plan_for(upload), layout.root / "rows.jsonl", layout, host)._prepare()
    done = disk.named(layout.data / "split.json")
    for role in ROLES:
        path = layout.data / f"{role}.jsonl"
        assert disk.named(path) < done
        assert ("sync", layout.data) in disk.calls[disk.named(path) : done]
    assert disk.synced(layout.root) < done, "the data folder is new"


def test_what_the_teacher_made_of_a_rollout_is_whole_or_not_there(tmp_path: Path, disk: Disk) -> None:
    one = torch.ones(1, 3, dtype=torch.long)
    inputs = {f"{part}_{kind}": one for part in ("prompt", "completion") for kind in ("ids", "mask")}
    scored = ScoredOnce(tmp_path / "teacher")
    scored.batch({**inputs, "rollout": torch.tensor([7])}, lambda *_: torch.zeros(1, 3, 2))
    # Its name may be lost: then it is made again.
    (call,) = (call for call in disk.calls if call[0] == "rename")
    assert call[2] == tmp_path / "teacher" / "7.safetensors"
    assert disk.calls.index(("sync", call[1])) < disk.calls.index(call)


# --- the service ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    context = open_context(Settings(state_dir=tmp_path / "state", model_roots=(DEMO,)))
    yield context
    context.db.close()


def test_a_file_that_the_database_names_is_on_the_disk(tmp_path: Path, ctx: Context, disk: Disk) -> None:
    event.listen(ctx.db.engine, "commit", lambda _: disk.calls.append(("commit",)))
    with labels(tmp_path / "labels.jsonl").open("rb") as stream:
        row = files.upload(ctx, stream, filename="labels.jsonl", purpose="fine-tune")
    folder = ctx.settings.file_dir(row.id)
    done = disk.calls.index(("commit",))
    assert disk.named(folder / "rows.jsonl") < done
    for path in (folder / "upload.jsonl", folder, folder.parent, folder.parent.parent):
        assert disk.synced(path) < done, path


def test_the_first_keys_file_is_never_empty(ctx: Context, disk: Disk) -> None:
    first_key(ctx)
    disk.named(ctx.settings.key_file)


def test_an_empty_key_file_is_replaced_and_makes_nothing_a_key(ctx: Context) -> None:
    ctx.settings.key_file.write_text("")
    secret = first_key(ctx)
    assert secret.startswith("s2d-")
    assert first_key(ctx) == ctx.settings.key_file.read_text().strip() == secret
    assert authenticate(ctx, secret).scopes >= {"admin"}
    with pytest.raises(NotAuthenticated):
        authenticate(ctx, "")


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_and_every_new_folder_above_it_stay(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "new" / "newer" / "file.json"
    write_atomic(path, "{}")
    when = disk.named(path)
    for folder in (tmp_path, tmp_path / "new"):
        assert disk.synced(folder) < when
    before = len(disk.calls)
    write_atomic(path, "[]")
    assert len(disk.calls) - before == 3, "the file, its name, its folder: no more where the folders are there"


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EBADF, errno.EACCES])
def test_a_file_system_that_syncs_no_folders_is_good_enough(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_sync(monkeypatch, lambda path: Path(path).is_dir(), error)
    write_atomic(tmp_path / "new" / "file", "x")
    assert (tmp_path / "new" / "file").read_text() == "x"


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO])
def test_a_file_that_cannot_be_synced_is_an_error(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    refuse_to_sync(monkeypatch, lambda path: path.endswith("file"), error)
    with pytest.raises(OSError, match=os.strerror(error)):
        make_durable(tmp_path)


def test_what_a_janitor_deletes_meanwhile_is_no_error_and_the_rest_is_synced(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_text("x")
    gone: list[Path] = []
    whole = Path.is_dir

    def look_then_delete(self: Path) -> bool:
        found = whole(self)
        if self in folders and not gone:
            gone.append(self)
            shutil.rmtree(self)
        return found

    monkeypatch.setattr(Path, "is_dir", look_then_delete)
    make_durable(tmp_path)
    assert len(gone) == 1
    for folder in (folder for folder in folders if folder not in gone):
        assert disk.synced(folder / "file") < disk.synced(folder) < disk.synced(tmp_path)
