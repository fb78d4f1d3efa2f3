"""What both stand-ins share: a child that dies with us, a wait for it, and the hand-over to the test.

The test starts one of the scripts beside this one and reads one JSON line from its standard output. It ends the
stand-in by closing the script's standard input; if the test process dies instead, the kernel kills script and child
(`setpriv --pdeathsig`), so nothing outlives a test run."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

# How long a stand-in may take to answer first; importing it is slow on a busy machine.
START_SECONDS_MAX = 120


def start(command, **options):
    """Starts `command` so that the kernel kills it when this process ends."""
    setpriv = shutil.which("setpriv") or sys.exit("setpriv (package util-linux) is missing")
    return subprocess.Popen(
        [setpriv, "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        **options,
    )


def wait_for(address, child):
    """Returns when `address` accepts connections; ends this process if the child ends first."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if child.poll() is not None:
            sys.exit(f"the stand-in ended at start, exit code {child.returncode}")
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"the stand-in does not answer at {address} after {START_SECONDS_MAX} s")


def serve_until_told(child, facts):
    """Prints `facts` as one JSON line, then waits for the end of standard input and stops the child."""
    print(json.dumps(facts), flush=True)
    sys.stdin.buffer.read()
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
