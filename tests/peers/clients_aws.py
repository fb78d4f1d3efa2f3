"""boto3 against the simulated AWS KMS and STS; see clients_common.py."""

import base64

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from clients_common import DEK, Simulator, fails

sim = Simulator()
ONCE = Config(retries={"total_max_attempts": 1})


def session(client, **changes):
    known = {"aws_access_key_id": client["accessKeyId"], "aws_secret_access_key": client["secretAccessKey"]}
    return boto3.Session(region_name=client["region"], **{**known, **changes})


def code(error):
    return error.response["Error"]["Code"]


def try_kms(kms, key, what):
    context = {"tenant": "t-1", "purpose": "dek"}
    sealed = kms.encrypt(KeyId=key, Plaintext=DEK, EncryptionContext=context)
    blob = sealed["CiphertextBlob"]
    assert sealed["KeyId"].startswith("arn:aws:kms:") and len(blob) < 190
    assert kms.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == DEK
    assert kms.decrypt(KeyId=sealed["KeyId"], CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == DEK
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["Enabled"]
    data_key = kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert kms.decrypt(CiphertextBlob=data_key["CiphertextBlob"])["Plaintext"] == data_key["Plaintext"]
    moved = kms.re_encrypt(CiphertextBlob=blob, SourceEncryptionContext=context, DestinationKeyId=key)
    assert kms.decrypt(CiphertextBlob=moved["CiphertextBlob"])["Plaintext"] == DEK
    sim.nothing_refused(f"{what}: encrypt, decrypt, describe, data key, re-encrypt")
    tampered = blob[:-1] + bytes([blob[-1] ^ 1])
    for wrong in ({"CiphertextBlob": tampered, "EncryptionContext": context}, {"CiphertextBlob": blob}):
        error = fails(lambda: kms.decrypt(**wrong), kms.exceptions.InvalidCiphertextException)
        assert code(error) == "InvalidCiphertextException"
    return sealed["KeyId"]


for client in sim.clients("AWS"):
    keys = session(client)
    if "roleArn" in client:
        sts = keys.client("sts", config=ONCE)
        role = {"RoleArn": client["roleArn"], "RoleSessionName": "tsp", "DurationSeconds": 900}
        error = fails(lambda: sts.assume_role(**role), ClientError)
        assert code(error) == "AccessDenied", error
        made = sts.assume_role(**role, ExternalId=client["externalId"])["Credentials"]
        keys = session(
            client,
            aws_access_key_id=made["AccessKeyId"],
            aws_secret_access_key=made["SecretAccessKey"],
            aws_session_token=made["SessionToken"],
        )
        sim.nothing_refused("sts: assume role with an external id")
    kms = keys.client("kms", config=ONCE)
    arn = try_kms(kms, client["keyID"], "role" if "roleArn" in client else "user")

    sim.order("POST", "/keys", {"provider": "aws", "key": arn, "action": "disable"})
    fails(lambda: kms.encrypt(KeyId=arn, Plaintext=DEK), kms.exceptions.DisabledException)
    sim.order("POST", "/keys", {"provider": "aws", "key": arn, "action": "schedule_deletion"})
    fails(lambda: kms.encrypt(KeyId=arn, Plaintext=DEK), kms.exceptions.KMSInvalidStateException)
    sim.order("POST", "/keys", {"provider": "aws", "key": arn, "action": "enable"})
    fails(lambda: kms.encrypt(KeyId="alias/none", Plaintext=DEK), kms.exceptions.NotFoundException)
    sim.nothing_refused("states of keys are botocore's own exceptions")

    for style in ("namespaced", "plain"):
        sim.order("POST", "/aws-errors", {"style": style})
        fails(lambda: kms.encrypt(KeyId="alias/none", Plaintext=DEK), kms.exceptions.NotFoundException)
    sim.order("POST", "/faults", {"target": {"provider": "aws", "operation": "wrap"}, "kind": "throttle", "count": 1})
    error = fails(lambda: kms.encrypt(KeyId=arn, Plaintext=DEK), ClientError)
    assert code(error) == "ThrottlingException"
    patient = keys.client("kms", config=Config(retries={"total_max_attempts": 3, "mode": "standard"}))
    for kind in ("throttle", "reset_before_head", "html"):
        sim.order("POST", "/faults", {"target": {"provider": "aws", "operation": "wrap"}, "kind": kind, "count": 1})
        assert patient.encrypt(KeyId=arn, Plaintext=DEK)["KeyId"] == arn
    sim.nothing_refused("botocore retries throttling, resets and pages")

    secret = client["secretAccessKey"]
    wrong = session(client, aws_secret_access_key=base64.b64encode(bytes(30)).decode()).client("kms", config=ONCE)
    error = fails(lambda: wrong.encrypt(KeyId=arn, Plaintext=DEK), ClientError)
    assert code(error) == "InvalidSignatureException", error
    sim.refused_once("a wrong secret is refused", "credential", "InvalidSignatureException")
    wrong = session(client, aws_access_key_id="AKIASTRANGER00000000").client("kms", config=ONCE)
    error = fails(lambda: wrong.encrypt(KeyId=arn, Plaintext=DEK), ClientError)
    assert code(error) == "UnrecognizedClientException", error
    sim.refused_once("an unknown access key is refused", "credential", "UnrecognizedClientException")
    sim.order("POST", "/clock", {"skew_s": 360})
    error = fails(lambda: kms.encrypt(KeyId=arn, Plaintext=DEK), ClientError, "Signature expired: ")
    sim.refused_once("a signature six minutes old is refused", "clock", "InvalidSignatureException")
    sim.order("POST", "/clock", {})

sim.end()
