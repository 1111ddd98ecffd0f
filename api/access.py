"""Nobody gets anything without an API key, nor what its scopes do not allow; the health check alone is open."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.paths import address
from s2d.errors import NotAllowed
from s2d.services.keys import Caller, Callers
from s2d.services.rates import Rates
from s2d.store.keys import Scope as KeyScope

OPEN_PATHS = frozenset({"/healthz"})
#: Questions to a student. Comparing is not among them: it tells a label's answer.
INFERENCE = ("/v1/chat/", "/v1/completions")
#: What only operators see: keys, and numbers over all tenants.
OPERATORS = ("/v1/keys", "/metrics")
READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Access:
    """Checks `Authorization: Bearer KEY` before a byte of the body is read, so that a stranger cannot fill the disk.

    A middleware and not a dependency: FastAPI reads the body first. What is added later is protected too, as a change
    that needs `train`. The caller is left in `scope["state"]["caller"]`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._callers = Callers()
        self._rates = Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and address(scope) not in OPEN_PATHS:
            caller = await self._callers.of(scope["app"].state.context, bearer(Headers(scope=scope)))
            self._rates.take(caller.key_id, caller.requests_per_min)
            check_scopes(caller, scope["method"], address(scope))
            scope.setdefault("state", {}).update(caller=caller, callers=self._callers)
        await self._app(scope, receive, send)


def bearer(headers: Headers) -> str | None:
    """The key in the Authorization header; None when there is none in the Bearer form."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def check_scopes(caller: Caller, method: str, path: str) -> None:
    """Raises NotAllowed when none of the caller's scopes covers the request."""
    enough = scopes_for(method, path)
    if not enough & caller.scopes:
        raise NotAllowed(
            f"This key may not do this: it needs the scope {' or '.join(sorted(enough))}. "
            "An operator makes keys with `s2d keys create`."
        )


def scopes_for(method: str, path: str) -> frozenset[KeyScope]:
    """The scopes of which a request needs one."""
    if path.startswith(OPERATORS):
        return frozenset({"admin"})
    if path.startswith(INFERENCE):
        return frozenset({"infer"})
    if method not in READING:
        return frozenset({"train"})
    if path == "/openapi.json" or path.startswith("/v1/models"):
        return frozenset({"read", "infer"})
    return frozenset({"read"})
