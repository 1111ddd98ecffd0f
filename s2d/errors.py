"""The one root of every error that a user can cause or must act on.

Each error carries a stable `code` (documented in docs/errors.md), the HTTP status that the API answers with, the
request parameter at fault where there is one, and a message that says what to do.
"""

from __future__ import annotations

import errno
import os
from typing import Any

#: A disk without room, and a user's share of one that is used up.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class S2DError(Exception):
    """A problem with a known cause. `code` is stable; `status` is the HTTP status that the API gives it."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.param = param
        self.details = details


class InvalidRequest(S2DError):
    """The request cannot be carried out as it stands; nothing was changed."""

    status = 400
    code = "invalid_request"


class InvalidData(InvalidRequest):
    """A data file was read and is not usable."""

    code = "invalid_data"


class InvalidPlan(InvalidRequest):
    """A plan cannot be made, or does not fit the data it is to run on."""

    code = "invalid_plan"


class IncompatiblePair(InvalidPlan):
    """Teacher and student differ where distillation needs them equal (vocabulary, EOS, chat template)."""

    code = "incompatible_pair"


class ModelRefused(InvalidRequest):
    """A model path that is outside the allowed root, is not safetensors, or wants remote code."""

    code = "model_refused"


class NotAuthenticated(S2DError):
    status = 401
    code = "invalid_api_key"


class NotAllowed(S2DError):
    """The key is good, but its scopes do not cover the request."""

    status = 403
    code = "insufficient_scope"


class NotFound(S2DError):
    status = 404
    code = "not_found"


class Conflict(S2DError):
    """The resource is in a state that does not allow this, or an idempotency key was used for another body."""

    status = 409
    code = "conflict"


class Changed(S2DError):
    """The resource is not any more as the caller saw it (If-Match); nothing was changed."""

    status = 412
    code = "changed_meanwhile"


class TooLarge(S2DError):
    status = 413
    code = "too_large"


class TooManyRequests(S2DError):
    """More at once than is served; worth trying again in a moment."""

    status = 429
    code = "too_many_requests"
    retry_after_s = 1


class Unavailable(S2DError):
    """A part that the request needs (broker, student server) is not up; worth trying again."""

    status = 503
    code = "unavailable"
    retry_after_s = 5


class StageFailure(S2DError):
    """A stage stopped for a named reason. `code` is one of `FAILURE_CODES`."""

    code = "stage_failed"


def is_disk_full(err: BaseException) -> bool:
    """Whether there was no room to write, also where a library (safetensors, torch) says so in an error of its own."""
    known = isinstance(err, OSError) and err.errno in _DISK_FULL
    return known or any(os.strerror(number) in str(err) for number in _DISK_FULL)


#: Every code that a failed job can carry, with what the user can do about it (fault table, docs/errors.md).
FAILURE_CODES: dict[str, str] = {
    "gate_c1": "The teacher did not improve on the validation labels: more labels, more steps or another teacher; "
    "or ask for on_gate_failure: continue.",
    "gate_c2": "Teacher and student are still too far apart after the warmup's cap: more warmup steps or prompts, a "
    "larger student, a larger KL bound, or on_gate_failure: continue.",
    "out_of_memory": "Lower per_device_batch_size or max_completion_tokens, or ask for LoRA.",
    "disk_full": "Free disk space under the state folder, then resume the job.",
    "nan_loss": "Lower the learning rate of the stage, then start again.",
    "data": "The rows that the plan counts on are not in the file: see the message.",
    "label_spent": "A stage would have read a label of another use: the job's folder was changed; start a new job.",
    "model": "A model could not be read or loaded, or is not allowed: see the message.",
    "verifier": "The verifier's processes could not be kept alive: see the log lines.",
    "lost_worker": "The worker was lost again and again without getting further: look at its host, then resume.",
    "stage_failed": "See the last log lines.",
}
