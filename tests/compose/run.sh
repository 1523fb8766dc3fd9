#!/usr/bin/env bash
# docker-compose.yml for real: build, start, ask, ask on `wan`, lose a party between jobs and in one, renew and
# revoke certificates while they run, stop. Needs a Docker engine with compose v2 and python3; not part of `make test`.
#   bash tests/compose/run.sh
# It is a project of its own, so that a cluster of the same file is left alone, and it removes what it made but the image.
set -euo pipefail
cd "$(dirname "$0")/../.."
export COMPOSE_PROJECT_NAME=ditto-test COMPOSE_ANSI=never COMPOSE_MENU=false
unset DITTO_NETWORK
servers=(dealer party0 party1 coordinator)
work=$(mktemp -d)
trap 'status=$?; docker compose --profile client down -v --remove-orphans >/dev/null 2>&1; rm -rf "$work"; exit $status' EXIT

title() { printf '\n# %s (%d s)\n' "$*" $SECONDS; }
# run CODE COMMAND…: show the command and what it prints; end the test if its exit code is another.
run() {
    local expected=$1 code=0
    shift
    printf '$ %s\n' "$*" | sed "s#$PWD/##g"
    "$@" >"$work/out" 2>&1 || code=$?
    sed -E '/^ *(Container|Volume|Network) /d; s/^/  /' "$work/out"
    if [ "$expected" != 0 ]; then echo "  exit code $code"; fi
    if [ "$code" != "$expected" ]; then
        echo "FAILED: exit code $code, expected $expected"
        docker compose logs --tail 20
        exit 1
    fi
}
quiet() { "$@" >"$work/quiet" 2>&1 || { cat "$work/quiet"; return 1; }; }
up() { quiet docker compose up -d --wait "${servers[@]}"; }
ditto="docker compose run --rm -T --no-deps client" # --no-deps: a lost server is not to be started on the way

# measure FILE: one request, its figures in FILE.
measure() {
    $ditto infer --model tiny --text "the dog sat ." --json >"$1" 2>"$work/quiet" || { cat "$work/quiet"; return 1; }
    python3 - "$1" "${2:-}" <<'PY'
import json, sys
answer = json.load(open(sys.argv[1]))
online = answer["online"]
rounds, sent, seconds = online["rounds"], max(online["bytes_sent"]), online["seconds"]
line = f"  network {answer['network']}: {rounds} rounds, {sent:,} bytes, {seconds:.2f} s online"
if sys.argv[2]:
    before = json.load(open(sys.argv[2]))["online"]
    rate, rtt = 400e6, 0.040
    formula = rounds * rtt / 2 + 8 * sent / rate
    added = seconds - before["seconds"]
    line += f"; {added:+.2f} s, by rounds and bytes {formula:+.2f} s"
    assert answer["network"] == "wan" and before["rounds"] == rounds
    assert 0.8 * formula < added < 1.5 * formula + 1, line
else:
    assert answer["network"] == "loopback"
print(line)
PY
}

title "Build"
quiet docker compose build
docker image inspect ditto --format '  image ditto, {{.Size}} bytes, user {{.Config.User}}'

title "Start"
run 0 docker compose up -d
up
run 0 docker compose ps --all --format 'table {{.Service}}\t{{.Status}}'
run 0 docker compose exec -T party0 sh -c 'id -u; ls /certs; python -c "import torch; print(torch.__version__)"'
run 1 docker compose exec -T party0 touch /app/x
run 1 docker compose exec -T party0 touch /certs/x
for role in authority "${servers[@]}" client; do # each key in one volume
    echo "  $role: $(docker compose run --rm -T --no-deps --entrypoint sh certs -c "cd /roles/$role && ls *.key" | xargs)"
done
run 1 docker compose exec -T party0 python -c 'import socket; socket.create_connection(("192.0.2.1", 80), 2)'

title "A model: import, share, ask"
quiet docker compose run --rm -T --no-deps -v "$PWD/tests/compose:/tests:ro" --entrypoint python client \
    /tests/checkpoint.py /data/tiny
run 0 $ditto model import /data/tiny --calibrate /data/tiny/texts.txt --name tiny
run 0 $ditto model share tiny
run 0 $ditto infer --model tiny --text "the dog sat ." --check
measure "$work/loopback.json"

title "The same on wan"
export DITTO_NETWORK=wan
echo "\$ DITTO_NETWORK=wan docker compose up -d"
up
measure "$work/wan.json" "$work/loopback.json"

title "A party is killed between jobs"
run 0 docker compose kill party1
run 16 $ditto infer --model tiny --text "the dog sat ."
run 0 docker compose up -d --wait party1
run 0 $ditto infer --model tiny --text "the dog sat ." --check

title "A party is killed during a job"
echo "\$ $ditto infer --model tiny --file /data/tiny/many.txt &"
$ditto infer --model tiny --file /data/tiny/many.txt >"$work/many" 2>&1 &
job=$!
for _ in $(seq 300); do
    if grep -q "2/8: layer 0" "$work/many" || ! kill -0 $job; then break; fi
    sleep 0.2
done
run 0 docker compose kill party1
code=0
wait $job || code=$?
sed 's/^/  /' "$work/many"
echo "  exit code $code"
[ $code = 21 ] || { echo "FAILED: expected exit code 21"; exit 1; }
run 0 docker compose run --rm -T client infer --model tiny --text "the dog sat ." --check # starts party1 on the way

title "A server that ends is started again"
run 0 docker compose exec -T dealer python -c 'import os; os.kill(1, 15)'
for _ in $(seq 100); do
    restarts=$(docker inspect --format '{{.RestartCount}}' "$(docker compose ps -q dealer)")
    if [ "$restarts" = 1 ]; then break; fi
    sleep 0.2
done
echo "  restarts of the dealer: $restarts"
up
run 0 $ditto infer --model tiny --text "the dog sat ." --check

title "New certificates"
run 0 docker compose run --rm -T certs --force
run 0 $ditto infer --model tiny --text "the dog sat ." --check

title "A client's certificate is revoked, and made anew"
run 0 docker compose run --rm -T certs revoke client
run 15 $ditto infer --model tiny --text "the dog sat ."
run 0 docker compose run --rm -T certs renew client
run 0 $ditto infer --model tiny --text "the dog sat ." --check

title "A server's certificate is revoked, and made anew"
run 0 docker compose run --rm -T certs revoke dealer
run 15 $ditto infer --model tiny --text "the dog sat ."
run 0 docker compose run --rm -T certs renew dealer
run 0 $ditto infer --model tiny --text "the dog sat ." --check

title "Stop"
run 0 docker compose --profile client down -v --remove-orphans
title "All as expected"
