#!/usr/bin/env python3
"""Rotations under load: what a running proxy's clients present, and what it presents to them, is replaced again and again while they
wrap and unwrap over TLS. Not one request may fail, and each unwrap must give the key that the wrap gave.

    cargo build --release -p tsp
    loadtest/rotations.py                                  # a thousand rotations of each of the three
    loadtest/rotations.py --rotations 5                    # as ./x test does

`listed`       a key of TSP_API_KEYS_FILE: a second line, the clients move to it, the first line goes
`pair`         API_KEY and API_KEY_2 of TSP_SERVICE_ACCOUNT_FILE: the new one first and the old one second, then the new one alone
`certificate`  TSP_TLS_KEY and TSP_TLS_CERTIFICATE

A step is over when what is new is in force on every shard: it is tried on several connections. Then what is old must be refused.
Half of the clients keep their connection, the others open one for each request. Everything is on loopback and ends with this
script; it wants openssl. Exit code 1 if a request failed, or the proxy could not use what it was given."""

import argparse
import asyncio
import hashlib
import secrets
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from rolling import CALL_SECONDS_MAX, ROOT, Client, Proxy, config_of

# Connections that try what is new. Shards share connections evenly, so that these are at all shards there may be here.
PROBES = 8
# Between two requests of a client, so that clients and probes, which share one thread, leave each other time.
PAUSE_SECONDS = 0.005
SHARDS = 2
STEP_SECONDS_MAX = 60
NAME = "localhost"
KINDS = ("listed", "pair", "certificate")


def replace(path, text):
    """In one step, as a careful operator does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def new_key():
    return secrets.token_urlsafe(24)


def line_of(key):
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f'k{digest[:8]} = {{ sha256 = "{digest}" }}\n'


def certificate(folder, name, *options):
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "30"]
    files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
    subprocess.run([*command, *files, *options], check=True, stdin=subprocess.DEVNULL, capture_output=True)


class Site:
    """The proxy, and all that is rotated."""

    def __init__(self, program, folder):
        self.folder = folder
        self.keys, self.account = folder / "keys.toml", folder / "account.env"
        self.tls_key, self.tls_certificate = folder / "tls.key", folder / "tls.pem"
        # What clients present from the next request on, by the file that has it.
        self.current = {"listed": new_key(), "pair": new_key()}
        certificate(folder, "ca", "-subj", "/CN=ca")
        self.list_keys(self.current["listed"])
        self.pair_keys(self.current["pair"])
        self.renew_certificate()
        self.tls = ssl.create_default_context(cafile=folder / "ca.pem")
        self.proxy = Proxy(
            program, config_of(folder), folder,
            API_KEY="",
            TSP_SHARDS=str(SHARDS),
            TSP_API_KEYS_FILE=str(self.keys),
            TSP_SERVICE_ACCOUNT_FILE=str(self.account),
            TSP_TLS_KEY=str(self.tls_key),
            TSP_TLS_CERTIFICATE=str(self.tls_certificate),
        )

    def list_keys(self, *keys):
        replace(self.keys, "version = 1\n[keys]\n" + "".join(map(line_of, keys)))

    def pair_keys(self, key, second=None):
        replace(self.account, f"API_KEY={key}\n" + (f"API_KEY_2={second}\n" if second else ""))

    def renew_certificate(self):
        issuer = ["-CA", self.folder / "ca.pem", "-CAkey", self.folder / "ca.key"]
        certificate(self.folder, "leaf", "-subj", "/CN=tsp", "-addext", f"subjectAltName=DNS:{NAME}", *issuer)
        replace(self.tls_key, (self.folder / "leaf.key").read_text())
        replace(self.tls_certificate, (self.folder / "leaf.pem").read_text())

    def look(self):
        self.proxy.process.send_signal(signal.SIGHUP)

    def client(self):
        return Client(self.proxy.http, ssl=self.tls, server_hostname=NAME)

    def counted(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.proxy.health}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, site, clients):
        self.site, self.over, self.done, self.failures, self.longest = site, False, 0, [], 0.0
        self.presented = [None] * clients
        self.tasks = [asyncio.create_task(self.client(number)) for number in range(clients)]

    async def client(self, number):
        client, keeps = self.site.client(), number % 4 < 2
        who = {"tenantId": f"tenant-{number % 2}", "iclFields": {"requestingId": "rotations"}, "customFields": {}}
        wrapped = None
        while not self.over:
            key = self.presented[number] = self.site.current[("listed", "pair")[number % 2]]
            begun = time.monotonic()
            try:
                async with asyncio.timeout(CALL_SECONDS_MAX):
                    if wrapped is None:
                        wrapped = await client.post("wrap", who, key)
                    else:
                        opened = await client.post("unwrap", {**who, "encryptedDocumentKey": wrapped["edek"]}, key)
                        if opened["dek"] != wrapped["dek"]:
                            raise RuntimeError("another key than was wrapped")
                        wrapped = None
            except Exception as why:  # whatever it is, it is a failed request
                self.failures.append(f"{type(why).__name__}: {why}")
                await client.close()
                wrapped = None
            self.done += 1
            self.longest = max(self.longest, time.monotonic() - begun)
            if not keeps:
                await client.close()
            await asyncio.sleep(PAUSE_SECONDS)
        await client.close()

    async def nobody_presents(self, key):
        while key in self.presented:
            await asyncio.sleep(0)

    async def stop(self):
        self.over = True
        await asyncio.gather(*self.tasks)


class Probes:
    """Connections of their own, which tell what is in force."""

    def __init__(self, site):
        self.site, self.clients = site, [site.client() for _ in range(PROBES)]

    async def until(self, what):
        """Until `what` holds for every probe."""
        async with asyncio.timeout(STEP_SECONDS_MAX):
            for client in self.clients:
                while not await what(client):
                    await asyncio.sleep(0.001)

    async def key_is(self, key, accepted):
        async def asked(client):
            try:
                await client.post("wrap", {"tenantId": "tenant-0", "iclFields": {"requestingId": "probe"}, "customFields": {}}, key)
                return accepted
            except RuntimeError as why:
                assert str(why).startswith("401 "), why
                return not accepted
        await self.until(asked)

    async def certificate_is(self, der):
        async def shown(_):
            _, writer = await asyncio.open_connection("127.0.0.1", self.site.proxy.http, ssl=self.site.tls, server_hostname=NAME)
            try:
                return writer.get_extra_info("ssl_object").getpeercert(binary_form=True) == der
            finally:
                writer.close()
        await self.until(shown)


async def rotate(site, load, probes, kind):
    if kind == "certificate":
        site.renew_certificate()
        site.look()
        await probes.certificate_is(ssl.PEM_cert_to_DER_cert(site.tls_certificate.read_text()))
        return
    write = site.list_keys if kind == "listed" else site.pair_keys
    old, new = site.current[kind], new_key()
    write(new, old)
    site.look()
    await probes.key_is(new, accepted=True)
    site.current[kind] = new
    # What was begun with the old key is finished before it goes.
    await load.nobody_presents(old)
    write(new)
    site.look()
    await probes.key_is(old, accepted=False)


async def run(options, folder):
    site = Site(options.tsp, folder)
    failed = 0
    try:
        await site.proxy.wait_until_ready()
        load, probes = Load(site, options.clients), Probes(site)
        for kind in KINDS:
            begun, done, failures = time.monotonic(), load.done, len(load.failures)
            load.longest = 0.0
            for _ in range(options.rotations):
                await rotate(site, load, probes, kind)
            # A request of each client at least is after the last one.
            while load.done < done + 2 * options.clients:
                await asyncio.sleep(0.01)
            seconds, failures = time.monotonic() - begun, load.failures[failures:]
            print(f"{kind}: {options.rotations} rotations, {load.done - done} requests, {len(failures)} failed, {seconds:.0f} s, longest {load.longest * 1000:.0f} ms", flush=True)
            for why in sorted(set(failures))[:5]:
                print(f"  {why}")
        await load.stop()
        failed = len(load.failures)
        for name in ("tsp_api_keys_reload_failures_total", "tsp_service_account_reload_failures_total", "tsp_tls_reload_failures_total"):
            if site.counted(name):
                failed += 1
                print(f"  {name} is {site.counted(name):.0f}")
        taken = {name: site.counted(f"tsp_{name}_reloads_total") for name in ("api_keys", "tls")}
        print(f"{'not ok' if failed else 'ok'} {load.done} requests, {len(load.failures)} failed; taken: {taken['api_keys']:.0f} states of the keys, {taken['tls']:.0f} certificates")
    finally:
        site.proxy.process.kill()
        site.proxy.process.wait()
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--tsp", type=Path, default=ROOT / "target/release/tsp")
    parser.add_argument("--rotations", type=int, default=1000, help="of each kind")
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
