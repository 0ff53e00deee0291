# Two images from one source: `api` answers HTTP and has no PyTorch; `worker` computes.
#   docker build --target api --tag smalti-api .
#   docker build --target worker --tag smalti-worker .
# Both take optional parts: `--build-arg EXTRAS=s3,otel`.

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install --upgrade "pip>=25.1" \
    && useradd --uid 10001 --create-home smalti \
    && install --directory --mode 700 --owner smalti --group smalti /data
WORKDIR /srv/smalti
# Results, blobs and verdicts lie in /data, which the API and the workers share.
ENV SMALTI_WEIGHTS_DIR=/srv/smalti/weights SMALTI_DATA_DIR=/data
VOLUME /data

FROM base AS wheel
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM base AS api
ARG EXTRAS=""
COPY pyproject.toml .
# The extras by themselves, as with the project they would bring PyTorch.
RUN python -c "import sys, tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*(each for name in sys.argv[1].split(',') if name for each in extras[name]), sep='\n')" "${EXTRAS}" > /tmp/extras.txt
# hadolint ignore=DL3013 # pyproject.toml bounds the versions
RUN pip install --group api --requirement /tmp/extras.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
COPY weights weights
USER 10001
ENV SMALTI_HOST=0.0.0.0 SMALTI_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
CMD ["smalti", "serve"]

FROM base AS worker
# Which PyTorch: arguments of pip. The default brings CUDA along on Linux; see docs/deployment.md for a smaller one.
ARG TORCH="torch==2.13.0"
# hadolint ignore=DL3013,SC2086
RUN pip install ${TORCH}
ARG EXTRAS=""
# hadolint ignore=DL3013
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install "$(echo /wheels/*.whl)${EXTRAS:+[${EXTRAS}]}"
COPY weights weights
USER 10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --retries=3 \
    CMD ["smalti", "worker", "--check"]
CMD ["smalti", "worker"]
