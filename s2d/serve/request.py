"""A completion request, of a chat or of a text: what is accepted, and what of it a kind of server honours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NewType

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from s2d.errors import InvalidRequest
from s2d.serve.lease import Lease

#: Fields that do not change the answer. Clients send them for their own books, so they are taken and dropped.
NO_EFFECT = frozenset({"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
#: Values that ask for what happens anyway, so that no server needs to know the field.
NEUTRAL: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "top_k": 0,
    "min_p": 0,
    "response_format": {"type": "text"},
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "echo": False,
}


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


def _joined(content: Any) -> Any:
    """A list of text parts as one string: a chat template expects a string."""
    if not isinstance(content, list):
        return content
    return "\n".join(TextPart.model_validate(part).text for part in content)


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_joined)] = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Sampling(BaseModel):
    """How an answer is drawn, of a chat or of a text. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: Annotated[list[str], Field(max_length=4)] | str | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    logit_bias: dict[int, float] | None = None
    repetition_penalty: float | None = Field(None, gt=0)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    # The engine may not honour these.
    n: int | None = Field(None, ge=1, le=16)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)


class SamplingFields(Sampling):
    """How the answer to a chat is drawn."""

    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] | None = None


class Streamed(BaseModel):
    """Whether the answer comes whole or in pieces."""

    stream: bool = False
    stream_options: dict[str, bool] | None = None


class ChatRequest(SamplingFields, Streamed):
    """OpenAI's request body, with vLLM's and transformers' common additions."""

    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    # The engine may not honour these.
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class TextRequest(Sampling, Streamed):
    """OpenAI's older body: a text to go on with, and no chat template."""

    prompt: str = Field(min_length=1)
    # The engine may not honour these.
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None


@dataclass(frozen=True)
class Endpoint:
    """Where a request goes, and what it may be. `fields` is the engine's attribute with those that it honours."""

    path: str
    request: type[BaseModel]
    fields: Literal["fields", "text_fields"]


CHAT = Endpoint("/v1/chat/completions", ChatRequest, "fields")
TEXT = Endpoint("/v1/completions", TextRequest, "text_fields")


#: A request's fields once they were checked: what the client gave, and nothing else.
Asked = NewType("Asked", dict[str, Any])


def asked(request: BaseModel) -> Asked:
    """A request that its model has checked."""
    return Asked(request.model_dump(mode="json", exclude_none=True, exclude_unset=True))


def checked(body: dict[str, Any], endpoint: Endpoint = CHAT) -> Asked:
    """A request's body, checked here.

    Raises:
        InvalidRequest: it names the field that is malformed, missing or unknown.
    """
    meant = {name: value for name, value in body.items() if name not in NO_EFFECT and value is not None}
    try:
        return asked(endpoint.request.model_validate(meant))
    except ValidationError as error:
        raise _invalid(error) from error


def fitted(lease: Lease, body: Asked, endpoint: Endpoint) -> dict[str, Any]:
    """`body` as the lease's server is to get it.

    Raises InvalidRequest naming the parameter: not honoured by this kind of server (`unsupported_parameter`), or over
    the model's context (`context_length_exceeded`).
    """
    request = {name: value for name, value in body.items() if name not in NO_EFFECT}
    honoured: frozenset[str] = getattr(lease.engine, endpoint.fields)
    for name in request.keys() - honoured:
        if request[name] != NEUTRAL[name]:
            message = f"the server of this student does not honour {name!r}: leave it out, or serve with vLLM"
            raise InvalidRequest(message, code="unsupported_parameter", param=name)
        del request[name]
    return lease.engine.fit(lease.path, request) | {"model": lease.model}


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    return InvalidRequest(f"{where}: {first['msg']}" if where else first["msg"], param=where or None)
