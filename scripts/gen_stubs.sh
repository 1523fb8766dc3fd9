#!/usr/bin/env bash
# Regenerate ditto/wire/ from proto/. With --check: write nothing, fail when the committed stubs are stale.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
bin=$("$python" -c 'import os, sys; print(os.path.dirname(sys.executable))')
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
PATH="$bin:$PATH" "$python" -m grpc_tools.protoc -I proto \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  proto/ditto/v1/control.proto proto/ditto/v1/party.proto proto/ditto/v1/dealer.proto
src="$out/ditto/v1"
# The stubs live in ditto.wire, next to the library, not in a package of their own.
sed -i -e 's/from ditto\.v1 import/from ditto.wire import/' -e 's/import ditto\.v1\./import ditto.wire./' \
  -e 's/ditto\.v1\.\([a-z]*_pb2\)/ditto.wire.\1/g' "$src"/*
echo '"""Generated from proto/ by scripts/gen_stubs.sh; do not edit."""' > "$src/__init__.py"
if [[ "${1:-}" == "--check" ]]; then
  diff -r -x __pycache__ "$src" ditto/wire || { echo "ditto/wire is stale: run scripts/gen_stubs.sh" >&2; exit 1; }
else
  mkdir -p ditto/wire
  rm -f ditto/wire/*_pb2*
  cp "$src"/* ditto/wire/
fi
