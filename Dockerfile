# One image for every role: docker compose passes the command.
FROM python:3.11-slim
RUN useradd --create-home --uid 10001 ditto && install -d -o ditto -g ditto /certs /data
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ditto ditto
COPY parties parties
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt .
USER ditto
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "-m"]
CMD ["ditto", "--help"]
