# web and keeper: Django, the gateway and nothing that trains.
FROM python:3.11.14-slim-trixie
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements/web.txt requirements/web.txt
RUN pip install --require-hashes --no-deps -r requirements/web.txt
COPY manage.py ./
COPY platform platform
COPY templates templates
COPY workers/__init__.py workers/__init__.py
COPY workers/contract workers/contract
RUN python -m compileall -q platform workers && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin stillhouse \
    && install -d -o 10001 -g 10001 -m 700 /spool
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "stillhouse.asgi:application", "--app-dir", "platform", "--host", "0.0.0.0", \
    "--loop", "uvloop", "--http", "stillhouse.gateway.protocol:LimitedHttp", "--no-access-log"]
