"""The one task: look at this job."""

from __future__ import annotations

import os
import socket

from worker.celery_app import TASK, app, housekeeping
from worker.supervisor import Supervisor


@app.task(name=TASK)
def run_job(job_id: str) -> None:
    """Run the job if it can be claimed; a second message for the same job finds nothing to do."""
    if housekeeping.draining.is_set():
        return  # the message is sent again; a job claimed now would only be handed back
    name = f"{socket.gethostname()}:{os.getpid()}"
    Supervisor(housekeeping.context, name, housekeeping.draining.is_set, housekeeping.tracing).run(job_id)
