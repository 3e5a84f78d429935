# The router, small: no torch, not root, and nothing that it writes. `dami deploy` writes the files that run it.
#
#   docker build -t dami-router:0.1.0 .
#   docker run --read-only --cap-drop ALL -p 127.0.0.1:8000:8000 -v "$PWD/router.yml:/etc/dami/router.yml:ro" \
#     dami-router:0.1.0 serve /etc/dami/router.yml --host 0.0.0.0
#   curl -s http://127.0.0.1:8000/health    # 200 once a variant is available
#
# The second image, with the weights' half and vLLM, runs `dami live --engine vllm`:
#
#   docker build -t dami-live:0.1.0 --target live .

FROM vllm/vllm-openai:v0.32.0 AS live
COPY . /src
RUN python3 -m pip install --no-cache-dir '/src/plugins/dami-router[all]' /src /src/plugins/vllm-dami && rm -rf /src
ENTRYPOINT ["dami", "live"]

FROM python:3.13-slim AS wheels
COPY plugins/dami-router /src
COPY constraints.txt /src/
RUN python -m pip wheel --no-cache-dir --wheel-dir /wheels --constraint /src/constraints.txt '/src[serve,hub]' numpy safetensors

FROM python:3.13-slim AS router
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-index --find-links /wheels 'dami-router[serve,hub]' numpy safetensors
# Nothing is written but temporary files: the Hub's cache is below /tmp.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp HF_HUB_DISABLE_TELEMETRY=1
USER 65532:65532
WORKDIR /etc/dami
EXPOSE 8000
ENTRYPOINT ["dami"]
CMD ["--help"]
