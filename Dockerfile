# syntax=docker/dockerfile:1
# CPU image:   docker build -t nsnet .
# CUDA image:  docker build -t nsnet:cuda --build-arg TORCH_INDEX= .
# The CLIP tower is fetched, verified and baked in; with --build-arg BAKE_BACKBONE=0 it is left out,
# to be mounted: -v /path/tower.safetensors:/backbone/tower.safetensors:ro
FROM python:3.13-slim AS build

# The index of torch's builds. Empty takes the package registry's own: on Linux that is the CUDA
# build, which also runs on CPUs. Pass the index of CPU builds to save some 4 GB.
ARG TORCH_INDEX=""
ARG BAKE_BACKBONE=1

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
RUN pip install --upgrade pip \
 && if [ -n "$TORCH_INDEX" ]; then pip install torch torchvision --index-url "$TORCH_INDEX"; fi

WORKDIR /src
# Dependencies change less often than code: this layer is kept.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir app model cli && touch app/__init__.py model/__init__.py cli/__init__.py && pip install .
COPY app app
COPY model model
COPY cli cli
RUN pip install --no-deps --force-reinstall .

RUN mkdir -p /backbone && if [ "$BAKE_BACKBONE" = 1 ]; then \
      XDG_CACHE_HOME=/tmp/cache nsnet backbone fetch \
   && mv /tmp/cache/nsnet/ViT-B-16-quickgelu.safetensors /backbone/tower.safetensors; fi

FROM python:3.13-slim
LABEL org.opencontainers.image.title="nsnet" \
      org.opencontainers.image.description="Tells AI-generated images from photographs" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin nsnet
COPY --from=build /venv /venv
COPY --from=build /backbone /backbone
COPY weights /weights
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 \
    NSNET_HOST=0.0.0.0 NSNET_PORT=8000 NSNET_DRAIN_DELAY_S=3 \
    NSNET_CHECKPOINT=/weights/nsnet-vit-b-16.safetensors \
    NSNET_BACKBONE=/backbone/tower.safetensors
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness: a server that is still loading, or draining, needs no restart.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['NSNET_PORT']}/livez\", timeout=2)"]
CMD ["nsnet", "serve"]
