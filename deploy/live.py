#!/usr/bin/env python3
"""Runs every query of the dashboards and every rule by a real Prometheus that scrapes running programs.

    deploy/live.py [--seconds 15] [--keep FOLDER] tsp=127.0.0.1:9000 [tsp-broker=…] [tsp-logdriver=…]

Starts Debian's Prometheus on a free loopback port, for the given time, and prints a line for each dashboard: how many queries it
has, which of them find nothing, and which of the program's metrics neither a query nor a rule asks for. A query that Prometheus refuses
is a failure, and so are half of a dashboard without data and a metric that nobody asks for. With --keep its data stay in FOLDER; deploy/picture.py draws from there."""

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRAPE_SECONDS = 1
BOARDS = {"tsp": "tsp-all-metrics", "tsp-broker": "tsp-broker", "tsp-logdriver": "tsp-logdriver"}


def filled(expression, scrape_seconds=SCRAPE_SECONDS):
    """As Grafana fills its variables in: every instance, the interval four scrapes long."""
    values = {"$__rate_interval": f"{4 * scrape_seconds + 1}s", "$__interval": "1s", "$instance": ".*", "$endpoint": ".*", "$kms_type": ".*"}
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Prometheus:
    """One that ends with its `with`."""

    def __init__(self, targets, data):
        place = str(HERE.parent / "target/prometheus/usr/bin")
        self.program = shutil.which("prometheus") or shutil.which("prometheus", path=place)
        if not self.program:
            sys.exit("skipped: prometheus is not installed; ./x setup does that")
        self.data = data
        self.url = f"http://127.0.0.1:{free_port()}"
        jobs = [{"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()]
        # JSON is YAML.
        config = {
            "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "1s"},
            "rule_files": [str(HERE / "prometheus/tsp.rules.yml")],
            "scrape_configs": jobs,
        }
        (data / "prometheus.yml").write_text(json.dumps(config))

    def __enter__(self):
        options = [f"--config.file={self.data}/prometheus.yml", f"--storage.tsdb.path={self.data}/data", f"--web.listen-address={self.url.removeprefix('http://')}", "--log.level=warn"]
        self.child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", self.program, *options])
        for _ in range(200):
            try:
                self.ask("/-/ready")
                return self
            except (urllib.error.URLError, ConnectionError):
                assert self.child.poll() is None, "prometheus ended"
                time.sleep(0.05)
        raise AssertionError("prometheus does not start")

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait()

    def ask(self, path, **arguments):
        query = "?" + urllib.parse.urlencode(arguments) if arguments else ""
        with urllib.request.urlopen(self.url + path + query, timeout=30) as answer:
            return answer.read()

    def found(self, expression):
        try:
            answer = self.ask("/api/v1/query", query=expression)
        except urllib.error.HTTPError as why:
            raise AssertionError(f"{expression}: {why.read().decode()}") from why
        return json.loads(answer)["data"]["result"]


def queries(board):
    for panel in json.loads((HERE / f"grafana/dashboards/{board}.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], filled(target["expr"])


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("target", nargs="+", help="JOB=ADDRESS")
    options = parser.parse_args()
    targets = {}
    for target in options.target:
        job, address = target.split("=", 1)
        targets.setdefault(job, []).append(address)
    with tempfile.TemporaryDirectory() as folder:
        data = options.keep or Path(folder)
        data.mkdir(exist_ok=True)
        with Prometheus(targets, data) as prometheus:
            # Rates want a few scrapes, and as many are waited for.
            scrapes = max(3, options.seconds // SCRAPE_SECONDS)
            wanted = " and ".join(f'on() min(count_over_time(up{{job="{job}"}}[1h])) >= {scrapes}' for job in targets)
            give_up = time.monotonic() + 60 + 2 * options.seconds
            while not prometheus.found(wanted.removeprefix("on() ")):
                assert time.monotonic() < give_up, "the targets are not scraped"
                time.sleep(0.2)
            failed = examine(prometheus, targets)
    return failed


def families(prometheus, job):
    """The metrics that the program has told, histograms by their own name."""
    found = prometheus.found(f'group by (__name__) ({{job="{job}", __name__!~"up|scrape_.*|tsp:.*|ALERTS.*"}})')
    return {re.sub("_(bucket|sum|count)$", "", one["metric"]["__name__"]) for one in found}


def examine(prometheus, targets):
    failed = 0
    rules = json.loads(prometheus.ask("/api/v1/rules"))["data"]["groups"]
    rules = [rule for group in rules for rule in group["rules"]]
    for job, addresses in targets.items():
        board = BOARDS[job]
        up = len(prometheus.found(f'up{{job="{job}"}} == 1')) == len(addresses)
        asked = list(queries(board))
        empty = [title for title, expression in asked if not prometheus.found(expression)]
        words = set(re.findall(r"\w+", " ".join([expression for _, expression in asked] + [rule["query"] for rule in rules])))
        unasked = {name for name in families(prometheus, job) if not words & {name, f"{name}_bucket", f"{name}_sum", f"{name}_count"}}
        well = up and len(empty) * 2 < len(asked) and not unasked
        failed |= not well
        print(f"{'ok' if well else 'not ok'} {board} at {', '.join(addresses)}: {len(asked)} queries, {len(asked) - len(empty)} find something")
        print(f"  nothing: {', '.join(sorted(set(empty))) or 'none'}")
        if unasked:
            print(f"  nobody asks for: {', '.join(sorted(unasked))}")
    broken = [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"]
    print(f"{'not ok' if broken else 'ok'} rules: {len(rules)} evaluated {broken or ''}")
    firing = [rule["name"] for rule in rules if rule.get("state") == "firing"]
    print(f"  firing: {', '.join(firing) or 'none'}")
    return failed or bool(broken)


if __name__ == "__main__":
    sys.exit(main())
