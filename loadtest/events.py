#!/usr/bin/env python3
"""What security events cost the proxy, and how many of them a logdriver makes durable: runs whose figures stand in tuning.md.

    cargo build --release -p tsp -p tsp-loadtest -p tsp-logdriver
    loadtest/events.py cpu               # CPU of the proxy per wrap: events off, pushed, acknowledged
    loadtest/events.py cpu --kms aws     # the same where each wrap asks a KMS (kmssim)
    loadtest/events.py cpu --rate 2000   # the same far from full speed, where fewer events share a message
    loadtest/events.py cpu --without FILE  # and against a proxy that has no events at all
    loadtest/events.py durable           # events per second from the proxy to the logdriver's disk

The rounds are interleaved, every other one backwards, each cell with fresh processes; a ratio compares within a round. `off again` is
`off` a second time in the round: what it differs by is what a ratio is worth on this machine. `off, beside` is `off` while a logdriver on
the generator's CPU stores as many events a second as in `pushed`, of somebody else: it slows the generator, so that the proxy
wakes up for fewer requests at a time, and what CPUs share, and that is not what events cost the proxy. A proxy without events is not a
thing that can be switched on; for `--without`, build one whose `Reporter::send` (shards/src/events.rs) returns at once."""

import argparse
import base64
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import programs
from programs import ROOT, Feeder, Kmssim, Logdriver, Neighbour, Tsp

EVENTS_SECONDS_MAX = 60
TENANTS = ("tenant-1", "tenant-2")


def local_tenants(folder):
    """Two tenants whose keys are in the configuration file."""
    config = folder / "tenants.toml"
    text = "version = 1\n"
    for number, tenant in enumerate(TENANTS, 1):
        key = base64.b64encode(bytes([number]) * 32).decode()
        text += f'[[kms]]\nid = {number}\ntype = "LOCAL"\ncredentials = {{ key = "{key}" }}\n'
        text += f'[[tenant]]\nid = "{tenant}"\nassignments = [{{ kms = {number}, primary = true }}]\n'
    config.write_text(text)
    return config


def spread(figures):
    """Median and quartiles."""
    lower, median, upper = statistics.quantiles(figures, n=4, method="inclusive") if len(figures) > 1 else figures * 3
    return median, f"({lower:.3f}-{upper:.3f})"


def wait_until(what, reached):
    deadline = time.monotonic() + EVENTS_SECONDS_MAX
    while not reached():
        assert time.monotonic() < deadline, f"not within {EVENTS_SECONDS_MAX} s: {what}"
        time.sleep(0.02)


def lost(tsp):
    return tsp.metric("tsp_real_time_security_event_failures_total")


def cpu(folder):
    """CPU per wrap of a proxy with one shard on the first CPU; what loads it, and what takes its events, has the second, which never idles:
    else what the logdriver does there would slow the first, and count as the proxy's."""
    own, shared = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2]]
    on = {"TSP_ENABLE_LOGDRIVER_INTEGRATION": "true"}
    # Name: the program, its variables, how a logdriver takes the events.
    cells = {
        "off": (None, {}, None),
        "off again": (None, {}, None),
        "pushed": (None, on, "tcp"),
        "acknowledged": (None, on | {"TSP_EVENTS_ACKNOWLEDGED": "true"}, "tcp+ack"),
        "off, beside": (None, {}, None),
    }
    rates = {}
    if OPTIONS.without:
        cells["without"] = (OPTIONS.without.resolve(), {}, None)
    cpus = {"TSP_SHARDS": "1", "TSP_CORES": own, "TSP_CONTROL_CORE": own}
    rate = ["--rate", OPTIONS.rate, "--share-cpu"] if OPTIONS.rate else []
    load = [OPTIONS.mix, "--tenants", ",".join(TENANTS), "--connections", 64, "--cores", shared, *rate]

    def measure(config, cell):
        program, variables, scheme = cells[cell]
        with Tsp(folder, config, program=program, **cpus, **variables) as tsp:
            def run():
                report = tsp.load(folder, *load, "--requests", OPTIONS.requests, "--server-pid", tsp.process.pid)
                assert report["failed"] == 0, report["first_failure"]
                rates[cell] = report["requests_per_second"]
                return report["server_cpu"]["us_per_request"]

            if cell == "off, beside":
                with Feeder(rates["pushed"], shared) as feeder, Logdriver(folder, feeder, "tcp", cpu=shared) as logdriver:
                    wait_until("events stored", lambda: logdriver.metric("logdriver_events_stored_total") > 0)
                    return run()
            if scheme is None:
                return run()
            with Logdriver(folder, tsp, scheme, cpu=shared) as logdriver:
                figure = run()
                # What was measured is what all events cost only if none was dropped, and all were taken.
                made = tsp.metric("tsp_real_time_security_events_total")
                wait_until("events handed over", lambda: tsp.metric("tsp_events_pushed_total") >= made)
                assert lost(tsp) == 0, f"{lost(tsp):.0f} events were dropped"
                wait_until("events stored", lambda: logdriver.metric("logdriver_events_stored_total") >= made)
                return figure

    at = f"at {OPTIONS.rate}/s" if OPTIONS.rate else "at full speed"
    print(f"{OPTIONS.mix}, {OPTIONS.kms} KMS, {at}, {OPTIONS.io}, {OPTIONS.rounds} rounds of {OPTIONS.requests} requests; CPU µs per request")
    figures = {cell: [] for cell in cells}
    for number in range(OPTIONS.rounds):
        for cell in sorted(cells, key=list(cells).index, reverse=number % 2 == 1):
            with Neighbour(shared):
                if OPTIONS.kms == "local":
                    figures[cell].append(measure(local_tenants(folder), cell))
                else:
                    with Kmssim(folder, "--providers", "aws", "--tenants", len(TENANTS), cpu=shared) as kmssim:
                        figures[cell].append(measure(kmssim.config, cell))
        print(f"{number + 1:5}  " + "  ".join(f"{cell} {values[-1]:.2f}" for cell, values in figures.items()), flush=True)
    print("cell           CPU µs per request       ratio to off, within rounds  to off, beside")
    for cell, values in figures.items():
        median, quartiles = spread(values)
        ratios = [spread([value / base for value, base in zip(values, figures[name])]) for name in ("off", "off, beside")]
        print(f"{cell:13}  {median:6.2f} {quartiles:16}  " + "  ".join(f"{ratio:.3f} {quartiles}" for ratio, quartiles in ratios))


def durable(folder):
    """A proxy that unwraps in batches as fast as it gets rid of the events, and a logdriver that stores; both and the generator share
    the CPUs. Requests wait for room as long as it takes: a proxy that drops instead does so faster than anybody could store."""
    modes = {"pushed": ("tcp", "false"), "acknowledged": ("tcp+ack", "true")}
    load = ["batch-unwrap", "--batch-items", OPTIONS.items, "--tenants", ",".join(TENANTS), "--connections", 8, "--warm-up", 20, "--seconds", OPTIONS.seconds]
    print(f"batches of {OPTIONS.items} unwraps, {OPTIONS.io}, {OPTIONS.rounds} rounds of {OPTIONS.seconds} s")
    print("round  mode          events/s made  stored while that went on  dropped  told as dropped  s until all was stored")
    figures = {mode: [] for mode in modes}
    for number in range(OPTIONS.rounds):
        for mode in sorted(modes, reverse=number % 2 == 1):
            scheme, acknowledged = modes[mode]
            variables = {"TSP_ENABLE_LOGDRIVER_INTEGRATION": "true", "TSP_EVENTS_ACKNOWLEDGED": acknowledged, "TSP_SEND_LOGGING_TIMEOUT_MS": "10000"}
            with Tsp(folder, local_tenants(folder), RUST_LOG="warn,tsp=info,tsp::ops=warn", **variables) as tsp, Logdriver(folder, tsp, scheme) as logdriver:
                def counts():
                    stored = logdriver.metric("logdriver_events_stored_total")
                    return time.monotonic(), stored, tsp.metric("tsp_real_time_security_events_total"), lost(tsp)

                tsp.load(folder, *load[:-1], 1)
                before = counts()
                tsp.load(folder, *load)
                after = counts()
                took, stored, made, dropped = (later - earlier for later, earlier in zip(after, before))
                # Checkpoints are stored events too: at most one in a thousand.
                wait_until("all stored", lambda: logdriver.metric("logdriver_events_stored_total") >= tsp.metric("tsp_real_time_security_events_total"))
                rest = time.monotonic() - after[0]
                # A shard tells what was dropped within half a second once there is room.
                wait_until("losses told", lambda: logdriver.metric("logdriver_proxy_events_lost_total") >= lost(tsp))
                told = logdriver.metric("logdriver_proxy_events_lost_total")
                figures[mode].append(stored / took)
                print(f"{number + 1:5}  {mode:12}  {made / took:13.0f}  {stored / took:25.0f}  {dropped:7.0f}  {told:15.0f}  {rest:.2f}", flush=True)
    for mode, values in figures.items():
        values.sort()
        print(f"{mode}: {statistics.median(values):.0f} durable events/s ({values[0]:.0f} to {values[-1]:.0f})")


RUNS = {run.__name__: run for run in (cpu, durable)}
options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("run", choices=RUNS)
options.add_argument("--bin", type=Path, default=ROOT / "target/release", help="folder of the programs (default: %(default)s)")
options.add_argument("--io", choices=("epoll", "uring"), default="epoll", help="the proxy's I/O back end (default: %(default)s)")
options.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
options.add_argument("--kms", choices=("local", "aws"), default="local", help="where cpu's keys are (default: %(default)s)")
options.add_argument("--mix", default="wrap", help="cpu's operations (default: %(default)s)")
options.add_argument("--requests", type=int, default=100_000, help="requests of a cell of cpu (default: %(default)s)")
options.add_argument("--rate", type=int, help="requests a second in cpu (default: as fast as possible)")
options.add_argument("--without", type=Path, help="a proxy without events, for cpu")
options.add_argument("--items", type=int, default=1_000, help="items of a batch in durable (default: %(default)s)")
options.add_argument("--seconds", type=int, default=10, help="length of a round of durable (default: %(default)s)")
OPTIONS = options.parse_args()
programs.use(OPTIONS.bin, OPTIONS.io, "tsp", "kmssim", "loadgen", "tsp-logdriver")
with tempfile.TemporaryDirectory() as made:
    RUNS[OPTIONS.run](Path(made))
sys.stdout.flush()
