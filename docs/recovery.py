"""Reads what Tenant Security Proxies wrapped, without one. recovery.md tells the formats.

    python recovery.py KEYS deks TENANT < EDEKS          one EDEK per line in, one DEK per line out
    python recovery.py KEYS derive SECRETS PATH          the keys for one derivation path, of all secrets in a file
    python recovery.py KEYS field SECRETS PATH < FIELDS  one encrypted field per line in, one text per line out

KEYS is a JSON file: KMS config id to {"local": "<base64 of the key>"} or {"aws": {<arguments of boto3's client>}}.
Needs the package `cryptography`, and `boto3` for AWS. Everything is base64. It prints keys: mind where they go."""

import base64
import hashlib
import hmac
import json
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV


def fields(message):
    """The fields of a protobuf message: number to value, the last one of each. Enough for what is in an EDEK."""

    def varint(at):
        value = shift = 0
        while True:
            value |= (message[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if message[at - 1] < 0x80:
                return value, at

    found, at = {}, 0
    while at < len(message):
        tag, at = varint(at)
        value, at = varint(at)
        if tag & 7 == 2:  # bytes: what was read is their number
            value, at = message[at : at + value], at + value
        found[tag >> 3] = value
    return found


def kms_decrypt(config, blob, tenant):
    """What the KMS of a config wrapped. Other kinds: the same call with another library, see recovery.md."""
    if "local" in config:
        key, nonce, sealed = base64.b64decode(config["local"]), blob[4:16], blob[16:]
        assert blob[:4] == b"LKW1"
        try:
            return AESGCM(key).decrypt(nonce, sealed, tenant.encode())
        except InvalidTag:  # wrapped for no tenant
            return AESGCM(key).decrypt(nonce, sealed, None)
    import boto3

    return boto3.client("kms", **config["aws"]).decrypt(CiphertextBlob=blob)["Plaintext"]


def open_edek(keys, edek, tenant):
    """The DEK, or the tenant secret, in an EDEK."""
    entry = fields(fields(edek)[1])  # EncryptedDeks.encryptedDeks, then EncryptedDek
    if not entry.get(3):  # leasedKeyId
        return kms_decrypt(keys[str(entry[2])], entry[1], tenant)
    leased_key = open_edek(keys, entry[5], tenant)
    return AESGCM(leased_key).decrypt(entry[4], entry[1], None)


def secrets_of(path):
    head, _, lines = open(path, "rb").read().partition(b"\n")
    assert json.loads(head)["sha256"] == hashlib.sha256(lines).hexdigest(), "the file is damaged"
    return [json.loads(line) for line in lines.splitlines()]


def derived_keys(keys, path, derivation_path):
    for secret in secrets_of(path):
        opened = open_edek(keys, base64.b64decode(secret["edek"]), secret["tenant"])
        message = f"{secret['tenant']}-{derivation_path}".encode()
        yield secret["id"], hmac.new(opened, message, hashlib.sha512).digest()


def open_field(derived, field):
    """What the published SDKs make of a deterministic field: the secret's id, two zero bytes, AES-SIV."""
    key = derived[int.from_bytes(field[:4], "big")]
    return AESSIV(key).decrypt(field[6:], None)


def main(keys_path, what, *arguments):
    keys = json.load(open(keys_path))
    lines = lambda: (base64.b64decode(line) for line in sys.stdin)
    if what == "deks":
        for edek in lines():
            print(base64.b64encode(open_edek(keys, edek, arguments[0])).decode())
    elif what == "derive":
        for number, key in derived_keys(keys, *arguments):
            print(number, base64.b64encode(key).decode())
    elif what == "field":
        derived = dict(derived_keys(keys, *arguments))
        for field in lines():
            print(open_field(derived, field).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
