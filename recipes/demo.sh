#!/usr/bin/env bash
# The whole factory on one machine: start a Ray head, submit the mix as a job, stop the head, train,
# merge, evaluate. Run through `make demo`. Running it again resumes, or says that all is up to date.
set -euo pipefail
output="${OUTPUT:-$PWD/out/demo}"
export EMBEDMIX_CACHE="${EMBEDMIX_CACHE:-$PWD/.cache/embedmix}"
export RAY_AUTH_MODE=token # the head listens on this machine's address too
export RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE

read -r port dashboard client agent < <(python - <<'PY'
import socket
sockets = [socket.socket() for _ in range(4)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
)
address="http://127.0.0.1:$dashboard"
mkdir -p "$output"
log="$output/ray-head.log"

# --block keeps the head a child of this script, so that ending the child ends all of it.
ray start --head --block --node-ip-address 127.0.0.1 --port "$port" --dashboard-port "$dashboard" \
    --ray-client-server-port "$client" --dashboard-agent-listen-port "$agent" \
    --object-store-memory 1000000000 >"$log" 2>&1 &
head=$!
stop_head() {
    kill "$head" 2>/dev/null || true
    wait "$head" 2>/dev/null || true
}
trap stop_head EXIT

# The dashboard answers before the head can take jobs: an empty job says when it can.
ready=""
for _ in $(seq 30); do
    if ray job submit --address "$address" --no-wait -- true >/dev/null 2>&1; then ready=1 && break; fi
    kill -0 "$head" 2>/dev/null || break
    sleep 1
done
if [ -z "$ready" ]; then
    printf 'found: the Ray head did not come up\nexpected: a dashboard at %s\ndo: read %s\n' \
        "$address" "$log" >&2
    exit 1
fi

ray job submit --address "$address" --working-dir . -- \
    python recipes/build_mix.py --recipe demo --output "$output"
stop_head
trap - EXIT

python recipes/train.py --recipe demo --mix "$output/mix" --output "$output"
python recipes/summary.py "$output"
