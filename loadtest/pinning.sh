#!/usr/bin/env bash
# What it is worth that a shard is pinned to a core: the same proxy, pinned and free to go to any core, in the same rounds.
#
#   cargo build --release -p tsp -p tsp-loadtest
#   loadtest/pinning.sh [OPTIONS]          of `loadgen compare`; without any --rounds 15 --warm-up 100000
#
# The free one is the same program, whose threads are let go after its start: no variable of the proxy does that. Wants a quiet machine
# with at least two cores; the generator has one of them, so that the free shard may meet it there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BIN=${BIN:-$PWD/target/release}
cores=$(taskset -cp $$ | sed 's/.*: //')
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Threads come while the proxy starts, so that it is done a few times, all of them before the warm-up is over.
cat >"$folder/tsp" <<TEXT
#!/bin/sh
(for time in 0.2 0.3 0.5; do sleep \$time; taskset -acp $cores \$\$ >/dev/null 2>&1; done) </dev/null >/dev/null 2>&1 &
exec $BIN/tsp "\$@"
TEXT
chmod +x "$folder/tsp"
[ $# -gt 0 ] || set -- --rounds 15 --warm-up 100000
"$BIN/loadgen" compare wrap --server "$BIN/tsp" --tenants tenant-leased --shards 1 "$@" \
    --vary "pinned: TSP_IO=epoll" --vary "free: TSP_IO=epoll SERVER=$folder/tsp"
