# check=skip=InvalidDefaultArgInFrom
# Every stage but those that sample, on NVIDIA's PyTorch image: docs/containers.md. Linted, and never built.
ARG PYTORCH_TAG
FROM nvcr.io/nvidia/pytorch:${PYTORCH_TAG}
ARG PYTORCH_TAG
ARG MEGATRON_CORE_VERSION
ARG TRANSFORMER_ENGINE_VERSION
ARG APEX_COMMIT
LABEL org.opencontainers.image.title="irpo-megatron, training" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/pytorch:${PYTORCH_TAG}" \
      irpo-megatron.megatron-core="${MEGATRON_CORE_VERSION}" \
      irpo-megatron.transformer-engine="${TRANSFORMER_ENGINE_VERSION}" \
      irpo-megatron.apex="${APEX_COMMIT}"

# apex is wanted for one kernel. Megatron-Core 0.16 adds gradients of weights to their fp32 sums inside the matrix product,
# Transformer Engine's products included, only where fused_weight_gradient_mlp_cuda can be imported. Optimizer, norms and
# all else are Transformer Engine's.
RUN PIP_CONSTRAINT='' APEX_CPP_EXT=1 APEX_CUDA_EXT=1 python3 -m pip install --no-cache-dir --no-deps --force-reinstall \
    --no-build-isolation "apex @ git+https://github.com/NVIDIA/apex@${APEX_COMMIT}"

# The base image brings torch, and Transformer Engine compiled against it. What NVIDIA built (its versions have a `+`) and
# what NVIDIA pins stays as it is. PIP_CONSTRAINT names those pins too, and would hold for the isolated build of this
# package, which needs a newer setuptools.
WORKDIR /usr/src/irpo-megatron
COPY . .
RUN python3 -m pip list --format=freeze > /tmp/installed.txt \
    && grep --extended-regexp "^transformer.engine==${TRANSFORMER_ENGINE_VERSION}([+]|$)" /tmp/installed.txt \
    && grep --fixed-strings '+' /tmp/installed.txt > /tmp/built.txt \
    && python3 docker/constraints.py /tmp/built.txt /etc/pip/constraint.txt constraints.txt > /tmp/constraints.txt \
    && PIP_CONSTRAINT='' python3 -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
    '.[train,report,math,hub]' "megatron-core==${MEGATRON_CORE_VERSION}" \
    && rm /tmp/installed.txt /tmp/built.txt /tmp/constraints.txt

COPY docker/versions.env /etc/irpo-megatron/versions.env
RUN useradd --uid 10001 --create-home irpo \
    && install --directory --owner irpo /work
# Steps start in the user's working directory, where a checkout would be imported in place of what is installed here.
ENV PYTHONSAFEPATH=1
USER 10001
WORKDIR /work
