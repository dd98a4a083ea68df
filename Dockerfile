# An image with vlp and all its extras.
#
#   docker build -t vlp .                             # for CPUs
#   docker build -t vlp:cuda --build-arg DEVICE=cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker run --rm -v "$PWD:/work" vlp demo demo
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" --entrypoint accelerate vlp:cuda launch -m vlp pretrain ...
#
# DEVICE       cpu or cuda: the base image.
# TORCH_INDEX  where torch comes from; an index of PyTorch for another version of CUDA.
ARG DEVICE=cpu

FROM python:3.11-slim AS base-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# The driver comes from the host; torch brings CUDA's libraries. compile=true needs a C compiler.
FROM python:3.11-slim AS base-cuda
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu128
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3006
FROM base-${DEVICE} AS vlp
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /source/
COPY vlp /source/vlp
# torch and torchvision for the device, then everything else from PyPI. pyproject.toml has the versions.
# hadolint ignore=DL3013
RUN pip install --index-url "${TORCH_INDEX}" torch torchvision \
    && pip install "/source[all]" \
    && rm -rf /source
COPY configs /opt/vlp/configs
RUN useradd --uid 1000 --create-home vlp && mkdir /work && chown 1000 /work
USER 1000
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["vlp"]
CMD ["--help"]
