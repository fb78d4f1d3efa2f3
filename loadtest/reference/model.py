#!/usr/bin/env python3
"""From what one shard costs here to what more of them would do: the proxy's capacity as a model, beside the points that were measured.

    loadtest/reference/run.py --out reference.json
    loadtest/reference/model.py reference.json

An operation takes c µs of CPU of its shard, so a shard that is busy for a share u of its core's time does u / c operations a second, and
n shards n times that, as long as they share nothing: the path of a request has no lock, no shared counter and no shared table. What they do share
is the memory's bandwidth and the kernel's tables, and what that costs is the ratio r of c at two shards to c at one. The model takes r once for each
doubling, or 1.05, the goal, if that is worse, and beside it 1.00, where shards are free of each other. From four cores on one
is the control plane's. Through a KMS the connections are a limit of their own: a shard has CONNECTIONS to an endpoint, so no more than that
divided by the KMS's time are answered a second, and each cloud allows so many a second besides.

Prints Markdown, ready for tuning.md."""

import argparse
import json
import math
from pathlib import Path

from goals import TSP, Figures, median

# Of a core, while it is kept busy: the rest is for the kernel's own work and the machine's.
BUSY = 0.85
CORES = (2, 8, 32, 64)
FLEET = 10
# As in shards/src/limits.rs: per shard and endpoint, and of those per tenant.
CONNECTIONS, TENANT_CONNECTIONS = 128, 64
KMS_MS = (5, 20)
# Symmetric operations a second that an account may ask for before it asks for more, by the clouds' own pages on quotas; they change.
QUOTAS = {"AWS KMS, most regions": 10_000, "AWS KMS, the largest regions": 100_000, "Cloud KMS, software keys (60,000 a minute)": 1_000, "Azure Key Vault, RSA-2048 (4,000 in 10 s)": 400}


def shards(cores):
    return cores if cores < 4 else cores - 1


def capacity(cpu_us, cores, ratio):
    count = shards(cores)
    return count * BUSY * 1e6 / (cpu_us * ratio ** math.log2(count))


def thousands(figure):
    return f"{figure / 1e3:,.0f},000" if figure >= 10_000 else f"{figure:,.0f}"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path, help="what run.py --out wrote")
    run = json.loads(options.parse_args().run.read_text())
    figures = Figures(run["figures"])
    measured = figures.ratios(("unwrap", f"{TSP} × 2"), ("unwrap", TSP))
    worse = max(1.05, median(measured))
    costs = {
        "leased unwrap": median(figures.all("unwrap", TSP)),
        "leased wrap": median(figures.all("wrap", TSP)),
        "key of a batch of 100": median(figures.all("batch", TSP)) / 100,
        "wrap through a KMS, TLS": median(figures.all("kms-tls", TSP)),
    }
    print(f"Ratio of two shards to one, measured: {median(measured):.2f}. From {worse:.2f} a doubling to none at all. A shard is busy for {BUSY:.0%} of its core.\n")
    print("| operations a second | µs | " + " | ".join(f"{cores} cores" for cores in CORES) + f" | {FLEET} machines of 8 |")
    print("| --- | --- |" + " --- |" * (len(CORES) + 1))
    for name, cost in costs.items():
        both = [tuple(capacity(cost, cores, each) for each in (worse, 1.0)) for cores in CORES]
        both.append(tuple(FLEET * capacity(cost, 8, each) for each in (worse, 1.0)))
        print(f"| {name} | {cost:.2f} | " + " | ".join(thousands(less) if less == more else f"{thousands(less)}–{thousands(more)}" for less, more in both) + " |")
    print("\nThrough one KMS endpoint, by its connections alone:\n")
    print("| the KMS takes | " + " | ".join(f"{cores} cores" for cores in CORES) + " | one tenant, per shard |")
    print("| --- |" + " --- |" * (len(CORES) + 1))
    for ms in KMS_MS:
        print(f"| {ms} ms | " + " | ".join(thousands(shards(cores) * CONNECTIONS / ms * 1e3) for cores in CORES) + f" | {thousands(TENANT_CONNECTIONS / ms * 1e3)} |")
    print("\nAnd by the clouds' quotas, without leases, however many cores: " + "; ".join(f"{name} {thousands(quota)} a second" for name, quota in QUOTAS.items()) + ".\n")
    print("Checked at the points there are:\n\n| point | predicted | measured | off by |\n| --- | --- | --- | --- |")
    for name, predicted, seen in checks(figures):
        print(f"| {name} | {thousands(predicted)} | {thousands(seen)} | {seen / predicted - 1:+.0%} |")


def checks(figures):
    """Predictions for what was also measured: a shard at the share of its core that it had, and two that share both with the generator."""
    for scenario, contestant, name in (("unwrap", TSP, "leased unwrap, one shard"), ("unwrap", f"{TSP} × 2", "leased unwrap, two shards"), ("kms-tls", TSP, "wrap through the KMS, TLS, one shard")):
        cost = median(figures.all("unwrap" if "unwrap" in name else scenario, TSP))
        busy = median(figures.all(scenario, contestant, "busy_cpus"))
        yield f"{name}, {busy:.2f} CPUs busy", busy * 1e6 / cost, median(figures.all(scenario, contestant, "per_second"))


if __name__ == "__main__":
    main()
