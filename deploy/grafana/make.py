#!/usr/bin/env python3
"""Makes the dashboards: `deploy/grafana/make.py` writes dashboards/*.json anew. A test compares.

What is on them stands below, a panel a line or a few; what Grafana wants around it is added here, once."""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24

# Names of the codes that an operator wants to read, in place of numbers.
CODES = {
    "100": "100 failure inside",
    "101": "101 wrong API key",
    "102": "102 bad request",
    "200": "200 no primary KMS config",
    "201": "201 unknown tenant",
    "202": "202 KMS config disabled",
    "203": "203 bad EDEK",
    "204": "204 KMS could not wrap",
    "205": "205 KMS could not unwrap",
    "206": "206 KMS credentials refused",
    "207": "207 key configuration or permission",
    "208": "208 KMS unreachable",
    "209": "209 KMS throttles",
    "210": "210 KMS account",
    "301": "301 event not taken",
    "401": "401 secret not created",
}


def target(number, query):
    expression, legend = query
    return {
        "datasource": SOURCE,
        "expr": expression,
        "legendFormat": legend,
        "refId": "ABCDEFGH"[number],
    }


def panel(title, queries, *, kind="timeseries", unit="short", about="", w=8, h=8, stack=False, codes=False, thresholds=None, maximum=None, minimum=0):
    defaults = {"unit": unit, "custom": {}, "min": minimum}
    if maximum is not None:
        defaults["max"] = maximum
    if thresholds:
        steps = [{"color": color, "value": value} for color, value in thresholds]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    options = {}
    if kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if stack else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        }
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif kind == "stat":
        options = {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    elif kind == "table":
        options = {"showHeader": True}
    made = {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [target(number, query) for number, query in enumerate(queries)],
        "gridPos": {"w": w, "h": h},
    }
    if kind == "table":
        for asked in made["targets"]:
            asked.update({"format": "table", "instant": True})
    if codes:
        made["transformations"] = [
            {"id": "renameByRegex", "options": {"regex": f"^{code} (.*)$", "renamePattern": f"{name}, $1"}}
            for code, name in CODES.items()
        ]
    return made


def stat(title, query, **more):
    return panel(title, [(query, "")], kind="stat", w=more.pop("w", 4), h=more.pop("h", 4), **more)


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": WIDTH, "h": 1}}


def laid_out(panels):
    x = y = tallest = 0
    for number, one in enumerate(panels, 1):
        place = one["gridPos"]
        if x + place["w"] > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        place.update({"x": x, "y": y})
        one["id"] = number
        x, tallest = x + place["w"], max(tallest, place["h"])
    return panels


def variable(name, label, query):
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard(uid, title, about, variables, panels):
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["tsp"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "TSP", "tags": ["tsp"], "asDropdown": True, "includeVars": False, "keepTime": True, "targetBlank": False, "icon": "external link", "url": "", "tooltip": ""}],
        "templating": {
            "list": [
                {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "refresh": 1, "current": {}},
                *variables,
            ]
        },
        "panels": laid_out(panels),
    }


I = 'instance=~"$instance"'  # noqa: E741 - it stands in every query
RATE = "[$__rate_interval]"


def rate(metric, by, more=""):
    return f"sum by ({by}) (rate({metric}{{{I}{more}}}{RATE}))"


def quantile(q, metric, by, more=""):
    by = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket{{{I}{more}}}{RATE})))"


REQUESTS = "tsp_request_duration_seconds"
KMS = "tsp_kms_request_duration_seconds"
HIT = ', result="hit"'
FAILED = ', tsp_status_code=~"100|20[4-9]|210|301|401"'

ALL = dashboard(
    "tsp-all-metrics",
    "TSP - All Metrics",
    "Everything that the proxies tell. The first row says whether all is well; the rows below say what is not.",
    [
        variable("instance", "Proxy", 'label_values(tsp_info, instance)'),
        variable("endpoint", "Endpoint", f"label_values({REQUESTS}_count, endpoint)"),
        variable("kms_type", "KMS", f"label_values({REQUESTS}_count, kms_type)"),
    ],
    [
        row("At a glance"),
        stat("Proxies ready", f"sum(tsp_ready{{{I}}})", thresholds=[("red", None), ("green", 1)]),
        stat("Requests", f"sum(rate({REQUESTS}_count{{{I}}}{RATE}))", unit="reqps"),
        stat("Failed", f"sum(rate({REQUESTS}_count{{{I}{FAILED}}}{RATE})) / sum(rate({REQUESTS}_count{{{I}}}{RATE})) or vector(0)", unit="percentunit", thresholds=[("green", None), ("orange", 0.001), ("red", 0.02)], about="The proxy's own failures and those of KMSs, not callers' mistakes"),
        stat("99 % take less than", quantile(0.99, REQUESTS, ""), unit="s"),
        stat("In flight", f"sum(tsp_requests_in_flight{{{I}}})", about="What the autoscaler looks at"),
        stat("Oldest configuration", f"max(time() - (tsp_kms_last_config_refresh_timestamp_seconds{{{I}}} > 0))", unit="s", thresholds=[("green", None), ("orange", 1800), ("red", 72000)], about="After 24 h a proxy stops serving"),
        row("Requests"),
        panel("Requests by endpoint", [(rate(f"{REQUESTS}_count", "endpoint", ', endpoint=~"$endpoint"'), "{{endpoint}}")], unit="reqps", stack=True),
        panel("Latency", [(quantile(q, REQUESTS, "", ', endpoint=~"$endpoint", kms_type=~"$kms_type"'), f"{q * 100:g} %") for q in (0.5, 0.95, 0.99, 0.999)], unit="s"),
        panel("99 % by endpoint", [(quantile(0.99, REQUESTS, "endpoint", ', endpoint=~"$endpoint", kms_type=~"$kms_type"'), "{{endpoint}}")], unit="s"),
        panel("Failed operations by code", [(rate(f"{REQUESTS}_count", "tsp_status_code, kms_type", ', tsp_status_code!="", endpoint=~"$endpoint", kms_type=~"$kms_type"'), "{{tsp_status_code}} {{kms_type}}")], unit="reqps", stack=True, codes=True, about="204 to 210 are the tenant's KMS, 200 to 203 the configuration or the caller, 100 the proxy. docs/faults.md says what to do for each"),
        panel("Answers by HTTP status", [(rate(f"{REQUESTS}_count", "http_code", ', endpoint=~"$endpoint"'), "{{http_code}}")], unit="reqps", stack=True),
        panel("In flight", [(f'sum by (endpoint) (tsp_requests_in_flight{{{I}, endpoint=~"$endpoint"}})', "{{endpoint}}")], stack=True),
        panel("Refused by a limit", [(rate("tsp_requests_refused_total", "limit"), "{{limit}}")], unit="reqps", about="inflight_max: the proxy is full. tenant_inflight_max: one tenant is. docs/api.md has the limits"),
        panel("Client libraries", [(rate("tsp_client_requests_total", "language, version"), "{{language}} {{version}}")], unit="reqps", stack=True),
        panel("Key operations", [(rate("tsp_key_operations_total", "operation"), "{{operation}}")], unit="ops", stack=True),
        row("KMSs"),
        panel("Calls", [(rate(f"{KMS}_count", "kms_type, kms_operation", ', kms_type=~"$kms_type"'), "{{kms_type}} {{kms_operation}}")], unit="reqps", stack=True),
        panel("Call latency, 50 and 99 %", [(quantile(q, KMS, "kms_type", ', kms_type=~"$kms_type"'), f"{{{{kms_type}}}} {q * 100:g} %") for q in (0.5, 0.99)], unit="s"),
        panel("Calls that failed", [(rate(f"{KMS}_count", "kms_type, http_code", ', http_code!="200", kms_type=~"$kms_type"'), "{{kms_type}} {{http_code}}")], unit="reqps", stack=True, about="`none`: no answer came. 429: throttled. `tsp doctor` finds the config and says whose mistake it is"),
        panel("Calls tried again", [(f"sum(rate(tsp_kms_retries_total{{{I}}}{RATE}))", "retries"), (rate("tsp_kms_connections_stale_total", "noticed"), "stale connection, noticed {{noticed}}")], unit="reqps"),
        panel("Connections and handshakes", [(f"sum(rate(tsp_kms_connections_opened_total{{{I}}}{RATE}))", "opened"), (rate("tsp_kms_tls_handshakes_total", "handshake"), "TLS {{handshake}}")], unit="cps"),
        panel("Calls saved by keys in memory", [(f"topk(10, {rate('tsp_kms_calls_saved_total', 'tenant')})", "{{tenant}}")], unit="reqps", stack=True),
        row("Keys in memory"),
        panel("Held", [(f"sum by (kind) (tsp_held_keys{{{I}}})", "{{kind}}")], stack=True),
        panel("Found in memory", [(f"{rate('tsp_held_key_uses_total', 'kind', HIT)} / {rate('tsp_held_key_uses_total', 'kind')}", "{{kind}}")], unit="percentunit", maximum=1),
        panel("Tenant secrets created", [(rate("tsp_tenant_secret_creations_total", "outcome"), "{{outcome}}"), (f"sum(rate(tsp_held_keys_refused_total{{{I}}}{RATE}))", "keys not kept")], unit="ops"),
        row("Configuration"),
        panel("Age", [(f"time() - (tsp_kms_last_config_refresh_timestamp_seconds{{{I}}} > 0)", "{{instance}}")], unit="s"),
        panel("Tenants, KMS configs, secrets", [(f"max by (instance) (tsp_config_{what}{{{I}}})", f"{{{{instance}}}} {what.replace('_', ' ')}") for what in ("tenants", "kms", "secrets", "left_out")]),
        panel("Failed looks", [(rate("tsp_config_refresh_failures_total", "instance"), "{{instance}} configuration"), (rate("tsp_tls_reload_failures_total", "instance"), "{{instance}} certificate"), (rate("tsp_api_keys_reload_failures_total", "instance"), "{{instance}} API keys"), (rate("tsp_service_account_reload_failures_total", "instance"), "{{instance}} account")], unit="ops"),
        panel("New states taken, 1 h", [(f"sum by (instance) (increase(tsp_{what}_reloads_total{{{I}}}[1h]))", f"{{{{instance}}}} {name}") for what, name in (("tls", "certificate"), ("api_keys", "API keys"), ("service_account", "account"))]),
        panel("Version", [(f"tsp_config_version{{{I}}}", "{{instance}}")], about="The lowest that any shard of a proxy works with; counts from 1 at each start"),
        row("Security events"),
        panel("Events", [(f"sum(rate(tsp_real_time_security_events_total{{{I}}}{RATE}))", "made"), (f"sum(rate(tsp_events_pushed_total{{{I}}}{RATE}))", "pushed"), (f"sum(rate(tsp_real_time_security_event_failures_total{{{I}}}{RATE}))", "lost")], unit="cps"),
        panel("Waiting for a logdriver", [(f"tsp_events_held{{{I}}}", "{{instance}}")]),
        panel("Lost since start", [(f"tsp_real_time_security_event_failures_total{{{I}}}", "{{instance}}")]),
        row("Connections and process"),
        panel("Client connections by shard", [(f"sum by (instance, shard) (tsp_connections{{{I}}})", "{{instance}} shard {{shard}}")], stack=True),
        panel("TLS handshakes, hand-overs", [(rate("tsp_tls_handshakes_total", "handshake"), "{{handshake}}"), (f"sum(rate(tsp_connections_handed_over_total{{{I}}}{RATE}))", "handed over")], unit="cps"),
        panel("Closed by a limit", [(rate("tsp_connections_closed_total", "limit"), "{{limit}}")], unit="cps"),
        panel("Should be nothing", [(rate("tsp_task_panics_total", "instance"), "{{instance}} panics"), (rate("tsp_log_lines_dropped_total", "instance"), "{{instance}} log lines dropped"), (rate("tsp_accept_backoffs_total", "instance"), "{{instance}} pauses in accepting")], unit="ops"),
        panel("Trace spans", [(rate("tsp_trace_spans_sent_total", "instance"), "{{instance}} sent"), (rate("tsp_trace_spans_dropped_total", "instance"), "{{instance}} dropped")], unit="cps", about="Nothing here without TSP_TRACE_ENDPOINT"),
        panel("API keys of the file, and API_KEY_2", [(rate("tsp_api_key_uses_total", "label"), "{{label}}")], unit="reqps", about="An old key that nobody uses any more can go"),
        panel("API key last used", [(f"min by (label) (time() - (tsp_api_key_last_used_timestamp_seconds{{{I}}} > 0))", "{{label}}")], unit="s", about="By any of these proxies, since their start"),
        panel("Certificate ends in", [(f"tsp_tls_certificate_expiry_timestamp_seconds{{{I}}} - time()", "{{instance}}")], unit="s"),
        panel("Versions", [(f"tsp_info{{{I}}}", "")], kind="table", w=24, about="io is uring or epoll, and io_reason says why"),
    ],
)

LOGDRIVER = dashboard(
    "tsp-logdriver",
    "TSP - Logdriver",
    "Security events on their way from the proxies to the tenants' log systems.",
    [variable("instance", "Logdriver", "label_values(logdriver_events_received_total, instance)")],
    [
        row("At a glance"),
        stat("Received", f"sum(rate(logdriver_events_received_total{{{I}}}{RATE}))", unit="cps"),
        stat("Delivered", f"sum(rate(logdriver_events_delivered_total{{{I}}}{RATE}))", unit="cps"),
        stat("On disk", f"sum(logdriver_buffered_events{{{I}}})"),
        stat("Oldest event", f"max(logdriver_oldest_event_age_seconds{{{I}}})", unit="s", thresholds=[("green", None), ("orange", 300), ("red", 3600)]),
        stat("Dead letters, 1 h", f"sum(increase(logdriver_events_dead_letter_total{{{I}}}[1h])) or vector(0)", thresholds=[("green", None), ("red", 1)]),
        stat("Taking events", f"sum(logdriver_store_writable{{{I}}})", thresholds=[("red", None), ("green", 1)], about="Logdrivers whose disk takes events"),
        row("Events"),
        panel("In and out", [(f"sum(rate(logdriver_events_{what}_total{{{I}}}{RATE}))", what) for what in ("received", "stored", "delivered")], unit="cps"),
        panel("Delivered by sink", [(rate("logdriver_events_delivered_total", "sink"), "{{sink}}")], unit="cps", stack=True),
        panel("Waiting on disk", [(f"logdriver_buffered_events{{{I}}}", "{{instance}}")]),
        panel("Failed deliveries", [(rate("logdriver_events_failed_total", "sink, reason"), "{{sink}} {{reason}}")], unit="cps", stack=True, about="They are tried again; what a sink refuses for good becomes a dead letter"),
        panel("Delivery time, 99 %", [(quantile(0.99, "logdriver_delivery_duration_seconds", "sink"), "{{sink}}")], unit="s"),
        panel("Age of the oldest event", [(f"logdriver_oldest_event_age_seconds{{{I}}}", "{{instance}}")], unit="s"),
        panel("Dead letters", [(rate("logdriver_events_dead_letter_total", "sink"), "{{sink}}")], unit="cps"),
        row("Proxies, disk and configuration"),
        panel("Should be nothing", [(rate("logdriver_events_corrupt_total", "instance"), "{{instance}} damaged on disk"), (rate("logdriver_events_malformed_total", "instance"), "{{instance}} is no event"), (rate("logdriver_proxy_events_lost_total", "instance"), "{{instance}} dropped by a proxy"), (rate("logdriver_proxies_died_total", "instance"), "{{instance}} proxies that died"), (rate("logdriver_dead_letters_expired_total", "instance"), "{{instance}} dead letters removed")], unit="cps"),
        panel("Numbers missing, events repeated", [(rate("logdriver_sequence_missing_total", "instance"), "{{instance}} missing"), (rate("logdriver_events_repeated_total", "instance"), "{{instance}} repeated")], unit="cps", about="Missing: another logdriver of that proxy has them, or they are lost. Repeated: dropped by their number"),
        panel("Proxies", [(f"logdriver_producers{{{I}}}", "{{instance}}")], about="Addresses that events are taken from"),
        panel("Disk and queue", [(rate("logdriver_store_refusals_total", "instance"), "{{instance}} the disk took nothing"), (rate("logdriver_stalls_total", "instance"), "{{instance}} messages waited")], unit="ops"),
        panel("Store", [(f"logdriver_store_bytes{{{I}}}", "{{instance}}")], unit="bytes"),
        panel("Age of the configuration", [(f"time() - (logdriver_last_config_refresh_timestamp_seconds{{{I}}} > 0)", "{{instance}}")], unit="s"),
        panel("Logging configurations", [(f"logdriver_configs{{{I}}}", "{{instance}} in force"), (f"logdriver_configs_left_out{{{I}}}", "{{instance}} left out"), (rate("logdriver_config_refresh_failures_total", "instance"), "{{instance}} failed looks a second")]),
    ],
)

BROKER = dashboard(
    "tsp-broker",
    "TSP - Broker",
    "The configuration broker: who asks, what is refused, how long it takes.",
    [variable("instance", "Broker", "label_values(broker_info, instance)")],
    [
        row("At a glance"),
        stat("Replicas", f"count(broker_info{{{I}}})"),
        stat("Requests", f"sum(rate(broker_request_duration_seconds_count{{{I}}}{RATE}))", unit="reqps"),
        stat("Server errors", f'sum(rate(broker_request_duration_seconds_count{{{I}, http_code=~"5.."}}{RATE})) or vector(0)', unit="reqps", thresholds=[("green", None), ("red", 0.001)]),
        stat("99 % take less than", quantile(0.99, "broker_request_duration_seconds", ""), unit="s"),
        row("Requests"),
        panel("By route", [(rate("broker_request_duration_seconds_count", "route"), "{{route}}")], unit="reqps", stack=True),
        panel("Answers", [(rate("broker_request_duration_seconds_count", "http_code"), "{{http_code}}")], unit="reqps", stack=True, about="304: a proxy that has the newest snapshot. 401: a token that is not taken"),
        panel("99 % by route", [(quantile(0.99, "broker_request_duration_seconds", "route"), "{{route}}")], unit="s"),
    ],
)


def main():
    FOLDER.mkdir(exist_ok=True)
    for made in (ALL, LOGDRIVER, BROKER):
        path = FOLDER / f"{made['uid']}.json"
        path.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
