#!/usr/bin/env bash
# deploy/kubernetes against the published schemas: every overlay, rendered, no unknown key. Needs kubectl (no cluster) and
# `pip install kubernetes-validate`, which carries the schemas; not part of `make test`.
#   bash tests/compose/schemas.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
kubernetes-validate --version
for overlay in deploy/kubernetes/overlays/*/; do
    kubectl kustomize "$overlay" | kubernetes-validate --strict -
    echo "$overlay: $(kubectl kustomize "$overlay" | grep -c '^kind:') objects"
done
