# One image for web, worker and migrations; docker-compose.yml starts them.
FROM python:3.11-slim AS build
# Where wheels of a CPU-only torch are served, for an image without CUDA: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL=""
RUN python -m venv /opt/prefloop
WORKDIR /src
# What the lock names, with hashes; PyTorch, whose build depends on the machine; then ourselves. As the Makefile does.
COPY locks locks
RUN /opt/prefloop/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement locks/run.txt \
    && /opt/prefloop/bin/pip install --no-cache-dir --requirement locks/torch.txt
COPY pyproject.toml package.json package-lock.json build_frontend.py README.md LICENSE ./
COPY app app
COPY trainer trainer
COPY migrations migrations
COPY templates templates
COPY static static
RUN /opt/prefloop/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 prefloop && mkdir /data && chown prefloop /data
COPY --from=build /opt/prefloop /opt/prefloop
ENV PATH=/opt/prefloop/bin:$PATH PREFLOOP_HOME=/data PREFLOOP_HOST=0.0.0.0 PYTHONUNBUFFERED=1
USER prefloop
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz')"]
CMD ["prefloop", "web"]
