# Two images: `agent` (beside an engine; no torch) and `worker` (validate, train, evaluate).
FROM python:3.11.14-slim-trixie AS agent
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1
WORKDIR /app
COPY requirements/worker.txt requirements/worker.txt
RUN pip install --require-hashes --no-deps -r requirements/worker.txt
COPY workers workers
# Named volumes take over the owner of these folders.
RUN python -m compileall -q workers \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin stillhouse \
    && install --directory --owner 10001 --group 10001 /work /adapters
USER 10001:10001
CMD ["python", "-m", "workers", "agent"]

FROM agent AS worker
USER root
COPY requirements/torch.txt requirements/torch.txt
# The CUDA build, by pip's own choice; its version is pinned, its hash differs by platform (see the file).
RUN pip install -r requirements/torch.txt
USER 10001:10001
CMD ["python", "-m", "celery", "-A", "workers.runtime.app", "worker", "--queues", "gpu", "--pool", "solo"]
