"""What the scripts share that let the vendors' own clients loose on a running `kmssim`.

    clients_aws.py --control http://localhost:PORT --address 127.0.0.1:PORT --ca FILE

Each script encrypts and decrypts as that vendor's documentation tells, under the public host names: names are looked up
here, so that they lead to the simulator, and its authority is the only one that is trusted. It then shows that a wrong key
is refused, prints one JSON line with what it did, and ends with status 0 if all was as expected."""

import argparse
import json
import os
import socket
import urllib.request

DEK = bytes(range(32))


class Simulator:
    """A running simulator, its control API and its sample world's clients."""

    def __init__(self):
        options = argparse.ArgumentParser()
        options.add_argument("--control", required=True, help="URL of the control API")
        options.add_argument("--address", required=True, help="IP address and port of the TLS port")
        options.add_argument("--ca", required=True, help="file of the authority to trust")
        options = options.parse_args()
        self.control, self.ca = options.control, options.ca
        host, port = options.address.rsplit(":", 1)
        lead_everything_to(host, int(port), spared=self.control)
        for name in ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"):
            os.environ[name] = self.ca
        self.done = []
        self.order("POST", "/reset")

    def order(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.control + path, data=data, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def clients(self, kind):
        """The sample world's keys and credentials of one kind, such as "AWS"."""
        return [client["key"] for client in self.order("GET", "/clients") if client["key"]["type"] == kind]

    def refused(self):
        """What the simulator refused since the last call, for being wrong in itself."""
        found = self.order("GET", "/requests/refused")
        self.order("DELETE", "/requests")
        return found

    def nothing_refused(self, what):
        """Asserts that the simulator was content with all requests so far."""
        refused = self.refused()
        assert not refused, f"{what}: {json.dumps(refused, indent=1)}"
        self.done.append(what)

    def refused_once(self, what, why, code=None):
        """Asserts that it refused, and for that."""
        refused = self.refused()
        assert refused and all(r["why"] == why and code in (None, r["code"]) for r in refused), f"{what}: {refused}"
        self.done.append(what)

    def end(self):
        print(json.dumps({"done": self.done}))


def lead_everything_to(host, port, spared):
    """Makes every name lead to one address, but for the control API's."""
    look_up = socket.getaddrinfo

    def led(name, service, *arguments, **options):
        if str(service) == spared.rsplit(":", 1)[1]:
            return look_up(name, service, *arguments, **options)
        return look_up(host, port, *arguments, **options)

    socket.getaddrinfo = led


def fails(call, kind, contains=""):
    """Asserts that a call raises `kind`, and gives the error."""
    try:
        call()
    except kind as error:
        assert contains in str(error), error
        return error
    raise AssertionError(f"it did not fail with {kind.__name__}")
