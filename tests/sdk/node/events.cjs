// What an application does that leaves security events, by the published Node.js SDK: for each tenant a wrap and a posted event.
//
//   NODE_PATH=…/node_modules node events.cjs BASE_URL API_KEY TIMESTAMP_MS TENANT…
"use strict";
const sdk = require("@ironcorelabs/tenant-security-nodejs");

const [baseUrl, apiKey, timestampMs, ...tenants] = process.argv.slice(2);
const client = new sdk.TenantSecurityClient(baseUrl, apiKey);
const rest = ["192.0.2.1", "object", "request-7", { origin: "test/ü" }];

(async () => {
    for (const tenant of tenants) {
        await client.encryptDocument({ f: Buffer.from("x") }, new sdk.DocumentMetadata(tenant, "node", "label", ...rest));
        await client.logSecurityEvent(sdk.UserEvent.LOGIN, new sdk.EventMetadata(tenant, "node", "label", Number(timestampMs), ...rest));
    }
    process.exit(0);
})();
