# The images of gllm, as targets:
#   gateway       the gateway, and what else of ours runs in Compose; no torch
#   transformers  a worker with our Transformers engine, on the CPU
# (A worker with vLLM, for GPUs: deploy/docker/vllm.Dockerfile.) All but torch comes from lock files with hashes. To pin
# the base harder: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- what is installed, and with what ----------------------------------------------------------------------------------
# The environment has no pip of its own: that of the base installs into it, and stays behind.

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/gllm

# What changes with every commit is apart from what it needs, so that it is a small layer of its own. Bytecode is written
# here, once, and never checked against its source: the images are read-only.
FROM build AS ours
COPY requirements/build.lock requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --quiet --no-deps --require-hashes -r requirements/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY gllm gllm
COPY app app
COPY models/demo models/demo
RUN /opt/build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m pip --python /opt/gllm/bin/python install --quiet --no-deps --no-index /wheels/*.whl \
    && ln -s /opt/gllm/lib/python3*/site-packages/app/models /opt/gllm/models \
    && /opt/gllm/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/gllm/lib
COPY deploy/docker/healthy.py deploy/docker/preflight.py /opt/gllm/docker/

FROM ours AS ours-without-model
RUN rm -r /opt/gllm/models /opt/gllm/lib/python3*/site-packages/app/models

FROM build AS gateway-needs
COPY requirements/gateway.lock requirements/
RUN python -m pip --python /opt/gllm/bin/python install --quiet --no-deps --require-hashes -r requirements/gateway.lock \
    && /opt/gllm/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/gllm/lib

# torch is not locked, since its build depends on the machine. pip's own index gives one with CUDA, of several gigabytes;
# TORCH_INDEX names another index, such as one with builds for CPUs. Its own tests are in the words of newer Pythons.
FROM build AS transformers-needs
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
RUN python -m pip --python /opt/gllm/bin/python install --quiet ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${TORCH}"
COPY requirements/transformers.lock requirements/
RUN python -m pip --python /opt/gllm/bin/python install --quiet --no-deps --require-hashes -r requirements/transformers.lock \
    && /opt/gllm/bin/python -m compileall -q -x /torch/testing/ --invalidation-mode unchecked-hash /opt/gllm/lib

# --- what runs ---------------------------------------------------------------------------------------------------------
# One user for all, by number, so that an orchestrator can tell that it is not root. It owns nothing but its state.

FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 gllm \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /state --shell /usr/sbin/nologin gllm \
    && install -d -m 0750 -o 10001 -g 10001 /state /keys /secrets /hub
ENV PATH=/opt/gllm/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    STATE_DIR=/state \
    HF_HOME=/hub
WORKDIR /work
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["gllm"]

FROM runtime AS transformers
COPY --from=transformers-needs /opt/gllm /opt/gllm
COPY --from=ours /opt/gllm /opt/gllm
EXPOSE 8976 8100
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m --retries=3 \
    CMD ["python", "-IS", "/opt/gllm/docker/healthy.py", "8976", "/health"]
CMD ["worker", "--engine", "transformers"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gllm worker, Transformers" \
      org.opencontainers.image.description="A worker of gllm with its Transformers engine, on the CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The last target is what `docker build .` makes.
FROM runtime AS gateway
COPY --from=gateway-needs /opt/gllm /opt/gllm
COPY --from=ours-without-model /opt/gllm /opt/gllm
ENV METRICS_PORT=9100 METRICS_HOST=0.0.0.0 ENGINE_TYPE=workers
EXPOSE 8000 9100
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-IS", "/opt/gllm/docker/healthy.py", "9100", "/livez"]
CMD ["serve"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gllm" \
      org.opencontainers.image.description="An observable production gateway for language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
