"""ministack as AWS KMS with AWS's own error bodies, checking every signature.

Makes a user and three keys, one of them disabled. Prints one line:
{"url", "region", "keys": [id, id], "disabled_key": id, "user": {…}}."""

import os
import socket
import sys

import boto3
import common

REGION = "us-east-1"
# The root key skips ministack's signature check, so the proxy is given a user of its own instead.
ROOT = {"aws_access_key_id": "AKIAROOT000000000000", "aws_secret_access_key": "root-secret-of-the-stand-in"}


def main():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    child = common.start(
        [os.path.join(os.path.dirname(sys.executable), "ministack")],
        env={
            **os.environ,
            "AUTH": "true",
            "SERVICES": "kms,iam",
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(address[1]),
            "AWS_ACCESS_KEY_ID": ROOT["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": ROOT["aws_secret_access_key"],
        },
    )
    common.wait_for(address, child)
    url = f"http://127.0.0.1:{address[1]}"
    root = {"region_name": REGION, "endpoint_url": url, **ROOT}
    kms, iam = boto3.client("kms", **root), boto3.client("iam", **root)
    keys = [kms.create_key(Description=f"key {n}")["KeyMetadata"]["KeyId"] for n in range(3)]
    kms.disable_key(KeyId=keys[2])
    iam.create_user(UserName="proxy")
    policy = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]}'
    iam.put_user_policy(UserName="proxy", PolicyName="kms", PolicyDocument=policy)
    made = iam.create_access_key(UserName="proxy")["AccessKey"]
    user = {"access_key_id": made["AccessKeyId"], "secret_access_key": made["SecretAccessKey"]}
    common.serve_until_told(child, {"url": url, "region": REGION, "keys": keys[:2], "disabled_key": keys[2], "user": user})


main()
