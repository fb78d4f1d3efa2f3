"""moto as AWS KMS with real AES-GCM and as CloudWatch Logs, checking every signature and policy.

    moto_peer.py [--cert FILE --key FILE]

Makes the users and keys while moto still trusts everybody, then switches its authentication on. Prints one line:
{"url", "region", "keys": [id, id], "user": {…}, "denied": {…}, "logs": {"group", "role"}, "writer": {…}, "assumer": {…},
"reader": {…}}; `user` may use both keys, `denied` exists but may not; `writer` may write to the log group, `assumer` may
assume the role, which may, and `reader` may read it."""

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


USE_KEYS = ["kms:Encrypt", "kms:Decrypt"]
# What docs/logdriver-sinks.md asks for.
WRITE_LOGS = ["logs:PutLogEvents", "logs:CreateLogStream"]


def policy(effect, actions):
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": effect, "Action": actions, "Resource": "*"}]})


def access_key(iam, name, effect, actions):
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=policy(effect, actions))
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
    users = {
        "user": access_key(iam, "proxy", "Allow", USE_KEYS),
        "denied": access_key(iam, "denied", "Deny", USE_KEYS),
        "writer": access_key(iam, "writer", "Allow", WRITE_LOGS),
        "assumer": access_key(iam, "assumer", "Allow", ["sts:AssumeRole"]),
        "reader": access_key(iam, "reader", "Allow", ["logs:GetLogEvents"]),
    }
    group = "/tsp/events"
    boto3.client("logs", **anybody).create_log_group(logGroupName=group)
    trusted = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}
    role = iam.create_role(RoleName="logs", AssumeRolePolicyDocument=json.dumps(trusted))["Role"]["Arn"]
    iam.put_role_policy(RoleName="logs", PolicyName="own", PolicyDocument=policy("Allow", WRITE_LOGS))
    # From the next request on, moto computes every signature again and asks the policies.
    switch = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}, method="POST")
    context = None
    if options.cert:
        import ssl

        context = ssl._create_unverified_context()
    urllib.request.urlopen(switch, context=context).close()
    common.serve_until_told(child, {"url": url, "region": REGION, "keys": keys, "logs": {"group": group, "role": role}, **users})


main()
