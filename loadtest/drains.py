#!/usr/bin/env python3
"""Drains under load: what becomes of requests when a proxy is stopped while clients connect anew for each of them, with
net.ipv4.tcp_migrate_req off and on, turn by turn.

    cargo build --release -p tsp
    sudo loadtest/drains.py [--rounds 10]

Runs in a network namespace of its own, where the setting touches nobody else; so it wants root. `refused` is a connection that was
not taken, which a client may send elsewhere without a thought; `cut` is one that was taken and then closed without an answer, and
there should be none."""

import argparse
import asyncio
import collections
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rolling import ROOT, Client, Proxy, config_of

CLIENTS = 64
LOAD_SECONDS = 1
SETTING = Path("/proc/sys/net/ipv4/tcp_migrate_req")
WHO = {"tenantId": "tenant-0", "iclFields": {"requestingId": "drains"}, "customFields": {}}


async def client(port, counts, over):
    while not over.is_set():
        one = Client(port)
        try:
            await one.post("wrap", WHO)
            counts["answered"] += 1
        except ConnectionRefusedError:
            counts["refused"] += 1
            return
        except (OSError, asyncio.IncompleteReadError, RuntimeError) as why:
            counts[f"cut: {type(why).__name__}"] += 1
        await one.close()


async def one_round(options, setting):
    SETTING.write_text(setting)
    counts, over = collections.Counter(), asyncio.Event()
    with tempfile.TemporaryDirectory() as folder:
        proxy = Proxy(options.tsp, config_of(Path(folder)), Path(folder), TSP_SHARDS="2")
        try:
            await proxy.wait_until_ready()
            clients = [asyncio.create_task(client(proxy.http, counts, over)) for _ in range(CLIENTS)]
            await asyncio.sleep(LOAD_SECONDS)
            proxy.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(proxy.process.wait) == 0
            over.set()
            await asyncio.gather(*clients)
        finally:
            proxy.process.kill()
    return counts


async def run(options):
    sums = {"0": collections.Counter(), "1": collections.Counter()}
    for number in range(options.rounds):
        for setting in sorted(sums, reverse=number % 2 == 1):
            sums[setting] += await one_round(options, setting)
    for setting, counts in sums.items():
        print(f"tcp_migrate_req={setting}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--tsp", type=Path, default=ROOT / "target/release/tsp")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    if "TSP_OWN_NETWORK" not in os.environ:
        inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.argv]
        return subprocess.run(["unshare", "--net", *inside], env={**os.environ, "TSP_OWN_NETWORK": "1"}).returncode
    asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
