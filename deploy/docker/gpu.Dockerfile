# rtpjax for NVIDIA GPUs:  docker build -f deploy/docker/gpu.Dockerfile -t rtpjax:gpu .
#   docker run --gpus all -p 8088:8088 -v rtpjax-cache:/cache -v /models/llama:/model:ro \
#     -e CHECKPOINT_PATH=/model rtpjax:gpu
# The wheels bring CUDA's libraries; the host needs NVIDIA's container toolkit and a driver: 580 or later, or 525 or
# later with --build-arg CUDA=cuda12.
FROM python:3.13-slim

ARG CUDA=cuda13

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV RTPJAX_CACHE=/cache PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml README.md ./
COPY rtpjax ./rtpjax
COPY pallas_kernels ./pallas_kernels
COPY server ./server
COPY checkpoints_conv ./checkpoints_conv
COPY bench ./bench
RUN pip install --no-cache-dir ".[$CUDA,ray]"
RUN useradd --create-home rtpjax && mkdir /cache && chown rtpjax /cache
USER rtpjax
# Models that are fetched and compiled programs: keep it, and the next start is quick.
VOLUME /cache
EXPOSE 8088
ENTRYPOINT ["python", "-m", "rtpjax.start_server"]
