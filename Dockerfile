# One image for every role; the command says which.
#   docker build -t ditto .                            torch for CPUs
#   docker build -t ditto --build-arg TORCH=cu130 .    torch for CUDA: the name of an index at download.pytorch.org
FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/ditto
ENV PATH=/opt/ditto/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt ./
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH}
# torch alone from its own index; what it and ditto need from the usual one.
RUN pip install --no-deps --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)"
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      print(*p['dependencies'], *p['optional-dependencies']['telemetry'], sep='\n')" \
      > requirements.txt && pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY ditto ditto
COPY parties parties
RUN pip install --no-deps .

FROM python:3.11-slim
# Volumes take owner and mode of the directory that they are first mounted on.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ditto \
    && install -d -m 700 -o ditto -g ditto /data /certs /roles/authority \
       /roles/party0 /roles/party1 /roles/dealer /roles/coordinator /roles/client
COPY --from=build /opt/ditto /opt/ditto
ENV PATH=/opt/ditto/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp
# A heap with fewer gaps between tensors, as ditto/client/together.py has it.
ENV GLIBC_TUNABLES=glibc.malloc.tcache_count=0
WORKDIR /app
COPY configs/compose configs/compose
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["ditto", "--help"]
