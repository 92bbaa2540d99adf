# agentrl for NVIDIA GPUs: PyPI's torch brings its own CUDA libraries, the machine brings the driver and Docker's
# NVIDIA runtime. For the cluster engine see docs/cluster.md.
#   docker build -f docker/cuda.Dockerfile -t agentrl-cuda .
#   docker run --rm --gpus all -v "$PWD/runs:/work/runs" agentrl-cuda train search_tiny
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/agentrl
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY agentrl agentrl
COPY envs envs
COPY retriever retriever
COPY configs configs
RUN pip install -c constraints.txt '.[train,retriever,math,tensorboard,wandb,mcp]'

RUN useradd --create-home --uid 1000 agentrl && mkdir -p /work/runs && chown -R agentrl /work
USER 1000
WORKDIR /work
ENTRYPOINT ["agentrl"]
CMD ["doctor"]
