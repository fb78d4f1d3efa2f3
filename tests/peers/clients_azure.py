"""azure-keyvault-keys and azure-identity against the simulated vaults and Entra; see clients_common.py."""

from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.identity import CertificateCredential, ClientSecretCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm
from clients_common import DEK, Simulator, fails
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
import datetime

sim = Simulator()
ONCE = {"retry_total": 0, "connection_verify": sim.ca}


def stranger_certificate():
    """A certificate that no application has registered, with its key, in PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger")])
    begin = datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=3650))
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.sign(key, hashes.SHA256()).public_bytes(pem) + secret


def credential_for(known, **changes):
    known = {**known, **changes}
    tenant, client = known["tenantGuid"], known["clientId"]
    if "clientCertificate" in known:
        pem = known["clientCertificate"].encode()
        return CertificateCredential(tenant, client, certificate_data=pem, **ONCE)
    return ClientSecretCredential(tenant, client, known["clientSecret"], **ONCE)


def remote(kid, credential):
    """A client that lets the vault do all the work, rather than fetch the public key and wrap by itself."""
    made = CryptographyClient(kid, credential, **ONCE)
    made._keys_get_forbidden = True
    return made


RSA = [KeyWrapAlgorithm.rsa_oaep_256, KeyWrapAlgorithm.rsa_oaep, KeyWrapAlgorithm.rsa1_5]


def keys_of(known):
    """A client's keys: whose, which, and for what algorithms."""
    yield known, known["keyName"], RSA
    if "managedhsm" in known["vaultBaseUrl"]:
        yield known, f"{known['keyName']}-aes", [KeyWrapAlgorithm.aes_256]


for known, name, algorithms in (key for known in sim.clients("AZURE") for key in keys_of(known)):
    vault, algorithm = known["vaultBaseUrl"], algorithms[0]
    is_rsa = algorithms is RSA
    how = "certificate" if "clientCertificate" in known else "secret"
    how = f"{name}, {how}"
    # MSAL sends a client assertion again for as long as it lives.
    sim.order("POST", "/replays", {"refuse": False})
    credential = credential_for(known)
    keys = KeyClient(vault, credential, **ONCE)
    key = keys.get_key(name)
    assert key.id.startswith(f"{vault}/keys/{name}/"), key.id
    crypto = remote(key.id, credential)
    for each in algorithms:
        wrapped = crypto.wrap_key(each, DEK)
        assert wrapped.key_id == key.id
        assert crypto.unwrap_key(each, wrapped.encrypted_key).key == DEK
    if is_rsa:
        # What the client wraps by itself, with the public key that the vault gave, the vault unwraps.
        local = CryptographyClient(key, credential, **ONCE).wrap_key(algorithm, DEK)
        assert crypto.unwrap_key(algorithm, local.encrypted_key).key == DEK
    # An empty version segment is the current one.
    current = remote(f"{vault}/keys/{name}", credential).wrap_key(algorithm, DEK)
    assert crypto.unwrap_key(algorithm, current.encrypted_key).key == DEK
    metrics = sim.order("GET", "/metrics")
    assert metrics["tokens"] == {f"azure:{known['clientId']}": 1}, metrics["tokens"]
    sim.nothing_refused(f"{how}: get key, wrap, unwrap")

    order = {"provider": "azure", "key": name}
    sim.order("POST", "/keys", {**order, "action": "rotate"})
    assert keys.get_key(name).id != key.id
    rotated = remote(f"{vault}/keys/{name}", credential).wrap_key(algorithm, DEK)
    fails(lambda: crypto.unwrap_key(algorithm, rotated.encrypted_key), HttpResponseError, "BadParameter")
    assert crypto.unwrap_key(algorithm, current.encrypted_key).key == DEK
    sim.order("POST", "/keys", {**order, "action": "disable"})
    fails(lambda: crypto.wrap_key(algorithm, DEK), HttpResponseError, "not allowed on a disabled key")
    sim.order("POST", "/keys", {**order, "action": "enable"})
    fails(lambda: remote(f"{vault}/keys/none", credential).wrap_key(algorithm, DEK), ResourceNotFoundError)
    sim.order("POST", "/keys", {**order, "action": "deny"})
    fails(lambda: crypto.wrap_key(algorithm, DEK), HttpResponseError, "does not have keys wrapKey permission")
    sim.order("POST", "/keys", {**order, "action": "allow"})
    fault = {"target": {"provider": "azure", "operation": "wrap"}, "kind": "throttle", "count": 1, "retry_after_s": 1}
    sim.order("POST", "/faults", fault)
    error = fails(lambda: crypto.wrap_key(algorithm, DEK), HttpResponseError)
    assert error.status_code == 429 and error.response.headers["Retry-After"] == "1"
    sim.nothing_refused(f"{how}: rotation, states, permission and throttling")

    sim.order("POST", "/claims", {"vault": vault.removeprefix("https://"), "claims": '{"access_token":{"acrs":{"value":"c1"}}}'})
    assert crypto.unwrap_key(algorithm, current.encrypted_key).key == DEK
    sim.nothing_refused(f"{how}: a challenge for claims is met")
    sim.order("POST", "/claims", {"vault": vault.removeprefix("https://"), "claims": None})

    if "clientCertificate" in known:
        wrong = credential_for(known, clientCertificate=stranger_certificate().decode())
    else:
        wrong = credential_for(known, clientSecret="Q~wrong+secret")
    fails(lambda: remote(key.id, wrong).wrap_key(algorithm, DEK), ClientAuthenticationError, "AADSTS")
    sim.refused_once(f"{how}: a wrong {how} is refused", "credential")

sim.end()
