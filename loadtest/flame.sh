#!/usr/bin/env bash
# Flame graphs of the paths that matter, as SVG: where a request's CPU time goes.
#
#     cargo build --release -p tsp -p tsp-loadtest
#     loadtest/flame.sh docs/flame        # leased unwrap, wrap through the KMS, batch: about a minute each
#
# Needs Debian's linux-perf, and inferno (`cargo install inferno --root target/inferno`). Only the shard's thread is drawn; a
# frame's width is its share of that thread's CPU time, the kernel's part included.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?where to: loadtest/flame.sh FOLDER}
binaries=${CARGO_TARGET_DIR:-target}/release
inferno=${INFERNO:-${CARGO_TARGET_DIR:-target}/inferno/bin}
command -v perf >/dev/null || { echo "flame.sh: perf is missing: apt-get install linux-perf" >&2; exit 1; }
[ -x "$inferno/inferno-flamegraph" ] || { echo "flame.sh: inferno is missing: cargo install inferno --root ${inferno%/bin}" >&2; exit 1; }
mkdir -p "$out"
exec python3 -B loadtest/reference/flame.py "$binaries" "$inferno" "$out"
