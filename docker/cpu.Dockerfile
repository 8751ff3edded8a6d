# The whole loop on a CPU, as `make demo` sets it up. Written and linted by eye only: it has not been built.
#   docker build --file docker/cpu.Dockerfile --tag irpo-megatron:cpu .
#   docker run --rm --volume "$PWD/runs:/work/runs" irpo-megatron:cpu run examples/arithmetic_cpu.yaml
FROM python:3.11.7-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home irpo

USER irpo
WORKDIR /work
COPY --chown=irpo:irpo . .
RUN make .venv/.installed

ENTRYPOINT [".venv/bin/irpo"]
