# check=skip=InvalidDefaultArgInFrom
# The whole loop on a CPU, as `make demo` sets it up: docs/containers.md. Linted, and never built.
ARG PYTHON_VERSION
FROM python:${PYTHON_VERSION}-bookworm
ARG PYTHON_VERSION
LABEL org.opencontainers.image.title="irpo-megatron, CPU" \
      org.opencontainers.image.base.name="python:${PYTHON_VERSION}-bookworm"

COPY docker/versions.env /etc/irpo-megatron/versions.env
RUN useradd --uid 10001 --create-home irpo \
    && install --directory --owner irpo /work
USER 10001
WORKDIR /work
COPY --chown=10001 . .
RUN make .venv/.installed

ENTRYPOINT [".venv/bin/irpo"]
