"""A checkpoint counts when its manifest does."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2d.stages.checkpoints import MANIFEST, Manifest, check, newest_valid, seal

PLAN = "plan_1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "deep").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * step)
        (folder / "deep" / "state.json").write_text("{}")
        seal(folder, plan_id=PLAN, stage="opd", step=step, sampler_position=8 * step, labels_spent=0)
    return tmp_path


def test_the_manifest_says_what_resume_needs(root: Path) -> None:
    manifest = Manifest.model_validate_json((root / "checkpoint-4" / MANIFEST).read_text())
    assert (manifest.step, manifest.sampler_position, manifest.plan_id) == (4, 32, PLAN)
    assert set(manifest.files) == {"model.safetensors", "deep/state.json"}


def test_the_newest_whole_one_is_taken_by_number_not_by_name(root: Path) -> None:
    assert newest_valid(root, PLAN) == root / "checkpoint-10"


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"short")


def lose_a_file(folder: Path) -> None:
    (folder / "deep" / "state.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def tear_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"plan_id": "pl')


@pytest.mark.parametrize("harm", [flip_a_bit, cut_short, lose_a_file, lose_the_manifest, tear_the_manifest])
def test_a_harmed_one_is_set_aside_and_the_one_before_is_used(root: Path, harm: object) -> None:
    harm(root / "checkpoint-10")  # type: ignore[operator]
    assert check(root / "checkpoint-10", PLAN) is not None
    assert newest_valid(root, PLAN) == root / "checkpoint-4"
    assert not (root / "checkpoint-10").exists()
    assert list(root.glob("quarantine-*-checkpoint-10"))


def test_another_plans_checkpoint_is_not_used(root: Path) -> None:
    assert newest_valid(root, "plan_2") is None


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "nothing", PLAN) is None
