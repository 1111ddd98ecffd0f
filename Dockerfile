# Two images from one file: `api` without the training libraries, `worker` with them. docs/deploy.md says how to run them.
FROM python:3.11-slim AS build-api
WORKDIR /src
RUN python -m venv /opt/s2d
ENV PATH=/opt/s2d/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml README.md ./
COPY s2d s2d
COPY api api
COPY worker worker
RUN pip install '.[postgres,otel]'

FROM build-api AS build-worker
RUN pip install '.[train,postgres,otel]'

FROM python:3.11-slim AS base
# New volumes take over the owner of these folders; other users of the host read neither keys nor data.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin s2d \
    && install --directory --owner=s2d --group=s2d --mode=0700 /state /hub
ENV PATH=/opt/s2d/bin:$PATH PYTHONUNBUFFERED=1 S2D_STATE_DIR=/state HF_HOME=/hub
USER s2d
WORKDIR /state

FROM base AS api
COPY --from=build-api /opt/s2d /opt/s2d
EXPOSE 8400
CMD ["python", "-m", "uvicorn", "api.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8400", "--timeout-graceful-shutdown", "5"]

FROM base AS worker
COPY --from=build-worker /opt/s2d /opt/s2d
CMD ["python", "-m", "celery", "-A", "worker.celery_app", "--quiet", "worker", "--pool=threads", "--concurrency=1", "--without-gossip", "--without-mingle"]
