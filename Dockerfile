# vidgen-worker in a container: the program, its locked dependencies, no compiler, no pip, no secret.
#
#   docker build --tag vidgen-worker .
#   docker run --env-file worker.env vidgen-worker migrate
#   docker run --env-file worker.env --read-only --tmpfs /tmp --stop-timeout 110 vidgen-worker
#
# Secrets come at run time: by the environment, or as files database_url, runwayml_api_secret and
# supabase_service_role_key in /run/secrets. The base is yours to say, a Debian with Python:
# --build-arg BASE=IMAGE. It renders films. Fonts for captions in Chinese, Japanese and Korean are 90 MB,
# twice all others together, so they come only where they are asked for:
# --build-arg FONTS="fonts-noto-core fonts-noto-cjk". Before you hand on an image: docs/licences.md.

ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv --without-pip /opt/vidgen-worker
COPY requirements.lock ./
# The lock is a constraint here, not a list: what the package does not ask for, the sandbox and the
# tools of its developers, stays out.
RUN python -m pip install --constraint requirements.lock hatchling
COPY pyproject.toml README.md LICENSE .env.example ./
COPY migrations migrations
COPY vidgen_worker vidgen_worker
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
  && set -- dist/*.whl \
  && python -m pip --python /opt/vidgen-worker install --constraint requirements.lock "$1[films]"

FROM ${BASE}
# Before the program: they change less often than it does.
ARG FONTS="fonts-noto-core"
RUN apt-get update \
  && apt-get install --yes --no-install-recommends libfribidi0 ${FONTS} \
  && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/vidgen-worker /opt/vidgen-worker
ENV PATH=/opt/vidgen-worker/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CREDENTIALS_DIRECTORY=/run/secrets \
    VIDGEN_METRICS_PORT=9464
# A number, so that Kubernetes' runAsNonRoot can tell. It owns nothing and writes to /tmp only.
USER 10001:10001
WORKDIR /tmp
# A drain hands tasks back at their checkpoints. It takes up to VIDGEN_DRAIN_TIMEOUT, 90 s, so give
# it longer than that before the kill: --stop-timeout, stop_grace_period, terminationGracePeriodSeconds.
STOPSIGNAL SIGTERM
# Healthy: the loops turn. That Postgres is away is no reason to restart a worker.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", \
  "import http.client, os; h = http.client.HTTPConnection('127.0.0.1', int(os.environ['VIDGEN_METRICS_PORT']), timeout=4); h.request('GET', '/healthz'); raise SystemExit(h.getresponse().status != 200)"]
ENTRYPOINT ["vidgen-worker"]
CMD ["run"]
