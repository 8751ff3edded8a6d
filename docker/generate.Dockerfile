# check=skip=InvalidDefaultArgInFrom
# The workers, which sample, on TensorRT-LLM's release image: docs/containers.md. Linted, and never built.
ARG TENSORRT_LLM_VERSION
FROM nvcr.io/nvidia/tensorrt-llm/release:${TENSORRT_LLM_VERSION}
ARG TENSORRT_LLM_VERSION
LABEL org.opencontainers.image.title="irpo-megatron, generation" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/tensorrt-llm/release:${TENSORRT_LLM_VERSION}" \
      irpo-megatron.tensorrt-llm="${TENSORRT_LLM_VERSION}"

# Everything in the base image stays as it is: TensorRT-LLM pins most of it, and pip asks only for what it installs itself.
WORKDIR /usr/src/irpo-megatron
COPY . .
RUN python3 -m pip list --format=freeze > /tmp/installed.txt \
    && python3 docker/constraints.py /tmp/installed.txt constraints.txt > /tmp/constraints.txt \
    && PIP_CONSTRAINT='' python3 -m pip install --no-cache-dir --constraint /tmp/constraints.txt . \
    && rm /tmp/installed.txt /tmp/constraints.txt

COPY docker/versions.env /etc/irpo-megatron/versions.env
RUN useradd --uid 10001 --create-home irpo \
    && install --directory --owner irpo /work
# Steps start in the user's working directory, where a checkout would be imported in place of what is installed here.
ENV PYTHONSAFEPATH=1
USER 10001
WORKDIR /work
