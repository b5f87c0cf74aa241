# The worker that runs the engine: torch and CUDA come with the base image, so they are not installed again.
#   docker build -f docker/worker.Dockerfile -t lathe-worker .

ARG TORCH_IMAGE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime

# llama.cpp comes as source alone, and the image below has no compiler. An old glibc here runs on any newer one there.
FROM python:3.12-bullseye AS llama-cpp
WORKDIR /wheels
COPY constraints-cpu.txt ./
RUN CMAKE_ARGS="-DGGML_NATIVE=OFF" python -m pip wheel --no-cache-dir --no-deps --wheel-dir . \
      "$(grep '^llama_cpp_python==' constraints-cpu.txt)"

# hadolint ignore=DL3006
FROM ${TORCH_IMAGE}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_BREAK_SYSTEM_PACKAGES=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN groupadd --gid 10001 lathe \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /home/lathe lathe \
    && install --directory --owner=lathe --group=lathe --mode=0750 /var/lib/lathe
WORKDIR /src
COPY pyproject.toml constraints-cpu.txt README.md LICENSE ./
COPY optcore ./optcore
COPY lathe ./lathe
COPY api ./api
COPY worker ./worker
COPY migrations ./migrations
COPY --from=llama-cpp /wheels/*.whl /tmp/wheels/
# The constraints hold what was tested on a CPU; torch and triton are a pair, and this image brings its own.
RUN grep -vE '^(torch|triton)==' constraints-cpu.txt > /tmp/constraints.txt \
    && python -c 'import torch; print(f"torch=={torch.__version__}")' >> /tmp/constraints.txt \
    && python -m pip install --constraint /tmp/constraints.txt \
         --find-links /tmp/wheels ".[worker,traces,engine,data,onnx,sign,llama-cpp]" \
    && rm -r /tmp/constraints.txt /tmp/wheels
ENV LATHE_DATA_DIR=/var/lib/lathe \
    HF_HOME=/var/lib/lathe/huggingface
USER 10001:10001
WORKDIR /home/lathe
# A ping over the broker would call a worker dead that is only busy. The lease in the database is the sign of life.
HEALTHCHECK NONE
CMD ["celery", "-A", "worker.app", "worker", "-Q", "gpu", "-c", "1", "--without-gossip", "--without-mingle"]
