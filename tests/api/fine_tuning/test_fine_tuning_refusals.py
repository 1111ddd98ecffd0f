"""What no job can be made of is refused by the name of its field."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from api_testing import assert_problem
from fine_tuning_testing import GRADER, OPTIONS, Make


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"s2d": None}, 400, "s2d"),
        ({"s2d": {}}, 400, "s2d"),
        ({"s2d": OPTIONS | {"epochs": 3}}, 400, "s2d.epochs"),
        ({"s2d": OPTIONS | {"student": "x"}}, 400, "s2d"),
        ({"s2d": OPTIONS | {"seed": 1}}, 400, "s2d"),
        ({"s2d": OPTIONS | {"teacher": "/etc"}}, 400, "s2d.teacher"),
        ({"s2d": OPTIONS | {"teacher": 5}}, 400, "s2d.teacher"),
        ({"s2d": OPTIONS | {"verifier": "astrology"}}, 400, "s2d.verifier.name"),
        ({"s2d": OPTIONS | {"verifier": {"name": "astrology"}}}, 400, "s2d.verifier.name"),
        ({"s2d": OPTIONS | {"unlabeled_prompts": 5}}, 400, "s2d"),
        ({"s2d": OPTIONS | {"labels": {"teacher_rl": 10**6}}}, 400, "s2d.labels"),
        ({"teacher": "Qwen/Qwen3-8B"}, 400, "teacher"),
        ({"model": "/etc/passwd"}, 400, "model"),
        ({"model": "gpt-4o-mini"}, 400, "model"),
        ({"model": "nobody/\ud800"}, 400, "model"),
        ({"training_file": "file_none"}, 404, "training_file"),
        ({"training_file": "file_\u0000"}, 400, "training_file"),
        ({"suffix": "x" * 65}, 400, "suffix"),
        ({"suffix": "日本"}, 400, "suffix"),
        ({"seed": -1}, 400, "seed"),
        ({"seed": 2**31}, 400, "seed"),
        ({"metadata": {"k": 1}}, 400, "metadata.k"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata.k"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata"),
        ({"validation_file": "file_none"}, 400, "validation_file"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, 400, "integrations"),
        ({"hyperparameters": {"n_epochs": 3}}, 400, "hyperparameters.n_epochs"),
        ({"method": {"type": "supervised", "supervised": {}}}, 400, "method.type"),
        ({"method": {"type": "dpo"}}, 400, "method.type"),
        ({"method": {"type": "reinforcement"}}, 400, "method.reinforcement"),
    ],
)
def test_bad_requests(
    remote: httpx.Client, body: dict[str, Any], change: dict[str, Any], status: int, param: str
) -> None:
    # Not as httpx would write it, which cannot write all of these.
    content, headers = json.dumps(body | change), {"content-type": "application/json"}
    refused = assert_problem(remote.post("/v1/fine_tuning/jobs", content=content, headers=headers), status)
    assert refused["error"]["param"] == param, refused
    assert remote.get("/v1/jobs").json()["data"] == []


def test_what_says_nothing_is_taken(make: Make) -> None:
    assert make(integrations=[], validation_file=None, seed=None, suffix=None, metadata=None).seed == 0


@pytest.mark.parametrize(
    ("grader", "code", "word"),
    [
        ({"type": "python", "name": "p", "source": "print(1)"}, "invalid_request", "python"),
        ({"type": "score_model", "name": "s", "model": "gpt", "input": []}, "invalid_request", "score_model"),
        ({"type": "text_similarity", "name": "t", "input": "", "reference": "", "evaluation_metric": "bleu"},
         "invalid_request", "text_similarity"),
        (GRADER | {"operation": "like"}, "unsupported_grader", "like"),
        (GRADER | {"reference": "{{item.other}}"}, "unsupported_grader", "label"),
        (GRADER | {"input": "{{sample.output_json.answer}}"}, "unsupported_grader", "label"),
        ({"type": "multi", "name": "m", "graders": {"a": GRADER}, "calculate_output": "a"},
         "unsupported_grader", "one"),
        ({"type": "s2d", "verifier": "astrology"}, "invalid_request", "math"),
    ],
)  # fmt: skip
def test_graders_that_no_job_can_use(
    remote: httpx.Client, body: dict[str, Any], grader: dict[str, Any], code: str, word: str
) -> None:
    method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    refused = assert_problem(remote.post("/v1/fine_tuning/jobs", json=body | {"method": method}), 400, code)
    assert word in refused["detail"]
    assert refused["error"]["param"].startswith("method.reinforcement.grader")


def test_a_grader_and_a_verifier_are_one_too_many(make: Make) -> None:
    with pytest.raises(openai.BadRequestError) as twice:
        make({"verifier": "exact"}, method={"type": "reinforcement", "reinforcement": {"grader": GRADER}})
    assert twice.value.param == "s2d.verifier"
