# A worker with vLLM, for GPUs: vLLM's own image, and gllm in an environment of its own beside it. Each pins what the other
# needs newer, so neither is installed into the other; a worker starts the `vllm` on its PATH. Apart from ../../Dockerfile,
# since this base is large and some builders fetch the bases of all stages.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${VLLM_IMAGE} AS environment
# hadolint ignore=DL3002
USER 0
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv --without-pip /opt/build \
    && python3 -m venv --without-pip /opt/gllm
COPY requirements/build.lock requirements/gateway.lock requirements/
RUN python3 -m pip --python /opt/build/bin/python install --quiet --no-deps --require-hashes -r requirements/build.lock \
    && python3 -m pip --python /opt/gllm/bin/python install --quiet --no-deps --require-hashes -r requirements/gateway.lock
COPY pyproject.toml README.md LICENSE ./
COPY gllm gllm
COPY app app
COPY models/demo models/demo
RUN /opt/build/bin/hatchling build -t wheel -d /wheels \
    && python3 -m pip --python /opt/gllm/bin/python install --quiet --no-deps --no-index /wheels/*.whl \
    && /opt/gllm/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/gllm/lib
COPY deploy/docker/healthy.py /opt/gllm/docker/

FROM ${VLLM_IMAGE} AS vllm
USER 0
RUN groupadd --gid 10001 gllm \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /state --shell /usr/sbin/nologin gllm \
    && install -d -m 0750 -o 10001 -g 10001 /state /keys /secrets /hub
COPY --from=environment /opt/gllm /opt/gllm
ENV PATH=$PATH:/opt/gllm/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    STATE_DIR=/state \
    HOME=/state \
    HF_HOME=/hub \
    XDG_CACHE_HOME=/state/cache \
    VLLM_CACHE_ROOT=/state/cache/vllm \
    VLLM_NO_USAGE_STATS=1
WORKDIR /work
USER 10001:10001
EXPOSE 8976 8100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15m --retries=3 \
    CMD ["/opt/gllm/bin/python", "-IS", "/opt/gllm/docker/healthy.py", "8976", "/health"]
ENTRYPOINT ["/opt/gllm/bin/gllm"]
CMD ["worker", "--engine", "vllm"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gllm worker, vLLM" \
      org.opencontainers.image.description="A worker of gllm with vLLM, for GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
