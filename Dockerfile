# convnext on a CPU: docs/docker.md.
FROM python:3.12-slim

# The kernels in C are compiled at the first training, for the CPU that runs it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# PyTorch's wheels for the CPU alone have a tenth of the size of those with CUDA. They change less often than the code.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.9" "torchvision>=0.24"

COPY pyproject.toml README.md LICENSE /source/
COPY convnext /source/convnext
RUN pip install --no-cache-dir "/source[export,explain,serve]" && rm -r /source

# Any user may write here, so that runs in a mounted folder can belong to who started the container.
RUN useradd --create-home convnext && mkdir --mode 1777 /work /cache
ENV CONVNEXT_CACHE=/cache MPLCONFIGDIR=/cache
USER convnext
WORKDIR /work

ENTRYPOINT ["convnext"]
CMD ["--help"]
