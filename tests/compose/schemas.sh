#!/usr/bin/env bash
# deploy/kubernetes against the published schemas: every overlay, rendered, alone and with components, no unknown key.
# Needs kubectl (no cluster) and `pip install kubernetes-validate`, which carries the schemas; not part of `make test`.
# The component pod-monitor is left out: its schema is the Prometheus operator's.
#   bash tests/compose/schemas.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
kubernetes-validate --version
together=$(mktemp -d)
trap 'rm -rf "$together"' EXIT
there=$(realpath --relative-to="$together" deploy/kubernetes)
for overlay in deploy/kubernetes/overlays/*/; do
    role=$(basename "$overlay")
    cat > "$together/kustomization.yaml" <<END
namespace: ditto-$role
resources: [$there/overlays/$role]
components: [$there/components/metrics, $there/components/telemetry]
END
    several=$together/several
    mkdir -p "$several"
    cat > "$several/kustomization.yaml" <<END
namespace: ditto-$role
resources: [$(realpath --relative-to="$several" "$overlay")]
components: [../$there/components/workers]
END
    whats=("$overlay" "$together")
    [[ $role == party* ]] && whats+=("$several")
    for what in "${whats[@]}"; do
        kubectl kustomize "$what" | kubernetes-validate --strict -
        echo "$role: $(kubectl kustomize "$what" | grep -c '^kind:') objects"
    done
done
