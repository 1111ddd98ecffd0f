"""What the tests of fine-tuning jobs share beside fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from api_testing import PLAN
from openai.types.fine_tuning import FineTuningJob

from s2d.services.context import Context
from s2d.store import jobs

OPTIONS: dict[str, Any] = {"teacher": PLAN["teacher"], "hardware": PLAN["hardware"]}


GRADER: Any = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


def ours(job: FineTuningJob) -> dict[str, Any]:
    """What only s2d says of a job."""
    assert job.model_extra is not None
    return job.model_extra["s2d"]  # type: ignore[no-any-return]


Make = Callable[..., FineTuningJob]


def claimed(ctx: Context, job_id: str) -> jobs.Claim:
    with ctx.db.begin() as session:
        claim = jobs.claim(session, job_id, "worker", 60)
    assert claim is not None
    return claim
