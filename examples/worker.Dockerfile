# Python workers for a cluster of your own (docs/distributed.md). Build it in a clone of the driver's revision:
#   docker build -f examples/worker.Dockerfile -t REGISTRY/generalist-worker:1 .
#
# As it is, a container serves workers to the TaskManager beside it (EXTERNAL). For engines that start the container
# themselves (DOCKER environment, Dataflow), Beam's own image comes last and brings its entry point.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS pool
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir -c requirements/lock.txt '.[beam,images,s3]'
RUN useradd --create-home worker
USER worker
ENV OMP_NUM_THREADS=1
EXPOSE 50000
ENTRYPOINT ["python", "-m", "beam_jobs", "worker-pool", "--host", "0.0.0.0", "--port", "50000"]

# docker build --target sdk ... : `--environment_type=DOCKER` and Dataflow's `--sdk_container_image`.
FROM apache/beam_python3.11_sdk:2.77.0 AS sdk
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir -c requirements/lock.txt '.[beam,images,s3]'
ENV OMP_NUM_THREADS=1
