# `clinical-vlm serve` in a container; docs/deploy.md says how to run it.
#   docker build -t clinical-vlm:cpu .                    for a CPU
#   docker build -t clinical-vlm:cuda --target cuda .     for an NVIDIA GPU
# Variables of pip and uv may be given for the build alone, such as --build-arg UV_DEFAULT_INDEX=… for a mirror.
ARG PYTHON=3.13.9-slim-trixie

# ---- The programs that install, the empty environment, and what names the dependencies.
FROM python:${PYTHON} AS tools
ARG UV=0.13.9
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ENV UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_PYTHON=/opt/venv/bin/python
RUN pip install --no-cache-dir --disable-pip-version-check "uv==${UV}" \
    && python -m venv /opt/venv
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./

# ---- Dependencies alone, so that a change of the code does not install them anew.
FROM tools AS packages-cpu
# PyTorch without the libraries of a GPU, 4 GB less.
ARG UV_TORCH_BACKEND=cpu
ARG UV_DEFAULT_INDEX
RUN uv pip install -r pyproject.toml --extra app --extra dicom --extra explain --extra llamacpp

FROM tools AS packages-cuda
ARG UV_DEFAULT_INDEX
RUN uv pip install -r pyproject.toml --extra app --extra dicom --extra explain

# ---- The package itself.
FROM tools AS wheel
ARG UV_DEFAULT_INDEX
COPY vlm vlm
RUN uv build --wheel --out-dir /wheel

FROM packages-cpu AS installed-cpu
COPY --from=wheel /wheel /wheel
RUN uv pip install --no-deps /wheel/*.whl

FROM packages-cuda AS installed-cuda
COPY --from=wheel /wheel /wheel
RUN uv pip install --no-deps /wheel/*.whl

# ---- What runs: an ordinary user, who may write to /home/vlm (weights) and /tmp alone.
FROM python:${PYTHON} AS runtime
# The user's number on the host, if it is not 1000: the adapter, the token and the weights are for their owner alone.
ARG UID=1000
# libgomp1: llama.cpp computes with it. Its version is that of the base image's Debian, which keeps no older one.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid "${UID}" vlm \
    && useradd --uid "${UID}" --gid "${UID}" --create-home --home-dir /home/vlm --shell /usr/sbin/nologin vlm
ENV PATH=/opt/venv/bin:$PATH HOME=/home/vlm PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER ${UID}:${UID}
WORKDIR /home/vlm
EXPOSE 7860
# The first start fetches and converts the base; until it listens, nothing is wrong for ten minutes.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import http.client as h, sys; c = h.HTTPConnection('127.0.0.1', 7860, timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["clinical-vlm"]
CMD ["serve", "--adapter", "/adapter", "--host", "0.0.0.0"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=installed-cuda /opt/venv /opt/venv

# ---- The last is what is built without --target.
FROM runtime AS cpu
COPY --from=installed-cpu /opt/venv /opt/venv
