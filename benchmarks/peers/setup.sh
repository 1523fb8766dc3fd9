#!/usr/bin/env bash
# Create one virtual environment per peer: setup.sh [DIR] [PEER...]; DIR defaults to benchmarks/peers/.venvs.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:-$here/.venvs}
peers=("${@:2}")
[ ${#peers[@]} -gt 0 ] || peers=(spu crypten)
python=${PYTHON:-python3.11}

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "setup.sh: the pinned wheels are for Python 3.11; set PYTHON to one" >&2
    exit 1
}

for peer in "${peers[@]}"; do
    [ -f "$here/requirements-$peer.txt" ] || { echo "setup.sh: no peer '$peer'" >&2; exit 1; }
    [ -x "$dir/$peer/bin/python" ] || "$python" -m venv "$dir/$peer"
    pip=("$dir/$peer/bin/python" -m pip --disable-pip-version-check install --quiet)
    case $peer in
    spu)
        "${pip[@]}" -r "$here/requirements-spu.txt"
        "$dir/$peer/bin/python" -c 'import jax, spu'
        ;;
    crypten)
        "${pip[@]}" -r "$here/requirements-crypten.txt"
        "${pip[@]}" --no-deps crypten==0.4.1
        "$dir/$peer/bin/python" -c 'from importlib.metadata import version; import torch; version("crypten")'
        ;;
    esac
    echo "$peer: ready in $dir/$peer"
done
