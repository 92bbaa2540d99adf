# agentrl for a machine without a GPU: the pinned packages, the CPU build of torch, all extras but `cluster`.
#   docker build -f docker/cpu.Dockerfile -t agentrl-cpu .
#   docker run --rm -v "$PWD/runs:/work/runs" agentrl-cpu quickstart
# The dashboard binds to this machine; to reach it from outside the container it needs a token:
#   docker run --rm -v "$PWD/runs:/work/runs" -p 127.0.0.1:8321:8321 -e AGENTRL_DASHBOARD_TOKEN agentrl-cpu \
#       dashboard runs --host 0.0.0.0
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/agentrl
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY agentrl agentrl
COPY envs envs
COPY retriever retriever
COPY configs configs
# torch first and from its own index: the one on PyPI is built for CUDA and takes gigabytes.
RUN grep '^torch==' constraints.txt >/tmp/torch.txt \
    && pip install --index-url "$TORCH_INDEX" -r /tmp/torch.txt \
    && pip install -c constraints.txt '.[train,retriever,math,tensorboard,wandb,mcp]'

RUN useradd --create-home --uid 1000 agentrl && mkdir -p /work/runs && chown -R agentrl /work
USER 1000
WORKDIR /work
ENTRYPOINT ["agentrl"]
CMD ["doctor"]
