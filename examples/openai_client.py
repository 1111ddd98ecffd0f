"""A whole job with nothing but the `openai` package: upload, fine-tune, follow, ask the student.

    export OPENAI_BASE_URL=http://127.0.0.1:8400/v1 OPENAI_API_KEY=$(cat ~/.s2d/api-key)
    python examples/openai_client.py labels.jsonl --student Qwen/Qwen3-1.7B --teacher Qwen/Qwen3-8B --ask "What is 2+2?"

What only s2d has travels in `extra_body={"s2d": …}`: the teacher, and any field of a plan request (docs/plan.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

FINAL = ("succeeded", "failed", "cancelled")


def main() -> int:
    options = arguments()
    # Every answer must be exactly what the client's types say.
    client = OpenAI(_strict_response_validation=True)
    with options.labels.open("rb") as labels:
        file = client.files.create(file=labels, purpose="fine-tune")
    print(f"{file.id}: {file.bytes} bytes")
    wanted = {"teacher": options.teacher, **json.loads(options.plan.read_text() if options.plan else "{}")}
    job = client.fine_tuning.jobs.create(
        model=options.student,
        training_file=file.id,
        suffix=options.suffix,
        metadata={"made-by": "example"},
        extra_body={"s2d": wanted},
    )
    print(f"{job.id}: {job.status}")
    job = follow(client, job.id)
    if job.fine_tuned_model is None:
        print(f"{job.status}: {job.error.message if job.error else 'no student'}", file=sys.stderr)
        return 1
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        print(f"checkpoint {checkpoint.fine_tuned_model_checkpoint}, step {checkpoint.step_number}")
    return ask(client, job.fine_tuned_model, options.ask)


def follow(client: OpenAI, job_id: str) -> Any:
    """The job once it has ended; its events are printed as they come."""
    told: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        # Newest first.
        news = [event for event in client.fine_tuning.jobs.list_events(job_id, limit=100) if event.id not in told]
        for event in reversed(news):
            told.add(event.id)
            if event.type == "message":
                print(f"{event.level}: {event.message}")
        if job.status in FINAL:
            return job
        time.sleep(1)


def ask(client: OpenAI, student: str, question: str) -> int:
    """The same question, answered whole and as a stream."""
    assert student in [model.id for model in client.models.list()]
    asked: dict[str, Any] = {
        "model": student,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 64,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)
    print(f"{student} says: {whole.choices[0].message.content}")
    pieces = [
        choice.delta.content or ""
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
    ]
    print(f"and in {len(pieces)} pieces: {''.join(pieces)}")
    return 0 if "".join(pieces) == whole.choices[0].message.content else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, help="JSONL: problems with their answers")
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--plan", type=Path, help="JSON: more fields of the plan request")
    parser.add_argument("--suffix", default="example")
    parser.add_argument("--ask", required=True, help="a question for the student")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
