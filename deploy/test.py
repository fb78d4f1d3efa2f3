#!/usr/bin/env python3
"""Checks what stands in this folder, with the tools that it is written for.

    target/deploy/bin/python deploy/test.py [check...]

Prints `ok WHAT`, `not ok WHAT: why` or `skipped WHAT: why` for each check, a line each; exit code 1 if something is not ok.
`./x setup` installs what it needs: schemas, Helm and podman-compose from deploy/requirements.txt, promtool and
systemd-analyze from Debian."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CHART = HERE / "helm/tsp"
# Where ./x setup puts programs: beside this Python, and below target.
PLACES = [str(Path(sys.executable).parent), str(ROOT / "target/prometheus/usr/bin")]

# The oldest version that the chart allows, and the newest that there are schemas for.
KUBERNETES = ["1.30", "1.34"]

# Sets of values, so that every branch of every template is rendered.
VALUES = {
    "defaults": {},
    "everything": {
        "proxy": {"tlsSecret": "tsp-tls", "seccomp": "Localhost", "env": {"TSP_IO": "uring"}, "podAnnotations": {"a": "b"},
                  "nodeSelector": {"pool": "tsp"}, "tolerations": [{"key": "tsp", "operator": "Exists"}]},
        "logdriver": {"enabled": True, "storageClassName": "fast", "env": {"RUST_LOG": "info"}},
        "broker": {"enabled": True, "storageClassName": "fast", "env": {"RUST_LOG": "info"}},
        "podMonitor": {"enabled": True},
        "networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"app": "yes"}}}]},
    },
    "replicated broker": {"broker": {"enabled": True, "replicas": 2}, "autoscaling": {"enabled": False}},
    "least": {"autoscaling": {"enabled": False}, "networkPolicy": {"enabled": False}},
}


class Skip(Exception):
    pass


def needs(program):
    found = shutil.which(program) or shutil.which(program, path=":".join(PLACES))
    if not found:
        raise Skip(f"{program} is not installed; ./x setup does that")
    return found


def module(name):
    if importlib.util.find_spec(name) is None:
        raise Skip(f"the Python package {name} is not installed; ./x setup does that")
    return importlib.import_module(name)


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, (done.stdout + done.stderr).strip()[-2000:]
    return done.stdout


def documents(text):
    return [one for one in module("yaml").safe_load_all(text) if one]


def rendered(values, name="tsp"):
    chart = module("helm_python.chart").Chart.load(CHART)
    texts = chart.render(values=values, name=name, namespace="default")
    return [(template, one) for template, text in sorted(texts.items()) for one in documents(text)]


def valid_objects(objects):
    kubernetes = module("kubernetes_validate")
    for place, one in objects:
        if "monitoring.coreos.com" in one["apiVersion"]:
            continue  # a definition of its own, whose schema is not among Kubernetes' own
        for version in KUBERNETES:
            try:
                kubernetes.validate(one, version, strict=True)
            except kubernetes.ValidationError as why:
                raise AssertionError(f"{place}: {one['kind']} at {version}: {why.message}") from why


def check_chart():
    report = module("helm_python.chart").lint(CHART)
    bad = [said for said in report["messages"] if said["severity"] > 1] + report["errors"]
    assert not bad, bad
    for name, values in VALUES.items():
        objects = rendered(values)
        assert len(objects) >= 4, f"{name}: only {len(objects)} objects"
        valid_objects(objects)


def check_chart_promises():
    """What docs/operations.md says about the chart."""
    for name, values in VALUES.items():
        for place, one in rendered(values):
            if one["kind"] not in ("Deployment", "StatefulSet"):
                continue
            pod = one["spec"]["template"]["spec"]
            where = f"{name}, {one['metadata']['name']}"
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"], where
            assert pod["securityContext"]["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost"), where
            assert pod["automountServiceAccountToken"] is False, where
            sidecars = pod.get("initContainers", [])
            assert all(sidecar["restartPolicy"] == "Always" for sidecar in sidecars), where
            pause = 0
            for container in [*pod["containers"], *sidecars]:
                assert container["resources"]["requests"] == container["resources"]["limits"], f"{where}: not Guaranteed"
                security = container["securityContext"]
                assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], where
                assert security["capabilities"]["drop"] == ["ALL"], where
                assert container["livenessProbe"] and container["readinessProbe"], where
                # A sidecar is stopped after the others have ended.
                if container not in sidecars:
                    pause = max(pause, container["lifecycle"]["preStop"]["sleep"]["seconds"])
            # The longest drain is 20 s and 6 s, of a logdriver 20 s.
            assert pod["terminationGracePeriodSeconds"] >= pause + 26 + 20 * len(sidecars), where
            proxy = pod["containers"][0]
            if proxy["name"] == "tsp":
                probes = (proxy["livenessProbe"]["httpGet"], proxy["readinessProbe"]["httpGet"])
                assert probes == ({"path": "/live", "port": "health"}, {"path": "/ready", "port": "health"}), where
                assert one["spec"]["template"]["metadata"]["annotations"]["prometheus.io/scrape"] == "true", where
                assert proxy["resources"]["limits"] == {"cpu": "2", "memory": "1256Mi"}, where
                # The autoscaler's business, where there is one.
                is_scaled = values.get("autoscaling", {}).get("enabled", True)
                assert ("replicas" in one["spec"]) is not is_scaled, where
                assert one["kind"] == "Deployment" or one["spec"]["podManagementPolicy"] == "Parallel", where


def check_kubernetes():
    objects = [(path.name, one) for path in sorted((HERE / "kubernetes").glob("*.yaml")) for one in documents(path.read_text())]
    valid_objects(objects)


def check_kubernetes_is_the_chart():
    """kubernetes/tsp.yaml is the chart with its defaults: `deploy/test.py --write` makes it anew."""
    assert (HERE / "kubernetes/tsp.yaml").read_text() == manifest(), "run target/deploy/bin/python deploy/test.py --write"


def manifest():
    chart = module("helm_python.chart").Chart.load(CHART)
    texts = chart.render(values={"broker": {"enabled": True}, "logdriver": {"enabled": True}}, name="tsp", namespace="default")
    head = "# The chart in ../helm/tsp with broker and logdriver, for who does without Helm. Made by deploy/test.py --write.\n"
    parts = [text.strip() for _, text in sorted(texts.items()) if text.strip()]
    lines = ("\n---\n".join(parts)).splitlines()
    kept = [line.rstrip() for line in lines if "app.kubernetes.io/managed-by" not in line]
    return head + "\n".join(kept) + "\n"


def check_compose():
    run(needs("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", HERE / "compose.yaml")
    compose = documents((HERE / "compose.yaml").read_text())[0]
    for name, service in compose["services"].items():
        build = service.get("build")
        if build:
            stage = f"AS {build['target']}\n"
            assert stage in (ROOT / "Dockerfile").read_text(), f"{name}: the Dockerfile has no stage {build['target']}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            there = (HERE / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert there, f"{name}: {source} is not there"
        for published in service.get("ports", []):
            assert published.startswith("127.0.0.1:"), f"{name} publishes {published} beyond this machine"


def check_systemd():
    analyze = needs("systemd-analyze")
    with tempfile.TemporaryDirectory() as folder:
        for unit in sorted((HERE / "systemd").glob("*.service")):
            # The program is not installed here, and no more than its place is asked for.
            text = unit.read_text()
            assert f"ExecStart=/usr/local/bin/{unit.stem}" in text, unit.name
            copy = Path(folder) / unit.name
            copy.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text))
            said = run(analyze, "verify", "--man=no", copy)
            assert not said.strip(), said
            # 0 is the best, 10 the worst.
            security = run(analyze, "security", "--offline=true", "--threshold=20", "--no-pager", copy)
            exposure = float(re.search(r"exposure level for \S+ ([0-9.]+)", security.replace(": ", " ")).group(1))
            assert exposure < 2.0, f"{unit.name}: exposure {exposure}"


def check_seccomp():
    profile = json.loads((HERE / "seccomp/io-uring.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args") for name in rule["names"]}
    ring = {"io_uring_setup", "io_uring_enter", "io_uring_register"}
    assert ring <= allowed, ring - allowed
    never = {"bpf", "mount", "umount2", "setns", "kexec_load", "init_module", "perf_event_open", "reboot", "chroot", "open_by_handle_at"}
    assert not never & allowed, never & allowed
    assert {"epoll_wait", "futex", "sched_setaffinity", "accept4"} <= allowed


def check_prometheus():
    promtool = needs("promtool")
    folder = HERE / "prometheus"
    run(promtool, "check", "config", folder / "prometheus.yml")
    run(promtool, "check", "rules", "--lint-fatal", folder / "tsp.rules.yml")
    run(promtool, "test", "rules", "tsp.rules.test.yml", cwd=folder)


def metrics_of_the_docs():
    """Names of metrics that the operator's pages have."""
    names = set()
    for page in ("operations.md", "broker.md", "logdriver.md"):
        path = ROOT / "docs" / page
        if path.exists():
            names |= set(re.findall(r"`((?:tsp|broker|logdriver)_[a-z0-9_]+)`", path.read_text()))
    return names


def used_metrics(expression):
    words = set(re.findall(r"\b((?:tsp|broker|logdriver)_[a-z0-9_]+)", expression))
    return {re.sub(r"_(bucket|count|sum)$", "", word) if "seconds" in word else word for word in words}


def check_metrics_are_documented():
    """Rules and dashboards ask for nothing that no program tells."""
    known = metrics_of_the_docs()
    asked = {}
    for group in documents((HERE / "prometheus/tsp.rules.yml").read_text())[0]["groups"]:
        for rule in group["rules"]:
            for name in used_metrics(rule["expr"]):
                asked.setdefault(name, rule.get("alert") or rule.get("record"))
    for path in sorted((HERE / "grafana/dashboards").glob("*.json")):
        for expression in expressions(json.loads(path.read_text())):
            for name in used_metrics(expression):
                asked.setdefault(name, path.name)
    if not (ROOT / "docs/logdriver.md").exists():
        known |= {name for name in asked if name.startswith("logdriver_")}
    unknown = {name: place for name, place in asked.items() if name not in known}
    assert not unknown, unknown


def expressions(board):
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


def check_dashboards():
    before = {path.name: path.read_text() for path in sorted((HERE / "grafana/dashboards").glob("*.json"))}
    spec = importlib.util.spec_from_file_location("make", HERE / "grafana/make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    with tempfile.TemporaryDirectory() as folder:
        make.FOLDER = Path(folder)
        make.main()
        after = {path.name: path.read_text() for path in sorted(Path(folder).glob("*.json"))}
    assert before == after, "run deploy/grafana/make.py"
    model = module("grafana_foundation_sdk.models.dashboard").Dashboard
    for name, text in before.items():
        board = model.from_json(json.loads(text))
        assert board.title and len(board.panels) > 5, name
        ids = [panel["id"] for panel in json.loads(text)["panels"]]
        assert len(set(ids)) == len(ids), f"{name}: two panels have one id"


CHECKS = {name.removeprefix("check_").replace("_", " "): check for name, check in list(globals().items()) if name.startswith("check_")}


def main():
    words = sys.argv[1:]
    if words == ["--write"]:
        (HERE / "kubernetes/tsp.yaml").write_text(manifest())
        return 0
    failed = 0
    for name, check in CHECKS.items():
        if words and name not in words:
            continue
        try:
            check()
            print(f"ok {name}")
        except Skip as why:
            print(f"skipped {name}: {why}")
        except Exception as why:  # whatever it is, the other checks go on
            failed = 1
            print(f"not ok {name}: {type(why).__name__}: {why}".replace("\n", "\n    "))
    return failed


sys.exit(main())
