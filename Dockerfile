# CPU or CUDA, whichever torch the package registry has for this machine:  docker build -t nsnet .
# Without the CUDA libraries, some 5 GB less:  --build-arg TORCH_INDEX=<the index of CPU builds>
# The CLIP tower is fetched, verified and baked in.  --build-arg BAKE_BACKBONE=0  leaves it out;
# mount one instead: -v /path/tower.safetensors:/backbone/tower.safetensors:ro
#
# Python 3.11 is what .ci/run tests on.
FROM python:3.11-slim-bookworm AS dependencies
ARG PIP_INDEX_URL
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
# Gigabytes in a layer of their own; all else is what requirements.lock says, to the byte.
RUN pip install 'torch>=2.9' 'torchvision>=0.24' ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY requirements.lock ./
RUN pip install --no-deps --require-hashes --requirement requirements.lock

FROM dependencies AS backbone
ARG PIP_INDEX_URL
ARG BAKE_BACKBONE=1
WORKDIR /src
COPY model model
COPY cli cli
RUN mkdir /backbone && if [ "$BAKE_BACKBONE" = 1 ]; then \
      XDG_CACHE_HOME=/tmp/cache python -m cli.main backbone fetch \
   && install -m 644 /tmp/cache/nsnet/*.safetensors /backbone/tower.safetensors \
   && rm -r /tmp/cache \
   && python -m cli.main backbone verify --path /backbone/tower.safetensors; fi

FROM dependencies AS code
ARG PIP_INDEX_URL
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY weights weights
COPY model model
COPY app app
COPY benchmarks benchmarks
COPY cli cli
RUN pip install --no-deps --target /opt/nsnet .

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 nsnet \
 && useradd --uid 10001 --gid nsnet --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nsnet
COPY --from=dependencies /venv /venv
COPY --from=backbone /backbone /backbone
COPY --from=code /opt/nsnet /opt/nsnet
ENV PATH=/opt/nsnet/bin:/venv/bin:$PATH PYTHONPATH=/opt/nsnet \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 \
    NSNET_HOST=0.0.0.0 NSNET_DRAIN_DELAY_S=3 \
    NSNET_BACKBONE=/backbone/tower.safetensors
# As pyproject.toml has it; a test holds them together.
ARG VERSION=0.8.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nsnet" \
      org.opencontainers.image.description="Tells AI-generated images from photographs" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness, as some orchestrators restart on it: a server that loads or drains needs none.
# http.client, because urllib would ask a proxy that the environment names. NSNET_PORT may be an
# address, as Kubernetes and Docker set it for a service called nsnet: the port is the default then.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; p = [os.environ.get(n, '').strip() for n in ('NSNET_PORT', 'PORT')] + ['8000']; c = http.client.HTTPConnection('127.0.0.1', int(next(filter(str.isdecimal, p))), timeout=2); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
# Signalled directly: it handles SIGTERM itself, and reaps the decoders that it starts.
CMD ["nsnet", "serve"]
