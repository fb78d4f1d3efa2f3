#!/usr/bin/env bash
# Builds the images of the Dockerfile and tries them, on a Debian machine that need not reach any registry of images.
#
#   deploy/image-test.sh                    builds everything as the Dockerfile says, and tries it
#   PROFILE=dev deploy/image-test.sh        the same with quicker builds
#   BINARIES=target/release deploy/image-test.sh    final stages only, with programs that are there
#   KEEP=1 …                                leaves images and working folder; WORK=FOLDER says where
#
# The bases are made here, under the names that the Dockerfile asks for: the build base from Debian's packages and this machine's
# Rust, the runtime base from the packages that the real one consists of. Needs root, buildah, podman, runc and debootstrap:
# apt-get install buildah podman runc debootstrap. Crates come from this machine's cargo folder, which is mounted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PROFILE=${PROFILE:-release}
BINARIES=${BINARIES:-}
WORK=${WORK:-$(mktemp -d)}
SUITE=bookworm
API_KEY=dGVzdC1hcGkta2V5
TRIES=600 # times 0.1 s that a container has to become ready

say() { printf '\n== %s\n' "$*"; }
skip() { printf 'skipped: %s\n' "$*"; exit 0; }
for program in buildah podman runc debootstrap; do
    command -v $program >/dev/null || skip "$program is not installed: apt-get install buildah podman runc debootstrap"
done
[ "$(id -u)" = 0 ] || skip "not root: debootstrap wants to be"

storage=(--root "$WORK/storage" --runroot "$WORK/run" --storage-driver vfs)
buildah() { command buildah "${storage[@]}" "$@"; }
# Neither systemd nor a cgroup of one's own is wanted, and limits that a container engine's own container can pass on.
podman() { command podman "${storage[@]}" --runtime runc --cgroup-manager cgroupfs --log-level error "$@"; }
running=()
clean_up() {
    for one in "${running[@]}"; do podman rm --force --time 1 "$one" >/dev/null 2>&1 || true; done
    [ -n "${KEEP:-}" ] || rm -rf "$WORK"
}
trap clean_up EXIT
mkdir -p "$WORK"

base_of() { sed -n "s/^ARG $1=//p" Dockerfile; }
import() { # NAME FOLDER CONFIG...
    tar -C "$2" -c . | podman import "${@:3}" - "$1" >/dev/null
}
exists() { podman image exists "$1"; }

runtime_base=$(base_of RUNTIME_BASE)
if ! exists "$runtime_base"; then
    say "Runtime base: $runtime_base"
    mkdir -p "$WORK/runtime/var/lib/dpkg/status.d" "$WORK/packages"
    (cd "$WORK/packages" && apt-get download -q libc6 libgcc-s1 gcc-12-base >/dev/null)
    for package in "$WORK"/packages/*.deb; do dpkg-deb -x "$package" "$WORK/runtime"; done
    rm -rf "$WORK"/runtime/usr/share/{doc,lintian,locale,man} "$WORK"/runtime/lib/x86_64-linux-gnu/gconv "$WORK"/runtime/usr/lib/x86_64-linux-gnu/{audit,gconv}
    mkdir -p "$WORK"/runtime/{etc,tmp,proc,sys,dev,run}
    printf 'root:x:0:0::/:/sbin/nologin\nnonroot:x:65532:65532::/nonexistent:/sbin/nologin\n' >"$WORK/runtime/etc/passwd"
    import "$runtime_base" "$WORK/runtime"
fi

if [ -z "$BINARIES" ]; then
    build_base=$(base_of BUILD_BASE)
    if ! exists "$build_base"; then
        say "Build base: $build_base"
        debootstrap --variant=minbase --include=gcc,libc6-dev,make,cmake,binutils,ca-certificates "$SUITE" "$WORK/build-base" >"$WORK/debootstrap.log"
        mkdir -p "$WORK/build-base/usr/local/cargo"
        cp -a "$(rustc --print sysroot)" "$WORK/build-base/usr/local/rust"
        rm -rf "$WORK/build-base/usr/local/rust/share" "$WORK/build-base/var/cache/apt"
        import "$build_base" "$WORK/build-base" --change 'ENV CARGO_HOME=/usr/local/cargo' \
            --change 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
        rm -rf "$WORK/build-base"
    fi
    dockerfile=Dockerfile
    options=(--volume "${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry" --build-arg CARGO_NET_OFFLINE=true --build-arg "PROFILE=$PROFILE")
else
    # The build stage is a folder with the programs instead.
    mkdir -p "$WORK/context/out/data"
    for program in tsp tsp-broker tsp-logdriver; do
        [ ! -e "$BINARIES/$program" ] || strip --strip-debug -o "$WORK/context/out/$program" "$BINARIES/$program"
    done
    { sed -n '/^ARG/p' Dockerfile | sed -n '/_BASE=/p'; echo 'FROM scratch AS build'; echo 'COPY out /out'; sed -n '/^FROM ${RUNTIME_BASE}/,$p' Dockerfile; } >"$WORK/context/Dockerfile"
    dockerfile=$WORK/context/Dockerfile
    options=()
fi

build() { # TARGET
    say "Image $1"
    local context=.
    [ -z "$BINARIES" ] || context=$WORK/context
    buildah build --isolation chroot --network host --layers --timestamp 0 --format docker "${options[@]}" \
        --build-arg "REVISION=$(git rev-parse HEAD)" --target "$1" --tag "$1:test" --file "$dockerfile" "$context" >"$WORK/build-$1.log" 2>&1 || {
        tail -30 "$WORK/build-$1.log"
        exit 1
    }
}
targets=()
for target in tsp tsp-broker tsp-logdriver; do
    [ -n "$BINARIES" ] && [ ! -e "$WORK/context/out/$target" ] && { echo "skipped: $BINARIES has no $target"; continue; }
    build $target
    targets+=($target)
done

say "Sizes"
for target in "${targets[@]}"; do
    bytes=$(podman image inspect --format '{{.Size}}' "$target:test")
    printf '%-14s %6.1f MiB, user %s, healthcheck %s\n' "$target" "$(awk "BEGIN { print $bytes / 1048576 }")" \
        "$(podman image inspect --format '{{.Config.User}}' "$target:test")" \
        "$(podman image inspect --format '{{.HealthCheck.Test}}' "$target:test" 2>/dev/null || echo none)"
done

start() { # NAME OPTIONS... -- COMMAND...
    local name=$1
    shift
    running+=("$name")
    podman rm --force --time 1 --ignore "$name" >/dev/null
    # The engine would have systemd ask; `ready` asks with the image's own command instead.
    podman run --detach --no-healthcheck --name "$name" --network host --read-only --read-only-tmpfs=false --cap-drop ALL \
        --security-opt no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 "$@" >/dev/null
}
stop() {
    podman stop --time 30 "$1" >/dev/null
    local code
    code=$(podman inspect --format '{{.State.ExitCode}}' "$1")
    podman rm "$1" >/dev/null
    [ "$code" = 0 ] || { echo "$1 ended with $code"; exit 1; }
}
ready() { # NAME HEALTH-ADDRESS
    local try
    for ((try = 0; try < TRIES; try++)); do
        podman exec "$1" /usr/local/bin/tsp health "$2" >/dev/null 2>&1 && return
        [ "$(podman inspect --format '{{.State.Running}}' "$1")" = true ] || break
        sleep 0.1
    done
    podman logs "$1" | tail -5
    echo "$1 does not become ready"
    exit 1
}

smoke() { # BASE-URL
    local checks=0
    if [ -x target/sdk/node/node ]; then
        NODE_PATH=target/sdk/node/node_modules target/sdk/node/node tests/sdk/node/smoke.cjs "$1" $API_KEY tenant-a tenant-b nobody >"$WORK/smoke" || { cat "$WORK/smoke"; exit 1; }
        checks=$((checks + $(grep -c '^ok ' "$WORK/smoke")))
        ! grep '^not ok' "$WORK/smoke" || exit 1
    else echo "skipped: the SDK for Node.js is not installed; ./x setup does that"; fi
    if [ -x target/sdk/python/bin/python ]; then
        PYTHONDONTWRITEBYTECODE=1 target/sdk/python/bin/python tests/sdk/python/smoke.py "$1" $API_KEY tenant-a tenant-b nobody >"$WORK/smoke" || { cat "$WORK/smoke"; exit 1; }
        checks=$((checks + $(grep -c '^ok ' "$WORK/smoke")))
        ! grep '^not ok' "$WORK/smoke" || exit 1
    else echo "skipped: the SDK for Python is not installed; ./x setup does that"; fi
    # A second opinion, if there is one: see ./x.
    local program=${TSP_TEST_CLIENTS:-../shared/clients/run}
    if [ -x "$program" ]; then
        "$program" --base-url "$1" --api-key $API_KEY --tenant tenant-a --tenant2 tenant-b --cache target/sdk/clients >"$WORK/smoke" || { cat "$WORK/smoke"; exit 1; }
        checks=$((checks + $(grep -c '^ok ' "$WORK/smoke")))
        ! grep '^not ok' "$WORK/smoke" || exit 1
    fi
    echo "   $checks checks of the published SDKs passed"
}

port=17700
for seccomp in default deploy/seccomp/io-uring.json; do
    for io in auto uring; do
        for user in 65532 2:2; do # the second as the existing product's manifest has it
            [ $seccomp != default ] || [ $io != uring ] || continue # there it must be refused, below
            [ $io != uring ] || [ $user = 65532 ] || continue
            say "seccomp $seccomp, TSP_IO=$io, user $user, read-only"
            port=$((port + 10))
            profile=()
            [ $seccomp = default ] || profile=(--security-opt "seccomp=$seccomp")
            start tsp-under-test "${profile[@]}" --user $user --env TSP_IO=$io --env RUST_LOG=info tsp:test dev --api-key $API_KEY \
                --http 127.0.0.1:$port --health 127.0.0.1:$((port + 1)) --event 127.0.0.1:$((port + 2))
            ready tsp-under-test 127.0.0.1:$((port + 1))
            podman logs tsp-under-test 2>/dev/null | sed -n 's/.*"io":"\([^"]*\)".*"io_reason":"\([^"]*\)".*/   io \1: \2/p' | head -1
            smoke http://127.0.0.1:$port
            stop tsp-under-test
        done
    done
done

say "io_uring under the default profile is refused with a reason"
start tsp-refused --env TSP_IO=uring tsp:test dev
podman wait tsp-refused >/dev/null
podman logs tsp-refused 2>&1 | tail -2
podman rm tsp-refused >/dev/null

if [[ " ${targets[*]} " == *" tsp-broker "* ]]; then
    say "broker and logdriver: a made-up vendor on a volume, any user, read-only"
    mkdir -p "$WORK/data" && chown 12345:12345 "$WORK/data"
    start broker-under-test --user 12345:12345 --volume "$WORK/data:/data" --env BROKER_LISTEN=127.0.0.1:17690 --env BROKER_SETUP_TOKEN=made-up-token tsp-broker:test
    for ((try = 0; try < TRIES; try++)); do podman exec broker-under-test /usr/local/bin/tsp-broker health >/dev/null 2>&1 && break; sleep 0.1; done
    podman exec --env BROKER_PASSPHRASE=made-up-passphrase broker-under-test /usr/local/bin/tsp-broker try-out --folder /data --broker http://127.0.0.1:17690
    start tsp-of-broker --env-file "$WORK/data/proxy.env" --env API_KEY=$API_KEY --env TSP_ALLOW_LOCAL_KMS=true --env TSP_HTTP_BIND_ADDRESS=127.0.0.1:17691 \
        --env TSP_HEALTH_BIND_ADDRESS=127.0.0.1:17692 --env TSP_EVENT_BIND_ADDRESS=127.0.0.1:17693 tsp:test
    ready tsp-of-broker 127.0.0.1:17692
    if [[ " ${targets[*]} " == *" tsp-logdriver "* ]]; then
        mkdir -p "$WORK/events" && chown 12345:12345 "$WORK/events"
        start logdriver-under-test --user 12345:12345 --volume "$WORK/events:/logdriver" --env-file "$WORK/data/logdriver.env" \
            --env LOGDRIVER_EVENT_PRODUCER_URL=tcp://127.0.0.1:17693 --env LOGDRIVER_HEALTH_BIND_ADDRESS=127.0.0.1:17694 tsp-logdriver:test
        for ((try = 0; try < TRIES; try++)); do podman exec logdriver-under-test /usr/local/bin/tsp-logdriver health >/dev/null 2>&1 && break; sleep 0.1; done
    fi
    smoke http://127.0.0.1:17691
    stop tsp-of-broker
    if [[ " ${targets[*]} " == *" tsp-logdriver "* ]]; then
        for ((try = 0; try < TRIES; try++)); do
            events=$(podman logs logdriver-under-test 2>/dev/null | grep -c '"iclFields"' || true)
            [ "$events" -lt 10 ] || break
            sleep 0.1
        done
        [ "$events" -ge 10 ] || { podman logs logdriver-under-test | tail -5; echo "only $events events came out of the logdriver"; exit 1; }
        stop logdriver-under-test
        echo "   $events events came out of the logdriver"
    fi
    stop broker-under-test
fi
say "ok"
