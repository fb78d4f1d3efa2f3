// The published Node.js SDK against a running proxy: one line per check, `ok NAME` or `not ok NAME: reason`.
//
//   NODE_PATH=…/node_modules node smoke.cjs BASE_URL API_KEY TENANT OTHER_TENANT UNKNOWN_TENANT
//
// The two tenants have different KMS configs. tests/integration/sdk.rs starts this and says which checks must pass.
"use strict";
const assert = require("node:assert");
const sdk = require("@ironcorelabs/tenant-security-nodejs");

const [baseUrl, apiKey, tenant, otherTenant, unknownTenant] = process.argv.slice(2);
const CHECK_MS_MAX = 20_000;
const client = new sdk.TenantSecurityClient(baseUrl, apiKey);
const who = (name) => new sdk.DocumentMetadata(name, "sdk-test", "label", undefined, undefined, "request-7", { origin: "test/ü" });
const text = (bytes) => bytes.toString("utf8");

const checks = {
    "a document comes back": async () => {
        const document = { title: Buffer.from("Grüße"), body: Buffer.alloc(70_000, "x"), empty: Buffer.alloc(0) };
        const encrypted = await client.encryptDocument(document, who(tenant));
        const { plaintextDocument } = await client.decryptDocument(encrypted, who(tenant));
        assert.deepStrictEqual(plaintextDocument, document);
    },
    "a further field is encrypted under the same EDEK": async () => {
        const first = await client.encryptDocument({ a: Buffer.from("1") }, who(tenant));
        const second = await client.encryptDocumentWithExistingKey({ plaintextDocument: { b: Buffer.from("2") }, edek: first.edek }, who(tenant));
        assert.strictEqual(second.edek, first.edek);
        const { plaintextDocument } = await client.decryptDocument(second, who(tenant));
        assert.strictEqual(text(plaintextDocument.b), "2");
    },
    "a batch of fifty comes back": async () => {
        const documents = Object.fromEntries(Array.from({ length: 50 }, (_, n) => [`id ${n}`, { f: Buffer.from(`${n}`) }]));
        const encrypted = await client.encryptDocumentBatch(documents, who(tenant));
        assert.deepStrictEqual([Object.keys(encrypted.successes).length, encrypted.hasFailures], [50, false]);
        const decrypted = await client.decryptDocumentBatch(encrypted.successes, who(tenant));
        assert.strictEqual(text(decrypted.successes["id 49"].plaintextDocument.f), "49");
        assert.strictEqual(Object.keys(decrypted.successes).length, 50);
    },
    "a bad EDEK in a batch fails alone, with 203": async () => {
        const { successes } = await client.encryptDocumentBatch({ good: { f: Buffer.from("g") } }, who(tenant));
        const batch = { ...successes, bad: { ...successes.good, edek: "ZWRlaw==" } };
        const { successes: read, failures } = await client.decryptDocumentBatch(batch, who(tenant));
        assert.deepStrictEqual([Object.keys(read), Object.keys(failures)], [["good"], ["bad"]]);
        assert.strictEqual(failures.bad.errorCode, 203);
    },
    "a rekeyed EDEK belongs to the other tenant": async () => {
        const encrypted = await client.encryptDocument({ f: Buffer.from("moves") }, who(tenant));
        const moved = { ...encrypted, edek: await client.rekeyEdek(encrypted.edek, otherTenant, who(tenant)) };
        assert.strictEqual(text((await client.decryptDocument(moved, who(otherTenant))).plaintextDocument.f), "moves");
        await assert.rejects(client.decryptDocument(moved, who(tenant)), { errorCode: 202 });
    },
    "a security event is taken, also for an unknown tenant": async () => {
        const metadata = (name) => new sdk.EventMetadata(name, "sdk-test", "label", Date.now());
        assert.strictEqual(await client.logSecurityEvent(sdk.UserEvent.LOGIN, metadata(tenant)), null);
        assert.strictEqual(await client.logSecurityEvent(sdk.AdminEvent.ADD, metadata(unknownTenant)), null);
    },
    "an unknown tenant is 201": () => assert.rejects(client.encryptDocument({ f: Buffer.from("x") }, who(unknownTenant)), { errorCode: 201, httpResponseCode: 422 }),
    "a wrong API key is 101": () =>
        assert.rejects(new sdk.TenantSecurityClient(baseUrl, "bm90IHRoZSBrZXkh").encryptDocument({}, who(tenant)), { errorCode: 101, httpResponseCode: 401 }),
    "a deterministic field comes back": async () => {
        const metadata = new sdk.FieldMetadata(tenant, "sdk-test");
        const field = { plaintextField: Buffer.from("123-45-6789"), secretPath: "customers", derivationPath: "ssn" };
        const encrypted = await client.deterministicClient.encryptField(field, metadata);
        assert.deepStrictEqual(await client.deterministicClient.encryptField(field, metadata), encrypted);
        assert.strictEqual(text((await client.deterministicClient.decryptField(encrypted, metadata)).plaintextField), "123-45-6789");
    },
};

(async () => {
    for (const [name, run] of Object.entries(checks)) {
        let timer;
        const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`no answer in ${CHECK_MS_MAX} ms`)), CHECK_MS_MAX)));
        try {
            await Promise.race([run(), late]);
            console.log(`ok ${name}`);
        } catch (error) {
            const code = error.errorCode === undefined ? "" : ` (TSP code ${error.errorCode}, HTTP ${error.httpResponseCode})`;
            console.log(`not ok ${name}: ${String(error.message).replaceAll("\n", " ")}${code}`);
        } finally {
            clearTimeout(timer);
        }
    }
    process.exit(0);
})();
