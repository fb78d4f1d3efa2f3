#!/usr/bin/env python3
"""What a proxy does when its KMSs misbehave, and what it costs to watch it: runs whose figures stand in tuning.md.

    cargo build --release -p tsp -p tsp-loadtest
    loadtest/misbehave.py batch      # 10,000 keys at once, again and again, under 256 open files: time, memory, files
    loadtest/misbehave.py cold       # 3,000 unwraps at once of one EDEK whose leased key no shard has: KMS calls
    loadtest/misbehave.py closing    # a far end that closes what is idle for a second: failed calls, calls sent again
    loadtest/misbehave.py faults     # resets and throttling: success rates, and what the rules of retrying predict
    loadtest/misbehave.py isolation  # one tenant's key hangs for 10 s under load: the others' latency, what a refusal costs
    loadtest/misbehave.py expiry     # leased keys that end all the time, against such that do not: latency, waits for the KMS
    loadtest/misbehave.py tokens     # 3,000 operations at once that have no token yet: token calls
    loadtest/misbehave.py watched    # CPU per request with tracing, with a dead collector, and with scrapes, against without
    loadtest/misbehave.py dashboard  # three minutes at two proxies, in the second one AWS throttles: what deploy/picture.py draws

Each run starts kmssim and tsp on free ports and ends both. The two share the machine with loadgen, so times and rates are lower
bounds; counts are what the runs are for."""

import argparse
import http.server
import json
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import programs
from programs import API_KEY, ROOT, Child, Kmssim, Neighbour, Tsp, call, cpu_seconds

def batch(folder):
    """Batches of 10,000 wraps under 256 open files."""
    items, batches = 10_000, 20
    body = {"iclFields": {"requestingId": "misbehave"}, "documentIds": [str(n) for n in range(items)]}
    headers = {"Authorization": f"cmk {API_KEY}", "Content-Type": "application/json"}
    print("KMS      batches  failed  s per batch (min median max)  RSS MiB after 1, 5, 10, 20  peak MiB  open files")
    for number, name in enumerate(("AWS", "Google", "Azure", "Thales"), 1):
        with Kmssim(folder, "--gcp-token-endpoint") as kmssim, Tsp(folder, kmssim.config, open_files=256) as tsp:
            times, resident, files, failed = [], [], 0, 0
            for _ in range(batches):
                began = time.monotonic()
                answer = call(tsp.http, "POST", "/api/1/document/batch-wrap", {"tenantId": f"tenant-{number}", **body}, headers)
                times.append(time.monotonic() - began)
                answer = json.loads(answer)
                assert len(answer["keys"]) + len(answer["failures"]) == items
                failed += len(answer["failures"])
                resident.append(tsp.memory_mib("VmRSS"))
                files = max(files, tsp.open_files())
            kmssim.metrics()
            times.sort()
            spread = f"{times[0]:.2f} {times[batches // 2]:.2f} {times[-1]:.2f}"
            after = ", ".join(f"{resident[n - 1]:.1f}" for n in (1, 5, 10, 20))
            print(f"{name:8} {batches:7}  {failed:6}  {spread:28}  {after:26}  {tsp.memory_mib('VmHWM'):8.1f}  {files}")


def closing(folder):
    """100,000 wraps in 200 bursts, with pauses of about the second after which the far end closes what is idle."""
    with Kmssim(folder) as kmssim, Tsp(folder, kmssim.config) as tsp:
        kmssim.order("POST", "/connections", {"idle_close_ms": 1000})
        tenants = ",".join(f"tenant-{n}" for n in range(1, 5))
        load = ["wrap", "--tenants", tenants, "--requests", 100_000, "--rate", 5000, "--burst", 500]
        report = tsp.load(folder, *load, "--pause-ms", "980-1020", "--connections", 64, "--warm-up", 0)
        connections = kmssim.metrics()["connections"]
        print(f"{report['requests']} answered, {report['failed']} failed, in {report['seconds']:.0f} s")
        print(f"connections: {connections['accepted']} opened, {connections['closed']} closed by the KMS")
        for noticed in ("before_call", "in_call"):
            count = tsp.metric("tsp_kms_connections_stale_total", noticed=noticed)
            print(f"noticed {noticed}: {count:.0f}")
        print(f"second tries: {tsp.metric('tsp_kms_retries_total'):.0f}")


def predict(resets, throttles, sent_again):
    """Success rates with one second try for everything, and with the budget for second tries (shards/src/breaker.rs).

    `resets` and `throttles` are the shares of HTTP requests. A reset before the head on a kept connection is `sent_again` at once
    on a fresh one. The budget earns 1 per success at the first try, a second try costs 14 after a reset and 5 after
    throttling, and gives that back if it succeeds. So in the long run a share `q` of failures gets a second try."""
    reset, throttle = resets, throttles
    if sent_again:
        reset, throttle = resets * resets, throttles + resets * throttles
    fails = reset + throttle
    lost = fails * (14 * reset + 5 * throttle)
    q = min(1, (1 - fails) / lost)
    return 1 - fails**2, 1 - fails + fails * q * (1 - fails)


def faults(folder):
    """Success rates at a KMS that resets connections and throttles."""
    rows = [
        ("3 % reset before the head, 5 % throttled", "reset_before_head", 3, 5),
        ("3 % reset after the head, 5 % throttled", "reset_after_head", 3, 5),
        ("50 % throttled", None, 0, 50),
    ]
    print("faults                                    requests  measured by seed, %        predicted, %: no budget, with it  second tries")
    for name, kind, resets, throttles in rows:
        rates, retries, requests = [], 0, 50_000
        # The first rule that strikes counts, so the second sees what the first left.
        predicted = predict(resets / 100, (1 - resets / 100) * throttles / 100, kind == "reset_before_head")
        for seed in range(1, 4):
            rules = [{"kind": kind, "percent": resets}] if kind else []
            rules.append({"kind": "throttle", "percent": throttles})
            options = [o for rule in rules for o in ("--fault", json.dumps({**rule, "target": {"operation": "wrap"}}))]
            with Kmssim(folder, "--seed", seed, "--providers", "aws", "--tenants", 1, *options) as kmssim:
                with Tsp(folder, kmssim.config) as tsp:
                    load = ["wrap", "--tenants", "tenant-1", "--requests", requests, "--rate", 1000, "--connections", 1000]
                    report = tsp.load(folder, *load, "--cold")
                    kmssim.metrics()
                    assert report["requests"] + report["failed"] == requests
                    rates.append(report["requests"] / requests)
                    retries += tsp.metric("tsp_kms_retries_total")
        measured = " ".join(f"{rate * 100:.2f}" for rate in rates)
        foretold = ", ".join(f"{rate * 100:.2f}" for rate in predicted)
        print(f"{name:40}  3 x {requests}  {measured:25}  {foretold:32}  {retries:.0f}")


def isolation(folder):
    """One tenant's key hangs for 10 s while all tenants are busy: the others' latency against the same load without that.

    The proxy has one shard, on the first CPU; the KMS, which takes 5 ms for an answer, and the generators have the second,
    and their waiting leaves it to each other. The tenant whose key will hang has a generator of its own, or its requests
    would take the connections from the others. A round is: all well; the key hangs; only refusals, while it still does; the key
    serves again. How much two rounds differ while all is well says what such a ratio is worth on this machine."""
    seconds, good_rate, bad_rate, refusal_rate, kms_ms = 10, RATE, RATE // 8, 1000, 5
    own, shared = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2]]
    tenants = ",".join(f"tenant-{number}" for number in range(1, 32))
    gentle = ["--cores", shared, "--share-cpu"]
    good = ["wrap", "--tenants", tenants, "--rate", good_rate, "--connections", 64, "--cold", *gentle]
    bad = ["wrap", "--tenants", "tenant-32", "--connections", 2000, "--cold", *gentle]
    options = ["--providers", "aws", "--tenants", 32, "--latency", json.dumps({"fixed_ms": kms_ms})]
    cpus = {"TSP_SHARDS": "1", "TSP_CORES": own, "TSP_CONTROL_CORE": own}

    def together(tsp, kmssim):
        """Both loads at once: their reports, the KMS's calls, and how busy proxy and KMS were."""
        folders = [Path(tempfile.mkdtemp(dir=folder)) for _ in range(2)]
        reports = {}

        def load(name, where, options):
            reports[name] = tsp.load(where, *options, "--seconds", seconds)

        kmssim.order("DELETE", "/requests")
        before = [cpu_seconds(child.process) for child in (tsp, kmssim)]
        began = time.monotonic()
        threads = [
            threading.Thread(target=load, args=("bad", folders[0], [*bad, "--rate", bad_rate])),
            threading.Thread(target=load, args=("good", folders[1], good)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        busy = [(cpu_seconds(child.process) - time_before) / took for child, time_before in zip((tsp, kmssim), before)]
        calls = kmssim.metrics()["providers"]["aws"]["wrap"]["requests"]
        return reports["good"], reports["bad"], calls, busy

    print(f"{good_rate} wraps/s for 31 tenants, {bad_rate} for one more, KMS {kms_ms} ms, {IO}; {ROUNDS} rounds")
    print("round  all well: p50 p99 ms, failed   a key hangs: p50 p99 ms, failed   calls to it, of wraps   refusal: CPU µs, calls")
    figures = {name: [] for name in ("p50", "p99", "noise", "calls", "cpu", "share", "recovery", "tsp", "kmssim")}
    last = None
    for number in range(1, ROUNDS + 1):
        with Kmssim(folder, *options, cpu=shared) as kmssim, Tsp(folder, kmssim.config, **cpus) as tsp:
            key = next(client["key"]["keyID"] for client in kmssim.order("GET", "/clients") if client["tenant"] == "tenant-32")
            # Connections, signing keys, pages; and the same again for what is measured.
            together(tsp, kmssim)
            well, served, _, busy = together(tsp, kmssim)
            assert served["failed"] == 0, served["first_failure"]
            kmssim.order("POST", "/faults", {"kind": "hang", "target": {"provider": "aws", "operation": "wrap", "key": key}})
            hangs, refused, calls, _ = together(tsp, kmssim)
            # Its breaker is open: now only refusals, and a probe now and then.
            kmssim.order("DELETE", "/requests")
            refusals = [*bad, "--rate", refusal_rate, "--seconds", 5, "--server-pid", tsp.process.pid]
            only = tsp.load(folder, *refusals)
            probes = kmssim.metrics()["providers"]["aws"].get("wrap", {}).get("requests", 0)
            kmssim.order("DELETE", "/faults")
            began = time.monotonic()
            while tsp.load(folder, "wrap", "--tenants", "tenant-32", "--requests", 2, "--connections", 1, "--cold")["failed"]:
                assert time.monotonic() - began < 60, "it does not recover"
                time.sleep(0.1)
            recovery = time.monotonic() - began
        asked = refused["requests"] + refused["failed"]
        offered = only["requests"] + only["failed"]
        cpu = only["server_cpu"]["busy_cpus"] * only["seconds"] / offered * 1e6
        calls -= hangs["requests"]
        quantiles = [[report["latency_us"][name] / 1e3 for name in ("p50", "p99")] for report in (well, hangs)]
        if last:
            figures["noise"].append(quantiles[0][1] / last)
        last = quantiles[0][1]
        for place, name in enumerate(("p50", "p99")):
            figures[name].append(quantiles[1][place] / quantiles[0][place])
        for name, figure in {"calls": calls / asked, "cpu": cpu, "share": probes / offered, "recovery": recovery}.items():
            figures[name].append(figure)
        figures["tsp"].append(busy[0])
        figures["kmssim"].append(busy[1])
        shown = ["{:6.2f} {:7.2f} {:5}".format(*pair, report["failed"]) for pair, report in zip(quantiles, (well, hangs))]
        if hangs["failed"]:
            print("  ", hangs["failures"], hangs["first_failure"])
        print(f"{number:5}  {shown[0]:28}   {shown[1]:30}   {calls:4} of {asked:6}         {cpu:6.1f}, {probes} of {offered}")

    def spread(name):
        sorted_figures = sorted(figures[name])
        return f"median {sorted_figures[len(sorted_figures) // 2]:.3g} ({sorted_figures[0]:.3g} to {sorted_figures[-1]:.3g})"

    print(f"p50, with the hang to without: {spread('p50')}")
    print(f"p99, with the hang to without: {spread('p99')}")
    if figures["noise"]:
        print(f"p99, a round without to the one before: {spread('noise')}")
    print(f"KMS calls per wrap with the hanging key: {spread('calls')}")
    print(f"CPU of the proxy per refusal, µs: {spread('cpu')}")
    print(f"KMS calls per refusal: {spread('share')}")
    print(f"served again after, s: {spread('recovery')}")
    print(f"busy without the hang, of one CPU: proxy {spread('tsp')}, KMS {spread('kmssim')}")


def cold(folder):
    """3,000 connections that all unwrap one EDEK at once, just after its tenant was forgotten on every shard.

    A shard works on 2,048 requests of one tenant at a time and refuses more."""
    connections, token = 3_000, "0123456789abcdef0123456789abcdef"
    slow = ["--latency", json.dumps({"target": {"provider": "aws", "operation": "unwrap"}, "fixed_ms": 500})]
    headers = {"Authorization": f"cmk {API_KEY}", "Content-Type": "application/json"}
    metadata = {"tenantId": "tenant-1", "iclFields": {"requestingId": "cold"}, "customFields": {}}
    print("shards  answered with the DEK  of  KMS unwrap calls")
    for shards in (1, 2, 4):
        with Kmssim(folder, "--providers", "aws", "--tenants", 1, "--leasing", *slow) as kmssim:
            with Tsp(folder, kmssim.config, TSP_SHARDS=str(shards), TSP_ADMIN_TOKEN=token) as tsp:
                wrapped = json.loads(call(tsp.http, "POST", "/api/1/document/wrap", metadata, headers))
                body = json.dumps(metadata | {"encryptedDocumentKey": wrapped["edek"]})
                lines = ["POST /api/1/document/unwrap HTTP/1.1", f"Host: {tsp.http}", f"Content-Length: {len(body)}"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                request = ("\r\n".join([*lines, "Connection: close", "", body])).encode()
                host, port = tsp.http.rsplit(":", 1)
                open_ones = [socket.create_connection((host, int(port)), timeout=60) for _ in range(connections)]
                # The lease proves itself by an unwrap of its own.
                call(tsp.health, "POST", "/admin/tenants/tenant-1/forget", {}, {"Authorization": f"Bearer {token}"})
                kmssim.order("DELETE", "/requests")
                for connection in open_ones:
                    connection.sendall(request)
                answered = 0
                for connection in open_ones:
                    text = b"".join(iter(lambda: connection.recv(65536), b""))
                    answered += wrapped["dek"].encode() in text
                    connection.close()
                calls = kmssim.metrics()["providers"]["aws"]["unwrap"]["requests"]
                print(f"{shards:6}  {answered:21}  of {connections}  {calls:3}")


def expiry(folder):
    """Leased keys of 4 tenants that are proven, renewed and thrown away every few seconds under load, at a KMS that takes
    20 ms, against the same load with keys that last: what the end of a key does to the slowest requests. The proxy has the
    first CPU, the generator the second, whose time the KMS hardly needs."""
    seconds, kms_ms = 30, 20
    own, shared = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2]]
    tenants = ",".join(f"tenant-{number}" for number in range(1, 5))
    load = ["wrap", "--tenants", tenants, "--rate", RATE, "--connections", 32, "--cores", shared, "--seconds"]
    options = ["--providers", "aws", "--tenants", 4, "--leasing", "--latency", json.dumps({"fixed_ms": kms_ms})]
    cpus = {"TSP_SHARDS": "1", "TSP_CORES": own, "TSP_CONTROL_CORE": own}
    kinds = {"last": {}, "end": {"TSP_LEASE_REVALIDATE_S": "5", "TSP_LEASE_MAX_AGE_S": "10"}}
    print(f"{RATE} wraps/s for 4 tenants under leased keys, KMS {kms_ms} ms, {IO}; {ROUNDS} rounds of {seconds} s")
    print("round  keys   p50 p99 p99.9 max ms        failed  keys made  proofs  requests without a key in memory")
    ratios = {name: [] for name in ("p50", "p99", "p99_9", "max")}
    for number in range(1, ROUNDS + 1):
        seen = {}
        for kind in sorted(kinds, reverse=number % 2 == 0):
            with Kmssim(folder, *options, cpu=shared) as kmssim, Tsp(folder, kmssim.config, **cpus, **kinds[kind]) as tsp:
                tsp.load(folder, *load, 5)

                def counts():
                    operations = [tsp.metric("tsp_key_operations_total", operation=f"leased_key_{what}") for what in ("wrap", "unwrap")]
                    return [*operations, tsp.metric("tsp_held_key_uses_total", kind="lease", result="miss")]

                before = counts()
                report = tsp.load(folder, *load, seconds, "--cold")
                made, proofs, misses = [after - count for after, count in zip(counts(), before)]
            seen[kind] = [report["latency_us"][name] / 1e3 for name in ratios]
            shown = " ".join(f"{figure:6.3f}" for figure in seen[kind])
            print(f"{number:5}  {kind:4}  {shown}  {report['failed']:6}  {made:9.0f}  {proofs:6.0f}  {misses:.0f}")
        for place, name in enumerate(ratios):
            ratios[name].append(seen["end"][place] / seen["last"][place])
    for name, figures in ratios.items():
        figures.sort()
        print(f"{name}, keys that end to keys that last: median {figures[len(figures) // 2]:.3f} ({figures[0]:.3f} to {figures[-1]:.3f})")


def tokens(folder):
    """3,000 operations at once that all need the same token."""
    operations = 3_000
    kinds = [
        ("AWS, role", "aws", ["--aws-roles"]),
        ("Google, self-signed", "gcp", []),
        ("Google, endpoint", "gcp", ["--gcp-token-endpoint"]),
        ("Azure, secret", "azure", []),
        ("Azure, certificate", "azure", ["--azure-certificates"]),
        ("Thales", "thales", []),
    ]
    print("credential           shards  answered  failed  in flight at most  token calls")
    slow = ["--latency", json.dumps({"target": {"operation": "token"}, "fixed_ms": 1500})]
    for name, provider, options in kinds:
        for shards in (1, 2, 4):
            with Kmssim(folder, "--providers", provider, "--tenants", 1, *options, *slow) as kmssim:
                # A shard works on 2,048 requests of one tenant at a time: here two share the credential.
                with kmssim.config.open("a") as config:
                    config.write('\n[[tenant]]\nid = "tenant-2"\nassignments = [{ kms = 1, primary = true }]\n')
                with Tsp(folder, kmssim.config, TSP_SHARDS=str(shards)) as tsp:
                    done, most = threading.Event(), [0]

                    def watch():
                        while not done.wait(0.05):
                            most[0] = max(most[0], tsp.metric("tsp_requests_in_flight"))

                    watcher = threading.Thread(target=watch)
                    watcher.start()
                    load = ["wrap", "--tenants", "tenant-1,tenant-2", "--requests", operations, "--connections", operations]
                    report = tsp.load(folder, *load, "--cold")
                    done.set()
                    watcher.join()
                    calls = sum(kmssim.metrics()["tokens"].values())
                    print(f"{name:20} {shards:6}  {report['requests']:8}  {report['failed']:6}  {most[0]:17.0f}  {calls}")
                    if report["failed"]:
                        print("  ", report["first_failure"])


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes traces and throws them away."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def watched(folder):
    """CPU of the proxy per leased unwrap and per wrap at a KMS: with 1 % of the requests traced, a collector running and a dead one;
    with all of them; and with a scrape a second; each against the same without, measured in the same round, in an order that
    changes. `again` is once more without: what such a ratio is worth on this machine. The proxy has one shard, on the first CPU; the rest, the
    collector and the scraper too, shares the second, which never idles."""
    own, shared = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2]]
    cpus = {"TSP_SHARDS": "1", "TSP_CORES": own, "TSP_CONTROL_CORE": own}
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)

    def on_shared(work):
        """In a thread that stays off the proxy's CPU, as do those that it starts."""
        def run():
            os.sched_setaffinity(threading.get_native_id(), {int(shared)})
            work()

        return threading.Thread(target=run, daemon=True)

    on_shared(collector.serve_forever).start()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        dead = nobody.getsockname()[1]

    def traced(port, sample):
        return {"TSP_TRACE_ENDPOINT": f"http://127.0.0.1:{port}", "TSP_TRACE_SAMPLE": sample}

    variants = {
        "without": {},
        "again": {},
        "1 % traced": traced(collector.server_port, "0.01"),
        "1 %, dead": traced(dead, "0.01"),
        "all traced": traced(collector.server_port, "1"),
        "scraped": {},
    }
    runs = {"leased unwrap": ("unwrap", ["--leasing"]), "KMS wrap": ("wrap", [])}
    load = ["--tenants", "tenant-1", "--connections", 32, "--cores", shared, "--seconds", SECONDS]
    for run, (operation, leasing) in runs.items():
        print(f"{run}, {SECONDS} s each, {ROUNDS} rounds, {IO}")
        print("round  variant     us per request  requests/s  failed  spans sent, dropped  scrapes")
        figures = {variant: [] for variant in variants}
        for number in range(ROUNDS):
            order = list(variants)[number % len(variants) :] + list(variants)[: number % len(variants)]
            for variant in order:
                with Neighbour(shared), Kmssim(folder, "--providers", "aws", "--tenants", 1, *leasing, cpu=shared) as kmssim:
                    with Tsp(folder, kmssim.config, **cpus, **variants[variant]) as tsp:
                        done, scrapes = threading.Event(), [0]

                        def scrape():
                            while not done.wait(1):
                                call(tsp.health, "GET", "/metrics")
                                scrapes[0] += 1

                        scraper = on_shared(scrape)
                        if variant == "scraped":
                            scraper.start()
                        report = tsp.load(folder, operation, *load, "--server-pid", tsp.process.pid)
                        done.set()
                        if variant == "scraped":
                            scraper.join()
                        spans = [tsp.metric(f"tsp_trace_spans_{what}_total") for what in ("sent", "dropped")]
                figure = report["server_cpu"]["us_per_request"]
                figures[variant].append(figure)
                shown = f"{spans[0]:.0f}, {spans[1]:.0f}"
                rate = report["requests_per_second"]
                print(f"{number + 1:5}  {variant:10}  {figure:14.2f}  {rate:10.0f}  {report['failed']:6}  {shown:19}  {scrapes[0]}")
        print("variant     us per request: median (least, most)   to without in the same round: median (least, most)")
        for variant, measured in figures.items():
            ratios = [figure / without for figure, without in zip(measured, figures["without"])]
            texts = []
            for numbers, form in ((sorted(measured), "{:.2f} ({:.2f}, {:.2f})"), (sorted(ratios), "{:.3f} ({:.3f}, {:.3f})")):
                texts.append(form.format(numbers[len(numbers) // 2], numbers[0], numbers[-1]))
            print(f"{variant:10}  {texts[0]:41}  {texts[1]}")
    collector.shutdown()


def dashboard(folder):
    """All operations at two proxies for three minutes. In the second one AWS throttles six of ten calls."""
    minutes, rate = 3, 150
    folders = [folder / name for name in ("first", "second")]
    for one in folders:
        one.mkdir()
    with Kmssim(folder, "--gcp-token-endpoint") as kmssim:
        with Tsp(folders[0], kmssim.config) as first, Tsp(folders[1], kmssim.config) as second:
            live = [ROOT / "deploy/live.py", "--seconds", 60 * minutes, "--keep", KEEP, f"tsp={first.health}", f"tsp={second.health}"]
            with Child(live) as live:
                tenants = ",".join(f"tenant-{n}" for n in range(1, 5))
                mix = ["unwrap=70,wrap=25,rekey=5", "--tenants", tenants, "--rate", rate, "--connections", 16, "--warm-up", 0]
                load = [*mix, "--requests", rate * 60 * minutes, "--arrivals", "poisson"]
                callers = [threading.Thread(target=tsp.load, args=(one, *load)) for tsp, one in ((first, folders[0]), (second, folders[1]))]
                for caller in callers:
                    caller.start()
                time.sleep(60)
                kmssim.order("POST", "/faults", {"kind": "throttle", "percent": 60, "target": {"provider": "aws"}})
                time.sleep(60)
                kmssim.order("DELETE", "/faults")
                live.process.wait()
                for caller in callers:
                    caller.join()


RUNS = {run.__name__: run for run in (batch, closing, cold, dashboard, expiry, faults, isolation, tokens, watched)}
options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("run", choices=RUNS)
options.add_argument("--bin", type=Path, default=ROOT / "target/release", help="folder of the programs (default: %(default)s)")
options.add_argument("--io", choices=("epoll", "uring"), default="epoll", help="the proxy's I/O back end (default: %(default)s)")
options.add_argument("--rounds", type=int, default=7, help="rounds of isolation, expiry and watched (default: %(default)s)")
options.add_argument("--rate", type=int, default=1500, help="wraps a second in expiry, and for the others in isolation (default: %(default)s)")
options.add_argument("--seconds", type=int, default=6, help="length of one measurement of watched (default: %(default)s)")
options.add_argument("--keep", type=Path, default=Path("prometheus-data"), help="folder for dashboard's data (default: %(default)s)")
options = options.parse_args()
ROUNDS = options.rounds
RATE = options.rate
SECONDS = options.seconds
KEEP = options.keep
IO = options.io
programs.use(options.bin, options.io, "tsp", "kmssim", "loadgen")
with tempfile.TemporaryDirectory() as made:
    RUNS[options.run](Path(made))
sys.stdout.flush()
