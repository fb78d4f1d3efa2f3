"""Draws what loadtest/flame.sh asks for: starts the KMS with fixed answers, the proxy and the load, and has perf look at the shard."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contestants
import run

# Scenario of run.py, what to ask for, requests, and the picture's title.
PICTURES = (
    ("unwrap", "unwrap", 250_000, "leased unwrap"),
    ("kms-tls", "wrap", 80_000, "wrap through the KMS, TLS"),
    ("batch", "batch-unwrap", 25_000, "batch of 100 leased unwraps"),
)
# Samples a second, and bytes of stack with each.
HERTZ, STACK_BYTES = 999, 16_384


def draw(stand, tsp, inferno, out, scenario, asked, count, title):
    data = stand.folder / "perf.data"
    with tsp.start(stand, [stand.own], scenario) as server:
        tenant = contestants.TENANT_OF[scenario]

        def load(requests):
            stand.loadgen(server, asked, tenant, run.CONNECTIONS, "--requests", requests, "--batch-items", run.BATCH)

        load(count // 10)
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(HERTZ), "--call-graph", f"dwarf,{STACK_BYTES}", "-o", data, "-p", str(server.pid)]
        perf = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        load(count)
        perf.send_signal(2)
        perf.wait(timeout=60)
    script = subprocess.run(["perf", "script", "-i", data, "--comm", "tsp-shard-0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    folded = subprocess.run([inferno / "inferno-collapse-perf"], input=script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    options = ["--title", f"{title}, one shard on epoll", "--minwidth", "0.3", "--hash", "--countname", "samples"]
    picture = subprocess.run([inferno / "inferno-flamegraph", *options], input=folded, stdout=subprocess.PIPE, check=True).stdout
    (out / f"{scenario}.svg").write_bytes(picture)
    print(f"{out / f'{scenario}.svg'}: {len(picture) // 1024} KiB")


def main():
    binaries, inferno, out = (Path(word).resolve() for word in sys.argv[1:4])
    with tempfile.TemporaryDirectory() as folder:
        stand = run.Stand(binaries, Path(folder), 1)
        try:
            for picture in PICTURES:
                draw(stand, contestants.Tsp(binaries, "epoll", 1), inferno, out, *picture)
        finally:
            stand.kms.stop()


if __name__ == "__main__":
    main()
