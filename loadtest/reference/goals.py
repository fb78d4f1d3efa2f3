"""The goals, and what was measured: tables in Markdown.

A figure is the median over the rounds with its quartiles. A ratio is taken within each round first. The proxy is its epoll back end on one
shard, unless a row says otherwise."""

import tomllib
from pathlib import Path

TSP = "tsp epoll"
PROXIES = ("HAProxy", "nginx")


def quantile(figures, share):
    """Interpolates between the two figures beside it."""
    figures = sorted(figures)
    place = (len(figures) - 1) * share
    below = int(place)
    above = min(below + 1, len(figures) - 1)
    return figures[below] + (figures[above] - figures[below]) * (place - below)


def median(figures):
    return quantile(figures, 0.5)


def shown(figures, digits=2, unit=""):
    middle, lower, upper = (quantile(figures, share) for share in (0.5, 0.25, 0.75))
    return f"{middle:,.{digits}f}{unit} ({lower:,.{digits}f}–{upper:,.{digits}f})"


class Figures:
    """What was measured, by scenario, contestant and name; one per round."""

    def __init__(self, figures):
        self.figures = figures

    def all(self, scenario, contestant, name="cpu_us"):
        rounds = self.figures.get(scenario, {}).get(contestant, [])
        return [figures[name] for figures in rounds if figures.get(name) is not None]

    def ratios(self, over, under):
        """Ratios of two series, each a tuple as for `all`, within each round; none if one of them is missing."""
        over, under = self.all(*over), self.all(*under)
        return [a / b for a, b in zip(over, under) if b]

    def best_proxy(self, scenario):
        """The bare proxy with the lower median, if there is any."""
        there = [name for name in PROXIES if self.all(scenario, name)]
        return min(there, key=lambda name: median(self.all(scenario, name)), default=None)


def verdict(figure, goal, aim):
    """Whether a median keeps to its goal, and to what is aimed for."""
    if figure > goal:
        over = figure / goal - 1
        return f"**missed by {over:.0%}**" if over >= 0.01 else "**missed by less than 1 %**"
    if aim is None or figure > aim:
        return "met" if aim is None else "met, not the aim"
    return "aim met"


class Rows:
    """Rows of the goals' table."""

    def __init__(self, figures):
        self.figures, self.lines = figures, []

    def add(self, name, goal, cells):
        """`cells` are pairs of what was measured and what it means; none at all means that the run has no figure."""
        measured = "<br>".join(text for text, _ in cells) or "not in this run"
        result = "<br>".join(outcome or "&nbsp;" for _, outcome in cells) or "–"
        self.lines.append(f"| {name} | {goal} | {measured} | {result} |")

    def ratio(self, over, under, against, goal, aim=None, inverse=False):
        """The cell for a ratio that is to stay below `goal`; `inverse` shows it as a share, 1/x."""
        ratios = self.figures.ratios(over, under)
        if not ratios:
            return (f"{against}: not in this run", "–")
        text = f"1/{1 / median(ratios):.0f} × {against}" if inverse else f"{shown(ratios)} × {against}"
        return (text, verdict(median(ratios), goal, aim))


def goals(figures):
    rows = Rows(figures)

    def cost(scenario, divide_by=1, digits=1):
        own = [figure / divide_by for figure in figures.all(scenario, TSP)]
        return [(shown(own, digits, " µs"), "")] if own else []

    def against(scenario, name, *bounds, **more):
        return rows.ratio((scenario, TSP), (scenario, name), name, *bounds, **more)

    rows.add(
        "leased unwrap",
        "≤ 1.25 / 1.10 × static hyper; ≤ 0.85 / 0.75 × axum; ≤ 1/40 OpenBao decrypt",
        cost("unwrap")
        + [against("unwrap", "static hyper", 1.25, 1.10), against("unwrap", "axum", 0.85, 0.75), against("unwrap", "OpenBao", 1 / 40, inverse=True)],
    )
    rows.add(
        "leased wrap",
        "≤ 1.10 × leased unwrap; ≤ 0.85 / 0.75 × axum",
        cost("wrap") + [rows.ratio(("wrap", TSP), ("unwrap", TSP), "leased unwrap", 1.10), against("wrap", "axum", 0.85, 0.75)],
    )
    for scenario, name, bounds in (("kms-plain", "plain upstream", (1.25, 1.00)), ("kms-tls", "TLS upstream, SigV4", (1.35, 1.10))):
        best = figures.best_proxy(scenario)
        cells = cost(scenario)
        cells.append(against(scenario, best, *bounds) if best else ("bare proxies: not in this run", "–"))
        goal = f"≤ {bounds[0]:.2f} / {bounds[1]:.2f} × the better bare proxy"
        if scenario == "kms-plain":
            goal += "; ≤ 0.80 / 0.70 × axum; ≤ 0.45 × Envoy"
            cells += [against(scenario, "axum", 0.80, 0.70), against(scenario, "Envoy", 0.45)]
        rows.add(f"wrap through the KMS, {name}", goal, cells)
    items = [figure / 100 for figure in figures.all("batch", TSP)]
    own = [(shown(items, 2, " µs"), verdict(median(items), 1.0, 0.7))] if items else []
    rows.add(
        "batch of 100 leased unwraps, per item",
        "≤ 1.0 / 0.7 µs; ≤ 0.80 / 0.60 × axum; ≤ 1/8 OpenBao",
        own + [against("batch", "axum", 0.80, 0.60), against("batch", "OpenBao", 1 / 8, inverse=True)],
    )
    cells = []
    for scenario, goal in (("unwrap", 2.1), ("wrap", 2.1), ("kms-plain", 4.3), ("kms-tls", 4.3)):
        for io in ("epoll", "uring"):
            calls = figures.all("process", TSP, f"syscalls {scenario} {io}")
            if calls:
                cells.append((f"{scenario} {median(calls):.2f} on {io}", verdict(median(calls), goal, None)))
    rows.add("system calls per operation", "leased ≤ 2.1, through the KMS ≤ 4.3", cells)
    rows.add("allocations per operation", "leased ≤ 2", [allocations(name) for name in ("leased unwrap", "leased wrap")])
    rows.add("second core", "CPU per operation with 2 shards ≤ 1.05 × 1 shard", [second_core(rows, io) for io in ("epoll", "uring")])
    rows.add("uring against epoll", "within 1.05 × of each other at 64 connections", [both_back_ends(rows, shards) for shards in (1, 2)])
    rows.add("open loop at 50 % of own saturation, 20 ms KMS", "adds p50 ≤ 80 µs, p99 ≤ 300 µs, p99.9 ≤ 1.5 ms", added_latency(figures))
    memory = []
    for name, text, unit, goal in (("idle_mib", "idle", "MiB", 4), ("tenant_kib", "a warm leased tenant", "KiB", 8), ("connections_mib", "10,000 idle connections", "MiB", 120)):
        own = figures.all("process", TSP, name)
        memory.append((f"{text} {shown(own, 1, f' {unit}')}", verdict(median(own), goal, None)) if own else (f"{text}: not in this run", "–"))
    rows.add("memory, one shard", "≤ 4 MiB idle; ≤ 8 KiB per warm leased tenant and shard; 10,000 idle connections ≤ 120 MiB", memory)
    own = figures.all("process", TSP, "start_ms")
    rows.add("start", "≤ 50 ms to `/ready`", [(shown(own, 0, " ms"), verdict(median(own), 50, None))] if own else [])
    rows.add("headline", "≥ 25,000 leased operations/s at p99 ≤ 5 ms, ≥ 10 × OpenBao, generator on the same 2 cores", headline(figures))
    return rows.lines


def allocations(operation):
    """What the gates count and hold, on every machine alike."""
    budget = tomllib.loads((Path(__file__).parents[2] / "bench" / "budget.toml").read_text())
    count = budget["figures"]["allocations"][f"shard/{operation}"]
    return (f"{operation} {count:.2f} (`bench/budget.toml`)", verdict(count, 2, None))


def second_core(rows, io):
    return rows.ratio(("unwrap", f"tsp {io} × 2"), ("unwrap", f"tsp {io}"), f"one shard on {io}", 1.05)


def both_back_ends(rows, shards):
    def series(io):
        return ("io", f"tsp {io}" + (f" × {shards}" if shards > 1 else "") + ", 64 connections")

    ratios = rows.figures.ratios(series("uring"), series("epoll"))
    if not ratios:
        return (f"{shards} shards: not in this run", "–")
    middle = median(ratios)
    # Either way round: both are to be usable.
    return (f"{shown(ratios)} with {shards} shard{'s' if shards > 1 else ''}", verdict(max(middle, 1 / middle), 1.05, None))


def added_latency(figures):
    """What a proxy adds to the KMS's own latency at the same rate, in the same round."""
    cells = []
    for contestant in (TSP, *PROXIES):
        for name, text, goal in (("p50_us", "p50", 80), ("p99_us", "p99", 300), ("p99_9_us", "p99.9", 1_500)):
            with_it, without = figures.all("open", contestant, name), figures.all("open", "no proxy", name)
            added = [a - b for a, b in zip(with_it, without)]
            if added:
                outcome = ("met" if median(added) <= goal else "**missed**") if contestant == TSP else ""
                cells.append((f"{contestant} {text} {shown(added, 0, ' µs')}", outcome))
    if cells:
        rate, most = figures.all("open", TSP, "rate"), figures.all("saturation", TSP, "per_second")
        cells.append((f"at {shown(rate, 0)}/s, half of {shown(most, 0)}/s", ""))
    return cells


def headline(figures):
    name = "tsp auto × 2"
    answered, p99 = figures.all("headline", name, "answered_per_second"), figures.all("headline", name, "p99_ms")
    most, bao = figures.all("headline", name, "most_per_second"), figures.all("headline", name, "openbao_per_second")
    if not answered:
        return []
    rate = median(figures.all("headline", name, "rate"))
    kept = median(answered) >= 0.99 * rate and median(p99) <= 5
    cells = [(f"{shown(answered, 0)}/s asked for {rate:,.0f}/s, p99 {shown(p99, 2, ' ms')}", "met" if kept else "**missed**")]
    cells.append((f"at most {shown(most, 0)}/s", ""))
    ratios = [a / b for a, b in zip(most, bao)]
    cells.append((f"{shown(ratios, 0)} × OpenBao", "met" if median(ratios) >= 10 else "**missed**") if ratios else ("OpenBao: not in this run", "–"))
    return cells


SCENARIO_NAMES = {
    "unwrap": "leased unwrap",
    "wrap": "leased wrap",
    "kms-plain": "wrap through the KMS, plain upstream",
    "kms-tls": "wrap through the KMS, TLS upstream",
    "batch": "batch of 100 leased unwraps",
    "io": "leased unwrap, by back end, shards and connections",
}


def details(figures):
    # A server that is not kept busy sleeps and is woken more often per operation, and pays for it.
    yield "| scenario | server | CPU per operation, µs | ratio to tsp epoll | busy CPUs | operations/s | p99, ms |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for scenario, name in SCENARIO_NAMES.items():
        for contestant in figures.figures.get(scenario, {}):
            first = TSP if scenario != "io" else f"tsp epoll, {contestant.split(', ')[1]}"
            ratios = figures.ratios((scenario, contestant), (scenario, first))
            cells = [shown(figures.all(scenario, contestant)), shown(ratios) if ratios else "–"]
            cells += [shown(figures.all(scenario, contestant, name), digits) for name, digits in (("busy_cpus", 2), ("per_second", 0), ("p99_ms", 2))]
            contestant = contestant.replace(", 1 connections", ", 1 connection")
            yield f"| {name} | {contestant} | {' | '.join(cells)} |"


def report(run):
    """The run in Markdown, ready for tuning.md."""
    figures, rounds = Figures(run["figures"]), run["rounds"]
    stolen = max(facts["stolen"] for facts in rounds)
    load = [facts["load"] for facts in rounds]
    peers = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"`{run['command']}`, commit {run['commit']}, {run['machine']}; {len(rounds)} round{'s' if len(rounds) > 1 else ''}, load {min(load):.1f} to {max(load):.1f}, "
        f"at most {stolen:.1%} of a round's CPU time stolen. Peers: {peers or 'none'}.",
        *(f"{name} took no part: {why}" for name, why in run["missing"].items()),
        "",
        "| | goal / aim | measured | |",
        "| --- | --- | --- | --- |",
        *goals(figures),
        "",
        *details(figures),
    ]
    return "\n".join(lines)
