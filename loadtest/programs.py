"""The programs that the scripts of this folder run: the proxy, the simulated KMSs, the load generator, the logdriver. Each is on free ports of loopback,
and ends with the script that started it."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

API_KEY = "dGVzdC1hcGkta2V5"
START_SECONDS_MAX = 30
ROOT = Path(__file__).resolve().parent.parent
PLACE = {"bin": ROOT / "target/release", "io": "epoll"}


def use(folder, io, *names):
    """Where the programs are, which are needed, and the proxy's I/O back end."""
    PLACE["bin"], PLACE["io"] = folder.resolve(), io
    missing = [name for name in names if not (PLACE["bin"] / name).exists()]
    if missing:
        packages = " ".join(f"-p {package}" for package in ("tsp", "tsp-loadtest", "tsp-logdriver"))
        sys.exit(f"{', '.join(missing)} missing in {PLACE['bin']}: run cargo build --release {packages}")


def call(address, method, path, body=None, headers=None):
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request(method, path, None if body is None else json.dumps(body), headers or {})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, f"{method} {path}: {answer.status} {text[:300]}"
    return text


def metric(address, name, **labels):
    """Sum over all series of that name with these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = call(address, "GET", "/metrics").decode().splitlines()
    lines = (line for line in lines if line.startswith((name + " ", name + "{")) and all(w in line for w in wanted))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


class Child:
    """A process that ends with this one, or when its `with` does."""

    def __init__(self, command, **options):
        self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, command)], **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


class Neighbour(Child):
    """Keeps a CPU from idling, with work that gives way to all other. CPUs of one machine slow each other down, so what a program costs on
    one depends on how much somebody else does on the next."""

    def __init__(self, cpu):
        loop = [sys.executable, "-c", "while True: pass"]
        super().__init__(["taskset", "--cpu-list", cpu, "chrt", "--idle", "0", *loop])


class Feeder(Child):
    """Pushes made-up events to one logdriver at a steady rate, as a proxy does that has nothing else to do. The connection is nng's: a greeting
    each way, then messages with their length in front."""

    PROGRAM = """
import json, socket, struct, sys, time
rate, interval = float(sys.argv[1]), 0.01
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
peer = server.accept()[0]
peer.sendall(b"\\0SP\\0\\0\\x50\\0\\0")
peer.recv(8, socket.MSG_WAITALL)
event = {"tenantId": "tenant-1", "timestamp": "2026-11-29T12:00:00.000Z", "iclFields": {"event": "DATA_ENCRYPT", "requestingId": "loadgen", "dataLabel": "PII",
    "requestId": "r-12345678", "tspRayId": "aGVsbG8sIHdvcmxk", "source": "tsp"}, "customFields": {}}
line = json.dumps(event, separators=(",", ":"))[:-1] + ',"sequence":{"instance":"00000000000000fe","shard":0,"number":%d}}'
number, begun = 0, time.perf_counter()
while True:
    upto = int((time.perf_counter() - begun) * rate)
    if upto > number:
        lines = ("\\n".join(line % at for at in range(number, upto))).encode()
        try:
            peer.sendall(struct.pack(">Q", len(lines) + 1) + b"\\1" + lines)
        except OSError:
            break  # The logdriver has ended.
        number = upto
    time.sleep(interval)
"""

    def __init__(self, rate, cpu):
        super().__init__(["taskset", "--cpu-list", cpu, sys.executable, "-c", self.PROGRAM, str(rate)], stdout=subprocess.PIPE)
        self.event = f"127.0.0.1:{int(self.process.stdout.readline())}"


class Kmssim(Child):
    """The simulated KMSs, with `tenant-1` to `tenant-4` at AWS, Google, Azure and Thales unless told otherwise."""

    def __init__(self, folder, *options, cpu=None):
        self.config = folder / "tenants.toml"
        files = ["--tsp-config", self.config, "--ca-out", folder / "ca.pem"]
        pinned = ["taskset", "--cpu-list", cpu] if cpu else []
        super().__init__([*pinned, PLACE["bin"] / "kmssim", *files, *options], stdout=subprocess.PIPE)
        self.control = json.loads(self.process.stdout.readline())["control_url"].removeprefix("http://")

    def order(self, method, path, body=None):
        return json.loads(call(self.control, method, path, body))

    def metrics(self):
        metrics = self.order("GET", "/metrics")
        refused = self.order("GET", "/requests/refused")
        assert not refused, f"kmssim refused: {refused[:3]}"
        return metrics


class Tsp(Child):
    """The proxy, on two shards unless told otherwise."""

    def __init__(self, folder, config, open_files=None, program=None, **variables):
        log = folder / "tsp.log"
        limit = ["prlimit", f"--nofile={open_files}:{open_files}"] if open_files else []
        listen = {f"TSP_{name}_BIND_ADDRESS": "127.0.0.1:0" for name in ("HTTP", "HEALTH", "EVENT")}
        environment = {"PATH": os.environ["PATH"], "API_KEY": API_KEY, "TSP_CONFIG_FILE": str(config), "TSP_SHARDS": "2", "TSP_IO": PLACE["io"]}
        environment |= {"TSP_ENABLE_LOGDRIVER_INTEGRATION": "false"} | listen | variables
        super().__init__([*limit, program or PLACE["bin"] / "tsp"], stdout=log.open("w"), env=environment)
        deadline = time.monotonic() + START_SECONDS_MAX
        while not (serving := [line for line in log.read_text().splitlines() if '"message":"serving"' in line]):
            assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        addresses = json.loads(serving[0])
        self.http, self.health, self.event = (addresses.get(name) for name in ("http", "health", "event"))

    def metric(self, name, **labels):
        return metric(self.http, name, **labels)

    def memory_mib(self, field):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(field + ":")[1].split()[0]) / 1024

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def load(self, folder, *options):
        """Runs loadgen, and gives its report; failed requests are figures here, not errors."""
        out = folder / "loadgen.json"
        command = [PLACE["bin"] / "loadgen", "run", *options, "--target", self.http, "--out", out]
        environment = {"PATH": os.environ["PATH"], "API_KEY": API_KEY}
        with Child(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as loadgen:
            errors = loadgen.process.communicate()[1]
        assert out.exists(), errors
        report = json.loads(out.read_text())
        out.unlink()
        return report


class Logdriver(Child):
    """A logdriver that takes the events of a proxy (`tcp` or `tcp+ack`) and has their delivery wait unless told otherwise."""

    def __init__(self, folder, tsp, scheme, cpu=None, **variables):
        log = folder / "logdriver.log"
        store = folder / "logdriver"
        environment = {"PATH": os.environ["PATH"], "LOGDRIVER_STORE": str(store), "LOGDRIVER_EVENT_PRODUCER_URL": f"{scheme}://{tsp.event}"}
        environment |= {"TSP_CONFIG_FILE": str(folder / "tenants.toml"), "LOGDRIVER_HEALTH_BIND_ADDRESS": "127.0.0.1:0"}
        environment |= {"LOGDRIVER_UNKNOWN_TENANT": "hold", "LOGDRIVER_STORE_FREE_MIN": "0"} | variables
        pinned = ["taskset", "--cpu-list", cpu] if cpu else []
        super().__init__([*pinned, PLACE["bin"] / "tsp-logdriver"], stdout=log.open("w"), env=environment)
        deadline = time.monotonic() + START_SECONDS_MAX
        while not (serving := [line for line in log.read_text().splitlines() if '"health"' in line]):
            assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        self.health = json.loads(serving[0])["health"]
        self.store = store

    def __exit__(self, *end):
        super().__exit__(*end)
        shutil.rmtree(self.store)

    def metric(self, name, **labels):
        return metric(self.health, name, **labels)


def cpu_seconds(process):
    """CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
