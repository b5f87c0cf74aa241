# Everything that needs no torch: the API, the migration, the relay, and the worker for short tasks (publish, webhooks).
#   docker build -f docker/api.Dockerfile -t lathe-api .

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/lathe
WORKDIR /src
COPY pyproject.toml constraints-cpu.txt README.md LICENSE ./
COPY optcore ./optcore
COPY lathe ./lathe
COPY api ./api
COPY worker ./worker
COPY migrations ./migrations
RUN /opt/lathe/bin/pip install --constraint constraints-cpu.txt ".[worker,traces]"

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 lathe \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /home/lathe lathe \
    && install --directory --owner=lathe --group=lathe --mode=0750 /var/lib/lathe
COPY --from=build /opt/lathe /opt/lathe
ENV PATH=/opt/lathe/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LATHE_HOST=0.0.0.0 \
    LATHE_PORT=8321 \
    LATHE_DATA_DIR=/var/lib/lathe \
    HF_HOME=/var/lib/lathe/huggingface
USER 10001:10001
WORKDIR /home/lathe
EXPOSE 8321
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8321/healthz', timeout=4)"]
CMD ["python", "-m", "api"]
