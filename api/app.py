"""The application: `uvicorn --factory api.app:create_app`, or `create_app(settings)` from a program.

Open event streams end with their jobs, so run uvicorn with `timeout_graceful_shutdown`, else a stop waits for them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from api import health, metrics
from api.access import Access
from api.limits import BodyLimit
from api.metrics import Metrics
from api.native import compare, events, jobs, keys, plans
from api.native.snapshots import Snapshots
from api.observe import Observe
from api.openai import chat, files, fine_tuning, graders, models
from api.openapi import describe
from api.problems import Envelope, install
from s2d import __version__
from s2d.observe import OFF, open_tracing, set_up
from s2d.services.chat import open_chat
from s2d.services.context import first_key, open_context
from s2d.services.grader_runs import GraderRuns
from s2d.services.grading import Grading
from s2d.services.tails import Tails
from s2d.settings import Settings

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The whole HTTP surface. Nothing is opened before the server starts it.

    Without settings the process is the service's own: they are read from its environment, and its logs are set up.
    """
    if settings is None:
        settings = Settings()
        set_up(settings, "api")
    counted = Metrics()
    app = FastAPI(
        title="s2d",
        version=__version__,
        lifespan=partial(_lifespan, settings),
        middleware=_middleware(settings, counted),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
        # FastAPI would document its own 422 otherwise; `describe` adds what we answer.
        responses={"default": {"description": "Any other error, in the same shape."}},
    )
    app.state.metrics, app.state.tracing = counted, OFF
    install(app)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(_v1())
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    return app


def _v1() -> APIRouter:
    v1 = APIRouter(prefix="/v1")
    # Questions first: the router goes through its parts in order, and these are asked most often.
    for part in (chat, jobs, events, files, plans, models, compare, keys, fine_tuning, graders):
        v1.include_router(part.router)
    return v1


def _middleware(settings: Settings, counted: Metrics) -> list[Middleware]:
    """From the outside in."""
    return [
        Middleware(Observe, metrics=counted),
        Middleware(Envelope),
        Middleware(Access),
        Middleware(
            BodyLimit,
            max_body_bytes=settings.max_body_bytes,
            max_upload_bytes=settings.max_upload_bytes,
            body_timeout_s=settings.body_timeout_s,
        ),
    ]


@asynccontextmanager
async def _lifespan(settings: Settings, app: FastAPI) -> AsyncIterator[None]:
    app.state.tracing = open_tracing(settings, "s2d-api")
    context = await run_in_threadpool(open_context, settings)
    await run_in_threadpool(first_key, context)
    app.state.context, app.state.chat, app.state.grading = context, open_chat(settings), Grading()
    app.state.grader_runs, app.state.tails = GraderRuns(app.state.grading), Tails()
    app.state.snapshots = Snapshots(jobs.render)
    log.info("the API key is in %s", settings.key_file)
    try:
        yield
    finally:
        await app.state.chat.close()
        app.state.grading.close()
        context.db.close()
        await run_in_threadpool(app.state.tracing.close)


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}_{route.name}"
