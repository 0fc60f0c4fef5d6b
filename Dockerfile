# chestx on CPUs, as a user without rights: docker run -v "$PWD:/files" chestx split data/
# The data, the study and the weights lie in the mounted folder; nothing is downloaded unless --fetch is given.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
# torch for CPUs: the usual wheels bring several GB of CUDA. --build-arg TORCH_INDEX= installs these.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/chestx \
    && if [ -n "$TORCH_INDEX" ]; then /opt/chestx/bin/pip install --index-url "$TORCH_INDEX" 'torch>=2.13,<3' 'torchvision>=0.28,<1'; fi \
    && /opt/chestx/bin/pip install .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/chestx /opt/chestx
RUN useradd --uid 1000 --create-home chestx && mkdir /files && chown chestx /files
ENV PATH="/opt/chestx/bin:$PATH" MPLCONFIGDIR=/tmp/matplotlib
USER 1000
WORKDIR /files
ENTRYPOINT ["chestx"]
CMD ["--help"]
