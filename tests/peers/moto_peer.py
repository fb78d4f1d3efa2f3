"""moto as AWS KMS with real AES-GCM, checking every signature and policy.

    moto_peer.py [--cert FILE --key FILE]

Makes the users and keys while moto still trusts everybody, then switches its authentication on. Prints one line:
{"url", "region", "keys": [id, id], "user": {…}, "denied": {…}}; `user` may use both keys, `denied` exists but may not."""

import argparse
import json
import os
import socket
import sys
import urllib.request
from pathlib import Path

import boto3
import common

REGION = "us-east-1"


def access_key(iam, name, effect):
    iam.create_user(UserName=name)
    document = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": effect, "Action": ["kms:Encrypt", "kms:Decrypt"], "Resource": "*"}],
    }
    iam.put_user_policy(UserName=name, PolicyName="kms", PolicyDocument=json.dumps(document))
    made = iam.create_access_key(UserName=name)["AccessKey"]
    return {"access_key_id": made["AccessKeyId"], "secret_access_key": made["SecretAccessKey"]}


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--cert")
    options.add_argument("--key")
    options = options.parse_args()
    # We bind and gunicorn inherits, so that no other process can take the port in between.
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    tls = ["--certfile", options.cert, "--keyfile", options.key] if options.cert else []
    command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "--worker-class", "gthread"]
    # One worker process: moto keeps its keys in memory.
    command += ["--workers", "1", "--threads", "8", "--keep-alive", "75", "--log-level", "warning", *tls, "moto_wsgi:app"]
    child = common.start(
        command, cwd=Path(__file__).parent, pass_fds=[listener.fileno()], env={**os.environ, "MOTO_ALLOW_NONEXISTENT_REGION": "true"}
    )
    listener.close()
    common.wait_for(address, child)
    url = f"{'https' if options.cert else 'http'}://127.0.0.1:{address[1]}"
    trust = {"verify": False} if options.cert else {}
    anybody = {"region_name": REGION, "aws_access_key_id": "AKIAANYBODY000000000", "aws_secret_access_key": "any", "endpoint_url": url, **trust}
    kms, iam = boto3.client("kms", **anybody), boto3.client("iam", **anybody)
    keys = [kms.create_key(Description=f"key {n}")["KeyMetadata"]["KeyId"] for n in range(2)]
    user, denied = access_key(iam, "proxy", "Allow"), access_key(iam, "denied", "Deny")
    # From the next request on, moto computes every signature again and asks the policies.
    switch = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}, method="POST")
    context = None
    if options.cert:
        import ssl

        context = ssl._create_unverified_context()
    urllib.request.urlopen(switch, context=context).close()
    common.serve_until_told(child, {"url": url, "region": REGION, "keys": keys, "user": user, "denied": denied})


main()
