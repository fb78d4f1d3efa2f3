"""The machine: CPUs, processes that die with this one, what they cost, and what the kernel knows of them."""

import collections
import http.client
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

START_SECONDS_MAX = 60
# Longest wait for any answer; on loopback it takes milliseconds at most, unless something is broken.
ANSWER_SECONDS_MAX = 30


def cpus():
    """The CPU of what is measured, and that of everything else: generator and KMS."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise SystemExit("the stand needs two CPUs: one for what is measured, one for generator and KMS")
    return allowed[0], allowed[-1]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Child:
    """A process on the given CPUs that ends with this one, or when its `with` does.

    `ends_by` is the signal for that: KILL, unless the process has children of its own to end."""

    def __init__(self, command, on, ends_by=signal.SIGKILL, **options):
        self.ends_by = ends_by
        pinned = ["setpriv", "--pdeathsig", ends_by.name.removeprefix("SIG"), "taskset", "--cpu-list", ",".join(map(str, on))]
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **options}
        self.process = subprocess.Popen([*pinned, *map(str, command)], **options)

    @property
    def pid(self):
        return self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(self.ends_by)
        self.process.wait(ANSWER_SECONDS_MAX)


def wait_for(child, port, log):
    """Returns when something accepts connections on `port`."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if child.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"does not start: {log.read_text()[-2000:] if log.exists() else ''}") from None
            time.sleep(0.02)


def cpu_ns(pid):
    """CPU time of a process, user and system, in ns: of its threads that live now, as the scheduler accounts it."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            pass  # Ended meanwhile.
    return total


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def stolen_and_all():
    """Time that the hypervisor gave to others, and all time, in ticks over all CPUs since the start."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[7], sum(fields)


def describe():
    models = [line.split(": ", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    kernel = Path("/proc/sys/kernel/osrelease").read_text().strip()
    return f"{len(models)} × {models[0] if models else 'unknown CPU'}, Linux {kernel}"


def call(port, method, path, body=None, headers=None):
    """One request on a connection of its own: status and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAX)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers or {})
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text) if text else None
    except ValueError:
        return answer.status, text.decode(errors="replace")


def request(path, headers, body):
    """A whole POST request, as bytes."""
    body = json.dumps(body, separators=(",", ":")).encode()
    head = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", f"content-length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


Posted = collections.namedtuple("Posted", "seconds cpu_ns p99_ms")


def post(port, requests, wanted, connections, count, pid=None):
    """A closed loop for requests that are not of the proxy's API, which loadgen does not know: sends `count` of `requests` by turns over `connections` that stay open.
    Every answer must be 200 and hold the bytes `wanted`. Gives the time, and the CPU time of process `pid` meanwhile."""
    selector = selectors.DefaultSelector()
    issued, answered, latencies = 0, 0, []
    sockets = []

    def send(connection):
        nonlocal issued
        connection["sent"] = time.perf_counter()
        connection["answer"] = b""
        connection["socket"].sendall(requests[issued % len(requests)])
        issued += 1

    try:
        for _ in range(min(connections, count)):
            one = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS_MAX)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets.append(one)
            selector.register(one, selectors.EVENT_READ, {"socket": one})
        before, began = cpu_ns(pid) if pid else 0, time.perf_counter()
        for key in list(selector.get_map().values()):
            send(key.data)
        while answered < count:
            ready = selector.select(ANSWER_SECONDS_MAX)
            if not ready:
                raise RuntimeError("no answer")
            for key, _ in ready:
                connection = key.data
                data = connection["socket"].recv(1 << 18)
                if not data:
                    raise RuntimeError(f"the connection was closed: {connection['answer'][:300]}")
                answer = connection["answer"] = connection["answer"] + data
                if not is_whole(answer):
                    continue
                if not answer.startswith(b"HTTP/1.1 200") or wanted not in answer:
                    raise RuntimeError(f"a wrong answer: {answer[:500]}")
                latencies.append(time.perf_counter() - connection["sent"])
                answered += 1
                if issued < count:
                    send(connection)
        took = time.perf_counter() - began
        used = cpu_ns(pid) - before if pid else 0
    finally:
        selector.close()
        for one in sockets:
            one.close()
    latencies.sort()
    return Posted(took, used, latencies[len(latencies) * 99 // 100] * 1e3)


def is_whole(answer):
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return len(body) >= int(value)
        if name.lower() == b"transfer-encoding":
            return body.endswith(b"0\r\n\r\n")
    raise RuntimeError(f"an answer without a length: {head}")


def syscalls(pid, load):
    """System calls of a process, by name, while `load()` runs; None where strace is missing."""
    if not shutil.which("strace"):
        return None
    # Detached by SIGINT, it writes its table to standard error.
    command = ["setpriv", "--pdeathsig", "KILL", "strace", "-f", "-c", "-U", "calls,name", "-p", str(pid)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    first = process.stderr.readline()
    if "attached" not in first:
        process.kill()
        process.wait()
        return None
    load()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=ANSWER_SECONDS_MAX)[1]
    counts = {}
    for line in rest.splitlines():
        fields = line.split()
        if len(fields) == 2 and fields[0].isdigit() and fields[1] != "total":
            counts[fields[1]] = int(fields[0])
    return counts

