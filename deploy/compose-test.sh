#!/usr/bin/env bash
# Runs deploy/compose.yaml for real with podman-compose, without a registry of images: the images that deploy/image-test.sh has built
# and kept, and one of Debian's Prometheus. Grafana's image cannot be made here, so that service stays out.
#
#   KEEP=1 WORK=/tmp/images BINARIES=target/debug deploy/image-test.sh
#   WORK=/tmp/images deploy/compose-test.sh          STAY=1 leaves it running until Enter is pressed
#
# Wants root, podman with netavark and aardvark-dns, prometheus, and ./x setup (podman-compose).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
WORK=${WORK:?the folder that deploy/image-test.sh was given}
API_KEY=bWFkZS11cC1hcGkta2V5
TRIES=300 # times 0.2 s

skip() { printf 'skipped: %s\n' "$*"; exit 0; }
command -v podman >/dev/null || skip "podman is not installed"
[ -x target/deploy/bin/podman-compose ] || skip "podman-compose is not installed; ./x setup does that"
prometheus=$(command -v prometheus || echo target/prometheus/usr/bin/prometheus)
[ -x "$prometheus" ] || skip "prometheus is not installed; ./x setup does that"

# The engine as this machine allows it: no systemd, limits that may be set, names resolved by aardvark.
cat >"$WORK/containers.conf" <<'TEXT'
[network]
network_backend = "netavark"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
TEXT
mkdir -p "$WORK/bin"
cat >"$WORK/bin/podman" <<TEXT
#!/bin/sh
CONTAINERS_CONF=$WORK/containers.conf exec $(command -v podman) --root $WORK/storage --runroot $WORK/run --storage-driver vfs --log-level error "\$@"
TEXT
chmod +x "$WORK/bin/podman"
PATH=$WORK/bin:$PATH

image() { awk -v name="$1:" '$1 == "image:" && index($2, name) { print $2; exit }' deploy/compose.yaml; }
services=(broker vendor proxy prometheus)
for program in tsp tsp-broker tsp-logdriver; do
    podman image exists "$program:test" || { [ $program = tsp-logdriver ] && continue || skip "no image $program:test; run deploy/image-test.sh with KEEP=1"; }
    podman tag "$program:test" "$program:0.1.0"
    [ $program != tsp-logdriver ] || services+=(logdriver)
done
if ! podman image exists "$(image prom/prometheus)"; then
    mkdir -p "$WORK/prometheus"/{bin,lib64,lib/x86_64-linux-gnu,etc/prometheus,prometheus,tmp}
    cp "$prometheus" "$WORK/prometheus/bin/"
    for library in libc.so.6 libm.so.6 libresolv.so.2 libpthread.so.0; do cp -L "/lib/x86_64-linux-gnu/$library" "$WORK/prometheus/lib/x86_64-linux-gnu/"; done
    cp -L /lib64/ld-linux-x86-64.so.2 "$WORK/prometheus/lib64/"
    tar -C "$WORK/prometheus" -c . | podman import --change 'ENTRYPOINT ["/bin/prometheus"]' - "$(image prom/prometheus)" >/dev/null
fi

# Without `build`, since the images are there; without limits, since no others may be given here; without health checks, since systemd
# would have to run them; and so without an order, which depends on those: what starts too early is restarted until it works.
target/deploy/bin/python - deploy/compose.yaml >deploy/.compose-test.yaml <<'TEXT'
import sys, yaml
compose = yaml.safe_load(open(sys.argv[1]))
for service in compose["services"].values():
    for left_out in ("build", "depends_on", "ulimits"):
        service.pop(left_out, None)
    service["healthcheck"] = {"disable": True}
yaml.safe_dump(compose, sys.stdout)
TEXT
compose() { target/deploy/bin/podman-compose -f deploy/.compose-test.yaml "$@"; }
clean_up() {
    compose down --volumes --timeout 5 >>"$WORK/compose.log" 2>&1 || true
    rm -f deploy/.compose-test.yaml
}
trap clean_up EXIT

begun=$SECONDS
compose up --detach "${services[@]}" >"$WORK/compose.log" 2>&1 || { tail -20 "$WORK/compose.log"; exit 1; }
wait_for() { # WHAT COMMAND...
    local try
    for ((try = 0; try < TRIES; try++)); do
        "${@:2}" >/dev/null 2>&1 && { echo "ok $1 ($((SECONDS - begun)) s after the start)"; return; }
        sleep 0.2
    done
    echo "not ok $1"
    podman ps --all
    for name in $(podman ps --all --format '{{.Names}}'); do echo "-- $name"; podman logs "$name" 2>&1 | tail -3; done
    exit 1
}
wrap() { curl -fsS "http://127.0.0.1:7777/api/1/document/wrap" -H "Authorization: cmk $API_KEY" -H 'Content-Type: application/json' \
    -d "{\"tenantId\":\"$1\",\"iclFields\":{\"requestingId\":\"me\"},\"customFields\":{}}"; }
up() { curl -fsS 'http://127.0.0.1:9090/api/v1/query?query=up==1' | grep -q "\"job\":\"$1\""; }
wait_for "the proxy is ready" curl -fsS http://127.0.0.1:9000/ready
wait_for "a tenant of the made-up vendor wraps" wrap tenant-a
compose --profile admin run --rm -T admin tenant create acme >>"$WORK/compose.log" 2>&1
echo "ok the admin made a tenant"
wait_for "Prometheus scrapes the proxy" up tsp
wait_for "Prometheus scrapes the broker" up tsp-broker
[[ " ${services[*]} " != *" logdriver "* ]] || wait_for "Prometheus scrapes the logdriver" up tsp-logdriver
[ -z "${STAY:-}" ] || { echo "running; Enter ends it"; read -r; }
