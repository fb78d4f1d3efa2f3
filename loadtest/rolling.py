#!/usr/bin/env python3
"""Rolling restarts under load: two proxies behind a local HAProxy, one after the other stopped by SIGTERM and started anew, again and
again, while clients wrap and unwrap. Not one request may fail, and each unwrap must give the key that the wrap gave.

    cargo build --release -p tsp
    loadtest/rolling.py                                    # ten times 100,000 requests
    loadtest/rolling.py --rounds 1 --requests 2000         # as ./x test does

Everything is on loopback, on free ports, and ends with this script. HAProxy (Debian's package) asks /ready ten times a second, and
sends again what met a connection that was just being closed, or a proxy that said 503 because it has just been started at the
same address and has no configuration yet: wrap and unwrap may be sent twice, as they leave nothing behind.
What a restart costs without that is shown with --no-resend. Exit code 1 if a request failed, or a proxy did not end with 0."""

import argparse
import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
API_KEY = "dGVzdC1hcGkta2V5"
READY_SECONDS_MAX = 60
CALL_SECONDS_MAX = 30

HAPROXY = """
global
    maxconn 4000
    nbthread 1
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
    option http-keep-alive
    http-reuse always
    retries 3
    option redispatch 1
    retry-on {retry}
frontend api
    bind 127.0.0.1:{port}
    default_backend proxies
backend proxies
    balance leastconn
    option httpchk GET /ready
    default-server check inter 100ms fall 1 rise 1
{servers}
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def child(command, **options):
    """A process that ends with this one."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, command)], stdin=subprocess.DEVNULL, **options)


class Proxy:
    def __init__(self, program, config, folder, number=1, **variables):
        self.program, self.number, self.restarts = program, number, 0
        self.http, self.health = free_ports(2)
        self.log = folder / f"tsp-{number}.log"
        self.variables = {
            "PATH": os.environ["PATH"],
            "API_KEY": API_KEY,
            "TSP_CONFIG_FILE": str(config),
            "TSP_IO": os.environ.get("TSP_IO", "auto"),
            "TSP_SHARDS": "1",
            "TSP_HTTP_BIND_ADDRESS": f"127.0.0.1:{self.http}",
            "TSP_HEALTH_BIND_ADDRESS": f"127.0.0.1:{self.health}",
            "TSP_ENABLE_LOGDRIVER_INTEGRATION": "false",
            **variables,
        }
        self.start()

    def start(self):
        with self.log.open("a") as log:
            self.process = child([self.program], env=self.variables, stdout=log, stderr=log)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/ready", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    async def wait_until_ready(self):
        give_up = time.monotonic() + READY_SECONDS_MAX
        while not await asyncio.to_thread(self.is_ready):
            assert self.process.poll() is None, f"proxy {self.number} ended: {self.log.read_text()[-500:]}"
            assert time.monotonic() < give_up, f"proxy {self.number} does not become ready"
            await asyncio.sleep(0.02)

    async def restart(self):
        self.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self.process.wait)
        assert code == 0, f"proxy {self.number} ended with {code}"
        self.start()
        await self.wait_until_ready()
        self.restarts += 1


class Client:
    """One connection that is kept, with a request at a time. A connection that the far end closed between two requests is opened
    anew, as every client library does."""

    def __init__(self, port, **connect):
        self.port, self.connect, self.writer = port, connect, None

    async def post(self, path, body, key=API_KEY):
        body = json.dumps(body).encode()
        head = f"POST /api/1/document/{path} HTTP/1.1\r\nHost: proxy\r\nAuthorization: cmk {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        if self.writer is None or self.reader.at_eof():
            await self.close()
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, **self.connect)
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        lines = answer.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        text = await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("connection", "").lower() == "close":
            await self.close()
        status = int(lines[0].split()[1])
        if status != 200:
            raise RuntimeError(f"{status} {text[:200]!r}")
        return json.loads(text)

    async def close(self):
        if self.writer:
            self.writer.close()
        self.writer = None


class Load:
    """So many clients until so many requests are answered."""

    def __init__(self, port, clients, requests):
        self.left, self.done, self.failures, self.longest = requests, 0, [], 0.0
        self.tasks = [asyncio.create_task(self.client(port, number)) for number in range(clients)]

    async def client(self, port, number):
        client = Client(port)
        who = {"tenantId": f"tenant-{number % 2}", "iclFields": {"requestingId": "rolling"}, "customFields": {}}
        wrapped = None
        while self.left > 0:
            self.left -= 1
            begun = time.monotonic()
            try:
                async with asyncio.timeout(CALL_SECONDS_MAX):
                    if wrapped is None:
                        wrapped = await client.post("wrap", who)
                    else:
                        opened = await client.post("unwrap", {**who, "encryptedDocumentKey": wrapped["edek"]})
                        if opened["dek"] != wrapped["dek"]:
                            raise RuntimeError("another key than was wrapped")
                        wrapped = None
            except Exception as why:  # whatever it is, it is a failed request
                self.failures.append(f"{type(why).__name__}: {why}")
                await client.close()
                wrapped = None
            self.done += 1
            self.longest = max(self.longest, time.monotonic() - begun)
        await client.close()

    def is_over(self):
        return all(task.done() for task in self.tasks)


def config_of(folder):
    keys = [base64.b64encode(os.urandom(32)).decode() for _ in range(2)]
    text = "version = 1\n"
    for number, key in enumerate(keys):
        text += f'[[kms]]\nid = {number + 1}\ntype = "LOCAL"\ncredentials = {{ key = "{key}" }}\n'
        text += f'[[tenant]]\nid = "tenant-{number}"\nassignments = [{{ kms = {number + 1}, primary = true }}]\n'
    path = folder / "tenants.toml"
    path.write_text(text)
    return path


async def one_round(port, proxies, options):
    load = Load(port, options.clients, options.requests)
    before = sum(proxy.restarts for proxy in proxies)
    begun = time.monotonic()
    while True:
        for proxy in proxies:
            await proxy.restart()
            # HAProxy must have seen it before the other one goes: three looks.
            await asyncio.sleep(0.3)
        if load.is_over():
            break
    await asyncio.gather(*load.tasks)
    return load, sum(proxy.restarts for proxy in proxies) - before, time.monotonic() - begun


async def run(options, folder):
    config = config_of(folder)
    proxies = [Proxy(options.tsp, config, folder, number) for number in (1, 2)]
    for proxy in proxies:
        await proxy.wait_until_ready()
    (port,) = free_ports(1)
    retry = "conn-failure" if options.no_resend else "conn-failure empty-response response-timeout 503"
    servers = "\n".join(f"    server proxy{one.number} 127.0.0.1:{one.http} port {one.health}" for one in proxies)
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, retry=retry, servers=servers))
    haproxy = child([options.haproxy, "-db", "-q", "-f", folder / "haproxy.cfg"])
    failed = total = 0
    try:
        client = Client(port)
        for _ in range(100):
            try:
                await client.post("wrap", {"tenantId": "tenant-0", "iclFields": {"requestingId": "rolling"}, "customFields": {}})
                break
            except (OSError, RuntimeError, asyncio.IncompleteReadError):
                await client.close()
                await asyncio.sleep(0.1)
        for number in range(1, options.rounds + 1):
            load, restarts, seconds = await one_round(port, proxies, options)
            failed, total = failed + len(load.failures), total + load.done
            print(f"round {number}: {load.done} requests, {len(load.failures)} failed, {restarts} restarts, {seconds:.0f} s, longest {load.longest * 1000:.0f} ms", flush=True)
            for why in sorted(set(load.failures))[:5]:
                print(f"  {why}")
    finally:
        haproxy.kill()
        haproxy.wait()
        for proxy in proxies:
            proxy.process.kill()
            proxy.process.wait()
    print(f"{'not ok' if failed else 'ok'} {total} requests, {failed} failed")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--tsp", type=Path, default=ROOT / "target/release/tsp")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=100_000, help="in each round")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--no-resend", action="store_true")
    options = parser.parse_args()
    options.haproxy = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
    if not options.haproxy:
        print("skipped rolling restarts: haproxy is not installed; ./x setup does that")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
