# rtpjax on CPUs:  docker build -f deploy/docker/cpu.Dockerfile -t rtpjax:cpu .
#   docker run -p 8088:8088 -v rtpjax-cache:/cache -v /models/llama:/model:ro \
#     -e CHECKPOINT_PATH=/model rtpjax:cpu
FROM python:3.13-slim

ENV RTPJAX_CACHE=/cache PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml README.md ./
COPY rtpjax ./rtpjax
COPY pallas_kernels ./pallas_kernels
COPY server ./server
COPY checkpoints_conv ./checkpoints_conv
COPY bench ./bench
RUN pip install --no-cache-dir ".[ray]"
RUN useradd --create-home rtpjax && mkdir /cache && chown rtpjax /cache
USER rtpjax
# Models that are fetched and compiled programs: keep it, and the next start is quick.
VOLUME /cache
EXPOSE 8088
ENTRYPOINT ["python", "-m", "rtpjax.start_server"]
