"""What an application does that leaves security events, by the published Python SDK: for each tenant a wrap and a posted event.

    python events.py BASE_URL API_KEY TIMESTAMP_MS TENANT…"""

import asyncio
import os
import sys
import urllib.request

import ironcore_alloy as alloy

BASE_URL, API_KEY, TIMESTAMP_MS, *TENANTS = sys.argv[1:]


class Http(alloy.HttpClient):
    """The SDK leaves HTTP to the application."""

    async def post_json(self, url, json_body, headers):
        sent = {"Content-Type": headers.content_type, "Authorization": headers.authorization}
        request = urllib.request.Request(url, json_body.encode(), sent)
        with urllib.request.urlopen(request) as answer:
            return alloy.AlloyHttpClientResponse(json_body=answer.read().decode(), status_code=answer.status)


async def main():
    config = alloy.SaasShieldConfiguration(BASE_URL, API_KEY, 1.1, Http(), allow_insecure_http=True)
    standard = alloy.SaasShield(config).standard()
    for tenant in TENANTS:
        who = alloy.AlloyMetadata(tenant, "python", "label", "192.0.2.1", "object", "request-7", {"origin": "test/ü"})
        await standard.encrypt({"f": b"x"}, who)
        await standard.log_security_event(alloy.SecurityEvent.USER(alloy.UserEvent.LOGIN), who, int(TIMESTAMP_MS))


asyncio.run(main())
sys.stdout.flush()
os._exit(0)  # the SDK's own threads would keep the interpreter
