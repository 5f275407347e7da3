# One image for every part: a simulation, an operator's link and its front, a silo. In a clone: docker build --tag fedsynth .
#
# torch computes on the CPU. For CUDA: --build-arg TORCH_BACKEND=cu130 (or another word of uv's --torch-backend), and
# 'docker run --gpus all'. With an empty TORCH_BACKEND torch comes from where all other packages come from, as from a mirror.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ARG TORCH_BACKEND=cpu
WORKDIR /source
COPY constraints.txt ./
RUN python -m venv /opt/fedsynth \
    && /opt/fedsynth/bin/pip install --no-cache-dir --constraint constraints.txt uv
COPY LICENSE MANIFEST.in README.md pyproject.toml setup.py ./
COPY fedsynth fedsynth
COPY clients clients
COPY strategies strategies
# Compiled once here: nobody may write there later, and every process would compile torch again.
RUN /opt/fedsynth/bin/uv pip install --no-cache --compile-bytecode --python /opt/fedsynth/bin/python \
    --constraints constraints.txt ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} '.[dicom]'

FROM python:${PYTHON}-slim
# For a link's front; other parts do not use it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nginx \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/fedsynth /opt/fedsynth
# Any user may be chosen at the start. Programs that ask for its name or its home get these.
ENV PATH=/opt/fedsynth/bin:$PATH USER=fedsynth HOME=/tmp
RUN install --directory --owner 1000 --group 1000 /data
USER 1000:1000
# All that is written lies in these two, and in /dev/shm: the root file system may be read-only.
VOLUME ["/data", "/tmp"]
WORKDIR /data
ENTRYPOINT ["fedsynth"]
CMD ["--help"]
