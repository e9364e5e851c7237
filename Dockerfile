# syntax=docker/dockerfile:1
# The service as an image: `docker build --target cpu .`, `--target gpu` for NVIDIA GPUs, `--target ray` for a Ray
# cluster. The default base model, the default checkpoint and, for GPUs, the compiled kernels are inside: a container
# starts without any network.
#
# pip is configured where it runs: PIP_INDEX_URL and PIP_EXTRA_INDEX_URL as build arguments reach it. Where they name an
# index with CPU builds of torch, the cpu image is smaller by gigabytes; TORCH says which build.

ARG TORCH=torch==2.13.0

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/srv/venv/bin:$PATH \
    PERK_CACHE_DIR=/srv/base \
    PERK_DATA_DIR=/var/lib/perk
WORKDIR /app
# A fixed id, so that whoever owns a mounted folder can give it to this user.
RUN groupadd --gid 10001 perk \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/perk --create-home --shell /usr/sbin/nologin --no-log-init perk

# What changes rarely: the dependencies alone, so that a change of the code reuses their layer. The install is editable,
# that is, /app itself is on the path, whatever is copied there later.
FROM base AS dependencies
ARG TORCH
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /srv/venv
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
RUN pip install --constraint constraints.txt "$TORCH"
# A layer of its own: torch is most of the image.
# hadolint ignore=DL3059
RUN pip install --constraint constraints.txt --editable '.[train,tracing]'

FROM dependencies AS gpu-dependencies
RUN pip install --constraint constraints.txt --editable '.[train,tracing,gpu]'

FROM dependencies AS ray-dependencies
RUN pip install --constraint constraints.txt --editable '.[train,tracing,ray]'

FROM dependencies AS base-model
COPY kernels kernels
COPY perk perk
# A cache is its user's alone; this one is for whoever runs the image.
RUN python -m perk \
    && chmod -R a+rX /srv/base

# No GPU is needed to compile for one.
FROM gpu-dependencies AS gpu-kernels
COPY kernels kernels
RUN python -m kernels.aot --targets sm_80,sm_86,sm_89,sm_90 --cache /srv/kernels

FROM base AS service
COPY --from=base-model /srv/base /srv/base
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY checkpoints checkpoints
COPY kernels kernels
COPY perk perk
COPY meta_training meta_training
COPY benchmarks benchmarks
COPY service service
VOLUME /var/lib/perk
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["perk"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

FROM service AS gpu
USER 0
# Triton compiles its launchers on the machine that has the GPU.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV TRITON_CACHE_DIR=/srv/kernels
COPY --from=gpu-dependencies /srv/venv /srv/venv
COPY --from=gpu-kernels --chown=10001:10001 /srv/kernels /srv/kernels
USER 10001:10001

FROM service AS ray
USER 0
# KubeRay asks its pods with wget how they are, and starts them from a login shell, which has a path of its own.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /srv/venv/bin/ray /usr/local/bin/ray
COPY --from=ray-dependencies /srv/venv /srv/venv
COPY deploy deploy
USER 10001:10001
ENTRYPOINT ["python", "-m", "deploy.ray"]
CMD ["--host", "0.0.0.0", "--port", "8000"]

# Last, so that `docker build .` makes it.
FROM service AS cpu
COPY --from=dependencies /srv/venv /srv/venv
