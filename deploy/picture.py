#!/usr/bin/env python3
"""Draws a dashboard from what deploy/live.py --keep FOLDER has recorded: every panel's own queries, over that time, by a real Prometheus.

    loadtest/misbehave.py dashboard --keep FOLDER
    deploy/picture.py --sections 3 FOLDER docs/load/dashboard.png

It stands in for Grafana where that cannot be had: places, queries, units and legends are the dashboard's, the drawing is not
Grafana's. Wants matplotlib (pip install matplotlib) beside Debian's Prometheus."""

import argparse
import datetime
import json
import math
import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of what draws
from matplotlib.dates import DateFormatter  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

from live import HERE, SCRAPE_SECONDS, Prometheus, filled  # noqa: E402

STEP_SECONDS = 2
INCH_PER_COLUMN, INCH_PER_ROW = 0.62, 0.27
LEGENDS_MAX = 6
UNITS = {"reqps": " req/s", "ops": " ops/s", "cps": " /s", "percentunit": " %", "bytes": " B", "short": ""}


def shown(value, unit):
    if value is None or math.isnan(value):
        return "no data"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for limit, factor, name in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (math.inf, 1 / 60, "min")):
            if abs(value) < limit:
                return f"{value * factor:.3g} {name}"
    for limit, factor, name in ((1e3, 1, ""), (1e6, 1e-3, "k"), (math.inf, 1e-6, "M")):
        if abs(value) < limit:
            return f"{value * factor:.3g}{name}{UNITS.get(unit, '')}"


def legend(pattern, labels):
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), pattern)


def renamed(name, panel):
    for step in panel.get("transformations", []):
        name = re.sub(step["options"]["regex"], step["options"]["renamePattern"].replace("$1", r"\1"), name)
    return name


def series(prometheus, panel, begin, end, scrape):
    for target in panel["targets"]:
        answer = prometheus.ask("/api/v1/query_range", query=filled(target["expr"], scrape), start=begin, end=end, step=STEP_SECONDS)
        for one in json.loads(answer)["data"]["result"]:
            points = [(float(at), float(value)) for at, value in one["values"]]
            name = renamed(legend(target["legendFormat"], one["metric"]), panel)
            yield name, [datetime.datetime.fromtimestamp(at) for at, _ in points], [value for _, value in points]


def draw(prometheus, panel, axes, begin, end, scrape):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.set_title(panel["title"], loc="left", fontsize=7, fontweight="bold")
    found = [one for one in series(prometheus, panel, begin, end, scrape) if one[1]]
    axes.tick_params(labelsize=5, length=2)
    if panel["type"] == "stat":
        value = found[0][2][-1] if found else None
        axes.axis("off")
        axes.text(0.5, 0.4, shown(value, unit), ha="center", va="center", fontsize=16, color="#2a7f3f")
        return
    if panel["type"] == "table":
        axes.axis("off")
        rows = {tuple(sorted(one["metric"].items())) for target in panel["targets"] for one in prometheus.found(f"last_over_time({filled(target['expr'])}[1h])")}
        text = "\n".join("  ".join(f"{name}={value}" for name, value in row if name not in ("__name__", "job")) for row in rows)
        axes.text(0, 0.9, text, va="top", fontsize=6, family="monospace")
        return
    found.sort(key=lambda one: -max((value for value in one[2] if not math.isnan(value)), default=0))
    if panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal" and found:
        times = sorted({at for _, ats, _ in found for at in ats})
        known = [dict(zip(ats, values)) for _, ats, values in found]
        axes.stackplot(times, [[0 if math.isnan(one.get(at, 0)) else one.get(at, 0) for at in times] for one in known], labels=[name for name, _, _ in found], alpha=0.6)
    else:
        for name, times, values in found:
            axes.plot(times, values, linewidth=0.9, label=name)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.set_xlim(datetime.datetime.fromtimestamp(begin), datetime.datetime.fromtimestamp(end))
    axes.set_ylim(bottom=0)
    axes.grid(linewidth=0.2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if any(labels):
        axes.legend(handles[:LEGENDS_MAX], labels[:LEGENDS_MAX], fontsize=4.5, loc="upper left", framealpha=0.6)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--board", default="tsp-all-metrics")
    parser.add_argument("--dpi", type=int, default=90)
    parser.add_argument("--sections", type=int, help="so many from the top (default: all)")
    parser.add_argument("--scrape", type=int, default=SCRAPE_SECONDS, help="seconds between two scrapes, where somebody else recorded them")
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    board = json.loads((HERE / f"grafana/dashboards/{options.board}.json").read_text())
    with Prometheus({}, options.folder) as prometheus:
        seen = json.loads(prometheus.ask("/api/v1/query", query="min(min_over_time(timestamp(up)[1h:1s]))"))["data"]["result"]
        last = json.loads(prometheus.ask("/api/v1/query", query="max(max_over_time(timestamp(up)[1h:1s]))"))["data"]["result"]
        begin, end = float(seen[0]["value"][1]), float(last[0]["value"][1])
        panels = board["panels"]
        heads = [number for number, one in enumerate(panels) if one["type"] == "row"]
        if options.sections and options.sections < len(heads):
            panels = panels[: heads[options.sections]]
        rows = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in panels)
        figure = plt.figure(figsize=(24 * INCH_PER_COLUMN, rows * INCH_PER_ROW))
        for panel in panels:
            place = panel["gridPos"]
            left, bottom = place["x"] / 24, 1 - (place["y"] + place["h"]) / rows
            if panel["type"] == "row":
                figure.text(0.01, bottom + 0.2 / rows, panel["title"], fontsize=9, fontweight="bold", color="#555555")
                continue
            inside = (left + 0.032, bottom + 0.9 / rows, place["w"] / 24 - 0.04, (place["h"] - 2.2) / rows)
            draw(prometheus, panel, figure.add_axes(inside), begin, end, options.scrape)
        figure.savefig(options.picture, dpi=options.dpi)
    print(options.picture, options.picture.stat().st_size, "bytes")


main()
