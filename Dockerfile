# The service as an image: `make image`. DEVICE=gpu takes the GPU set; PIP_EXTRA_INDEX_URL may name an index with CPU-only
# builds of torch, which are far smaller than the default ones.
FROM python:3.11-slim AS builder
ARG DEVICE=cpu
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /build
COPY requirements requirements
RUN /opt/venv/bin/pip install -r requirements/${DEVICE}.txt
COPY pyproject.toml README.md LICENSE ./
COPY phosphene phosphene
RUN /opt/venv/bin/pip install --no-deps .

FROM python:3.11-slim
RUN useradd --uid 65532 --no-create-home --shell /usr/sbin/nologin phosphene
COPY --from=builder /opt/venv /opt/venv
WORKDIR /app
COPY training training
COPY index index
COPY service service
COPY LICENSE ./
# A container's loopback reaches nobody: listen on every interface, and publish only what is meant to be reached.
# Nothing is written outside /tmp, so that the root file system can be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    PHOSPHENE_LISTEN=0.0.0.0:50051 \
    PHOSPHENE_METRICS_LISTEN=0.0.0.0:9464
USER 65532:65532
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import sys, grpc; from grpc_health.v1 import health_pb2 as m, health_pb2_grpc as h; c = grpc.insecure_channel('127.0.0.1:50051'); sys.exit(h.HealthStub(c).Check(m.HealthCheckRequest(), timeout=4).status != m.HealthCheckResponse.SERVING)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "service"]
