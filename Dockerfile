# The service as an image, for the CPU (the last stage) or for one NVIDIA GPU:
#   docker build --target cpu  --tag phosphene:0.1.0-cpu  .
#   docker build --target cuda --tag phosphene:0.1.0-cuda .
FROM python:3.11.14-slim-trixie AS python

FROM python AS source
WORKDIR /app
COPY LICENSE ./
COPY phosphene phosphene
COPY training training
COPY index index
COPY service service
# The root file system is read-only at run time: what is not compiled here is compiled at every start.
RUN python -m compileall -q --invalidation-mode unchecked-hash .

FROM python AS installer
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_ONLY_BINARY=:all: \
    PIP_PYTHON=/opt/venv/bin/python
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY requirements requirements

FROM installer AS packages-cpu
# PyPI's torch for Linux brings 3 GB of CUDA libraries; this index has the same version without them.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN grep -E '^torch==' requirements/runtime.txt > torch.txt \
 && pip install --no-deps --index-url "${TORCH_INDEX_URL}" -r torch.txt \
 && pip install -r requirements/cpu.txt -r requirements/tracing.txt -r requirements/qdrant.txt \
 && pip check
# What packages bring to test themselves, and to compile against them: there is no compiler in the image.
RUN find /opt/venv/lib -depth \( -type d \( -name tests -o -path "*/torch/test" -o -path "*/onnx/backend/test" \
      -o -path "*/torch/include" \) -o -path "*/torch/bin/test_*" \) -exec rm -rf {} +

FROM installer AS packages-cuda
# The CUDA libraries come as packages that torch pins; the host brings the driver.
RUN pip install -r requirements/gpu.txt -r requirements/tracing.txt -r requirements/qdrant.txt \
 && pip check
RUN find /opt/venv/lib -depth \( -type d \( -name tests -o -path "*/torch/test" -o -path "*/onnx/backend/test" \
      -o -path "*/torch/include" \) -o -path "*/torch/bin/test_*" \) -exec rm -rf {} +

FROM python AS runtime
LABEL org.opencontainers.image.title="Phosphene" \
      org.opencontainers.image.licenses="Apache-2.0"
# The base comes without the bytecode of its standard library, which each health check would compile anew.
RUN python -m compileall -q --invalidation-mode unchecked-hash "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
RUN groupadd --gid 65532 phosphene \
 && useradd --uid 65532 --gid 65532 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin phosphene
WORKDIR /app
# Nothing is fetched at run time, and nothing is written outside /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1
# A container's loopback reaches nobody. Beyond it the service asks for TLS, or to be told PHOSPHENE_ALLOW_PLAINTEXT=yes.
ENV PHOSPHENE_LISTEN=0.0.0.0:50051 \
    PHOSPHENE_METRICS_LISTEN=0.0.0.0:9464
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-m", "service.health_probe"]
ENTRYPOINT ["python", "-m", "service"]

FROM runtime AS cuda
COPY --link --from=packages-cuda /opt/venv /opt/venv
COPY --link --from=source /app /app
ENV PHOSPHENE_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532

FROM runtime AS cpu
COPY --link --from=packages-cpu /opt/venv /opt/venv
COPY --link --from=source /app /app
ENV PHOSPHENE_DEVICE=cpu
USER 65532:65532
