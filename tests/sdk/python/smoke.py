"""The published Python SDK against a running proxy: one line per check, `ok NAME` or `not ok NAME: reason`.

    python smoke.py BASE_URL API_KEY TENANT OTHER_TENANT UNKNOWN_TENANT

The two tenants have different KMS configs. tests/integration/sdk.rs starts this and says which checks must pass."""

import asyncio
import http.client
import os
import sys
from urllib.parse import urlsplit

import ironcore_alloy as alloy

BASE_URL, API_KEY, TENANT, OTHER_TENANT, UNKNOWN_TENANT = sys.argv[1:]
CHECK_SECONDS_MAX = 20


class OneConnection(alloy.HttpClient):
    """The SDK leaves HTTP to the application. This one keeps its connection, as a good application would."""

    def __init__(self):
        url = urlsplit(BASE_URL)
        self.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=CHECK_SECONDS_MAX)
        self.one_at_a_time = asyncio.Lock()

    def send(self, url, body, headers):
        sent = {"Content-Type": headers.content_type, "Authorization": headers.authorization}
        self.connection.request("POST", urlsplit(url).path, body.encode(), sent)
        answer = self.connection.getresponse()
        return alloy.AlloyHttpClientResponse(json_body=answer.read().decode(), status_code=answer.status)

    async def post_json(self, url, json_body, headers):
        async with self.one_at_a_time:
            try:
                return await asyncio.to_thread(self.send, url, json_body, headers)
            except (OSError, http.client.HTTPException) as error:
                self.connection.close()
                raise alloy.AlloyError.RequestError(str(error)) from error


def shield(api_key):
    return alloy.SaasShield(alloy.SaasShieldConfiguration(BASE_URL, api_key, 1.1, OneConnection(), allow_insecure_http=True))


async def refused(call, code, http_code):
    try:
        await call
    except alloy.AlloyError.TspError as error:
        assert (error.tsp_code, error.http_code) == (code, http_code), f"TSP code {error.tsp_code}, HTTP {error.http_code}"
    else:
        raise AssertionError(f"it succeeded; TSP code {code} was expected")


async def main():
    sdk = shield(API_KEY)
    standard, attached, deterministic, vector = sdk.standard(), sdk.standard_attached(), sdk.deterministic(), sdk.vector()
    who, other, unknown = (alloy.AlloyMetadata.new_simple(name) for name in (TENANT, OTHER_TENANT, UNKNOWN_TENANT))
    full = alloy.AlloyMetadata(TENANT, "sdk-test", "label", "f", "object", "request-7", {"origin": "test/ü"})
    document = {"title": "Grüße".encode(), "body": b"x" * 70_000, "empty": b""}

    async def a_document_comes_back():
        assert await standard.decrypt(await standard.encrypt(document, full), full) == document

    async def a_batch_of_fifty_comes_back():
        documents = {f"id {n}": {"f": str(n).encode()} for n in range(50)}
        encrypted = await standard.encrypt_batch(documents, who)
        assert not encrypted.failures, encrypted.failures
        assert (await standard.decrypt_batch(encrypted.successes, who)).successes == documents

    async def a_bad_edek_in_a_batch_fails_alone():
        good = await standard.encrypt(document, who)
        bad = alloy.EncryptedDocument(edek=b"edek", document=good.document)
        read = await standard.decrypt_batch({"good": good, "bad": bad}, who)
        assert read.successes == {"good": document} and list(read.failures) == ["bad"], read.failures

    async def a_rekeyed_edek_belongs_to_the_other_tenant():
        encrypted = await standard.encrypt(document, who)
        rekeyed = await standard.rekey_edeks({"e": encrypted.edek}, who, OTHER_TENANT)
        assert not rekeyed.failures, rekeyed.failures
        moved = alloy.EncryptedDocument(edek=rekeyed.successes["e"], document=encrypted.document)
        assert await standard.decrypt(moved, other) == document
        await refused(standard.decrypt(moved, who), 202, 422)

    async def attached_data_comes_back():
        assert await attached.decrypt(await attached.encrypt(b"attached", who), who) == b"attached"

    async def a_security_event_is_taken_also_for_an_unknown_tenant():
        await standard.log_security_event(alloy.SecurityEvent.USER(alloy.UserEvent.LOGIN), full, None)
        await standard.log_security_event(alloy.SecurityEvent.DATA(alloy.DataEvent.EXPORT), unknown, 1_700_000_000_000)

    async def an_unknown_tenant_is_201():
        await refused(standard.encrypt(document, unknown), 201, 422)

    async def a_wrong_api_key_is_101():
        await refused(shield("bm90IHRoZSBrZXkh").standard().encrypt(document, who), 101, 401)

    async def a_deterministic_field_comes_back():
        field = alloy.PlaintextField(plaintext_field=b"123-45-6789", secret_path="customers", derivation_path="ssn")
        encrypted = await deterministic.encrypt(field, who)
        assert (await deterministic.encrypt(field, who)).encrypted_field == encrypted.encrypted_field
        assert (await deterministic.decrypt(encrypted, who)).plaintext_field == b"123-45-6789"

    async def a_vector_comes_back():
        plain = alloy.PlaintextVector(plaintext_vector=[n / 8 - 1 for n in range(16)], secret_path="", derivation_path="")
        read = (await vector.decrypt(await vector.encrypt(plain, who), who)).plaintext_vector
        assert max(abs(a - b) for a, b in zip(read, plain.plaintext_vector)) < 1e-3

    for check in (
        a_document_comes_back,
        a_batch_of_fifty_comes_back,
        a_bad_edek_in_a_batch_fails_alone,
        a_rekeyed_edek_belongs_to_the_other_tenant,
        attached_data_comes_back,
        a_security_event_is_taken_also_for_an_unknown_tenant,
        an_unknown_tenant_is_201,
        a_wrong_api_key_is_101,
        a_deterministic_field_comes_back,
        a_vector_comes_back,
    ):
        name = check.__name__.replace("_", " ")
        try:
            await asyncio.wait_for(check(), CHECK_SECONDS_MAX)
            print(f"ok {name}", flush=True)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")
            print(f"not ok {name}: {reason}", flush=True)


asyncio.run(main())
sys.stdout.flush()
os._exit(0)  # the SDK's own threads would keep the interpreter
