"""google-cloud-kms, by REST, against the simulated Cloud KMS and its token endpoint; see clients_common.py."""

import google_crc32c
from clients_common import DEK, Simulator, fails
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.api_core import exceptions
from google.cloud import kms
from google.oauth2 import service_account

sim = Simulator()
SCOPES = ["https://www.googleapis.com/auth/cloudkms"]


def crc(data):
    return google_crc32c.value(data)


def new_key():
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def client_for(known, self_signed, **changes):
    info = {
        "type": "service_account",
        "client_email": known["client_email"],
        "private_key": known["private_key"],
        "private_key_id": known["private_key_id"],
        "token_uri": "https://oauth2.googleapis.com/token",
        **changes,
    }
    credentials = service_account.Credentials.from_service_account_info(info)
    if self_signed:
        credentials = credentials.with_always_use_jwt_access(True)
    else:
        credentials = credentials.with_scopes(SCOPES).with_always_use_jwt_access(False)
    made = kms.KeyManagementServiceClient(credentials=credentials, transport="rest")
    if not self_signed:
        # The generated client switches to self-signed tokens by itself; this one is to ask the endpoint.
        made.transport._session.credentials = credentials
    return made


def encrypt(client, name, **more):
    return client.encrypt(request={"name": name, "plaintext": DEK, "plaintext_crc32c": crc(DEK), **more}, retry=None)


for known in sim.clients("GCP"):
    name = kms.KeyManagementServiceClient.crypto_key_path(
        known["projectId"], known["locationId"], known["keyRingId"], known["cryptoKeyId"]
    )
    aad = b"tenant-1"
    for self_signed in (True, False):
        client = client_for(known, self_signed)
        how = "self-signed token" if self_signed else "token endpoint"
        checks = {"additional_authenticated_data": aad, "additional_authenticated_data_crc32c": crc(aad)}
        sealed = encrypt(client, name, **checks)
        assert sealed.verified_plaintext_crc32c and sealed.verified_additional_authenticated_data_crc32c
        assert sealed.name == f"{name}/cryptoKeyVersions/1" and sealed.ciphertext_crc32c == crc(sealed.ciphertext)
        assert sealed.protection_level == kms.ProtectionLevel.SOFTWARE
        request = {"name": name, "ciphertext": sealed.ciphertext, "ciphertext_crc32c": crc(sealed.ciphertext), **checks}
        opened = client.decrypt(request=request)
        assert opened.plaintext == DEK and opened.plaintext_crc32c == crc(DEK) and opened.used_primary
        assert client.get_crypto_key(name=name).primary.state == kms.CryptoKeyVersion.CryptoKeyVersionState.ENABLED
        metrics = sim.order("GET", "/metrics")
        token_calls = metrics["tokens"].get(f"gcp:{known['client_email']}", 0)
        assert token_calls == (0 if self_signed else 1), metrics["tokens"]
        sim.nothing_refused(f"{how}: encrypt, decrypt, get key")

        request["additional_authenticated_data"] = b"tenant-2"
        request["additional_authenticated_data_crc32c"] = crc(b"tenant-2")
        fails(lambda: client.decrypt(request=request), exceptions.BadRequest, "Decryption failed")
        sim.order("POST", "/keys", {"provider": "gcp", "key": name, "action": "disable"})
        fails(lambda: encrypt(client, name), exceptions.BadRequest, "current state is: DISABLED")
        sim.order("POST", "/keys", {"provider": "gcp", "key": name, "action": "enable"})
        sim.order("POST", "/keys", {"provider": "gcp", "key": name, "action": "deny"})
        fails(lambda: encrypt(client, name), exceptions.Forbidden, "useToEncrypt")
        sim.order("POST", "/keys", {"provider": "gcp", "key": name, "action": "allow"})
        order = {"provider": "gcp", "account": known["projectId"]}
        sim.order("POST", "/accounts", {**order, "action": "close"})
        error = fails(lambda: encrypt(client, name), exceptions.Forbidden)
        assert error.reason == "BILLING_DISABLED", error
        sim.order("POST", "/accounts", {**order, "action": "reopen"})
        sim.order("POST", "/faults", {"target": {"provider": "gcp", "operation": "wrap"}, "kind": "throttle", "count": 1})
        fails(lambda: encrypt(client, name), exceptions.TooManyRequests)
        sim.nothing_refused(f"{how}: errors are Google's own exceptions")

        fails(lambda: encrypt(client, name, plaintext_crc32c=1), exceptions.BadRequest, "plaintext_crc32c")
        sim.refused_once(f"{how}: a wrong checksum is refused", "parameter")

        stranger = client_for(known, self_signed, private_key=new_key())
        kinds = exceptions.Unauthorized if self_signed else Exception
        error = fails(lambda: encrypt(stranger, name), kinds)
        assert self_signed or "Invalid JWT Signature" in str(error), error
        sim.refused_once(f"{how}: a wrong key is refused", "credential")

sim.end()
