# SPDX-License-Identifier: Apache-2.0
"""The targets of docs/PERF.md: each is a row with the figure, its bound and the verdict."""


def find(rs, **want):
    for r in rs:
        if all(r.get(k) == v for k, v in want.items()):
            return r
    return {}


def over(a, b):
    """a / b, or None where one of them is missing."""
    return a / b if a is not None and b else None


def spread(values):
    """The median of some values, with the smallest and the largest."""
    values = sorted(v for v in values if v is not None)
    return (values[len(values) // 2], values[0], values[-1]) if values else (None, None, None)


def ratio(r, key="ratio_p50"):
    """A ratio of a row, with its smallest and its largest round."""
    return r.get(key), r.get(key + "_low"), r.get(key + "_high")


def inverse(value):
    middle, low, high = value
    return over(1, middle), over(1, high), over(1, low)


def least(value):
    return ("at least", value)


class Table:
    """Rows of targets. failed: why a part gave nothing, by its name."""

    def __init__(self, failed):
        # A bar would end a cell of the table.
        self.failed = {part: why.replace("|", "/") for part, why in failed.items()}
        self.lines = []

    def reason(self, part):
        return self.failed.get(part, "no such line came")

    def add(self, part, what, value, bound, unit="", before=None):
        """value: a number or None, or (median, smallest, largest). bound: a number at most, or
        least(number)."""
        value, low, high = value if isinstance(value, tuple) else (value, None, None)
        at_least = isinstance(bound, tuple)
        bound = bound[1] if at_least else bound
        shown, verdict = "-", "not measured"
        if bound is None:
            target = "-"
        else:
            target = f"at {'least' if at_least else 'most'} {bound:,.4g}{unit}"
        if value is None:
            verdict += ": " + self.reason(part)
        else:
            shown = f"{value:,.3g}{unit}" if value < 1e4 else f"{value:.3g}{unit}"
            if low is not None and high is not None and low != high:
                shown += f" ({low:.3g} to {high:.3g})"
            if bound is not None:
                met = value >= bound if at_least else value <= bound
                verdict = "met" if met else "**missed**"
            else:
                verdict = "the bound was not measured: " + self.reason(part)
        line = [what, target, shown, verdict]
        if before is not None:
            line.insert(1, before)
        self.lines.append(line)


def pairs(peers, what):
    """Ours through the peer's, of runs right after each other."""
    return [over(r.get("ours_ns"), r.get("peer_ns")) for r in peers
            if r.get("op") == "pair" and r.get("what") == what]


def general(failed, of):
    """The targets of all that was measured. of: the rows by part."""
    t = Table(failed)
    shm, roce, peers = of["shm"], of["roce"], of["peers"]
    for n, name in ((8, "8 B"), (4096, "4 KiB"), (65536, "64 KiB")):
        t.add("roce", f"ibv (SoftRoCE guest): to_here / raw READ, p50, {name}",
              ratio(find(roce, op="lat", raw="READ", bytes=n)), 1.10)
    t.add("peers", "shm: to_here 8 B / UCX `ucp_get`", spread(pairs(peers, "lat")), 1.5)
    t.add("peers", "torch's to_here 8 B / ours",
          over(find(peers, op="lat", peer="torch", bytes=8).get("p50_ns"),
               find(shm, op="lat", bytes=8).get("p50_ns")), least(1000))
    for n, name in ((65536, "64 KiB"), (1 << 20, "1 MiB"), (16 << 20, "16 MiB")):
        t.add("shm", f"shm: to_here / memcpy from the segment, p50, {name}",
              ratio(find(shm, op="lat", bytes=n)), 1.05)
    t.add("peers", "shm: empty call / twice UCX's active message, one way",
          spread(over(r, 2) for r in pairs(peers, "call")), 1.5)
    t.add("shm", "shm: share user to user until confirmed, in empty calls",
          ratio(find(shm, op="share")), 3)
    t.add("shm", "shm: create on a peer, to_here, release, in empty calls",
          ratio(find(shm, op="create")), 3)
    r = find(roce, op="batch")
    t.add("roce", "ibv: one by one / batch of 1,000 reads of 64 B", inverse(ratio(r)), least(3))
    t.add("roce", "ibv: doorbells for each read of such a batch", r.get("doorbells_per_op"), 1 / 16)
    ours = [r for r in roce if r.get("op") == "bw" and r.get("bytes") == 1 << 20]
    theirs = [r for r in of["perftest"] if r.get("op") == "bw"]
    t.add("roce", "ibv: READ bandwidth, 1 MiB / `ib_read_bw` in the same boot",
          spread(over(a.get("bytes_per_s"), b.get("bytes_per_s")) for a, b in zip(ours, theirs)),
          least(0.95))
    for n, name in ((128, "128 B"), (4096, "4 KiB"), (65536, "64 KiB")):
        t.add("shm", f"value memory of {name}: arena / plain mallocx and dallocx, p50",
              ratio(find(shm, op="alloc", bytes=n)), 1.3)
    made = [r["registrations"] for r in shm if r.get("op") == "alloc" and "registrations" in r]
    t.add("shm", "registrations meanwhile", sum(made) if made else None, 0)
    r = find(shm, op="live")
    t.add("shm", "bookkeeping of each of 10^6 live references at their owner, "
          "handle and value record included", r.get("bytes_per_reference"), 200, " B")
    t.add("shm", "a value made and released among 10^6 / among 10^3", ratio(r), 1.25)
    r = find(of["idle"], op="idle")
    t.add("idle", "idle worker, auto mode, 10 s, of one core", over(r.get("cpu_share"), 0.01), 0.1,
          " %")
    t.add("idle", "first call after a rest (shm, median of 9)", over(r.get("p50_ns"), 1000), 100,
          " us")
    r = find(of["path"], op="path")
    t.add("path", "instructions of to_here before and after the device's READ, 8 B over shm "
          "(callgrind)", r.get("instructions"), 250)
    t.add("path", "mallocs, locks and system calls among them", r.get("foreign"), 0)
    return t.lines


def completions(failed, of):
    """The targets of completions without a lock. Each has its figure before that work."""
    t = Table(failed)
    shm, roce, peers = of["shm"], of["roce"], of["peers"]

    def async_of_ucx(what):
        return spread(over(1, r) for r in pairs(peers, what))

    t.add("peers", "shm: `to_here_async`, wait, free, 8 B, 64 in flight / UCX `ucp_get -O 64`",
          spread(pairs(peers, "rate")), 1.5, before="7.7")
    t.add("shm", "shm: batch of 1,000 of 64 B, each value / one `to_here`",
          ratio(find(shm, op="batch", bytes=64)), 1.2, before="8.7")
    for n, name, before in ((65536, "64 KiB", "1.28"), (1 << 20, "1 MiB", "1.47")):
        t.add("shm", f"shm: {name}, 16 in flight / memcpy in the same pattern",
              ratio(find(shm, op="bw", bytes=n)), 1.05, before=before)
    for name, before in (("64 KiB", "-"), ("1 MiB", "0.63")):
        t.add("peers", f"shm: {name}, 16 in flight: bandwidth / that of UCX `ucp_get -O 16`",
              async_of_ucx(f"bw {name}"), least(1.0), before=before)
    for n, name, before in ((65536, "64 KiB", "-"), (16 << 20, "16 MiB", "700,000 ns"),
                            (1 << 30, "1 GiB", "-")):
        t.add("shm", f"shm: view of {name} where it lies, p50",
              find(shm, op="view", bytes=n).get("p50_ns"), 200, " ns", before=before)
    t.add("roce", "ibv guest: async 8 B, 64 in flight / raw",
          ratio(find(roce, op="rate", window=64)), 1.10, before="1.30")
    t.add("roce", "ibv guest: p99 of an empty call while 64 reads of 256 KiB of the same peer are "
          "in flight / idle", ratio(find(roce, op="call+bulk"), "ratio_p99"), 3, before="-")
    t.add("roce", "ibv guest: p99 of an 8 B read beside a bulk stream of the same peer / idle",
          ratio(find(roce, op="read+bulk"), "ratio_p99"), 2, before="-")
    t.add("shm", "shm: p99.9 of 8 B reads, while other threads make and end sessions, free values "
          "of 1 GiB, are called / without", ratio(find(shm, op="read+busy"), "ratio_p999"), 2,
          before="-")
    t.add("fake", "fake devices: p99.9 of 8 B reads, while other threads make and end sessions, "
          "free values of 1 GiB, are called / without",
          ratio(find(of["fake"], op="read+busy"), "ratio_p999"), 2, before="-")
    t.add("roce", "ibv guest: one `to_here_async` and its wait, 8 B / one `to_here`",
          ratio(find(roce, op="async")), 1.2, before="5.9")
    threads(t, of)
    r = find(of["path"], op="path")
    t.add("path", "instructions of `to_here` 8 B over shm, without the device's READ",
          r.get("instructions"), 166, before="166")
    for part, where, key in (("path", "fake devices", "ibv"), ("roce", "guest", "instructions")):
        t.add(part, f"instructions of `to_here` 8 B over ibv ({where}), around the driver's calls",
              find(of[part], op="path").get(key), 350, before="570")
    return t.lines


def threads(t, of):
    """2 threads beside one, and 8 beside 2."""
    kinds = (("shm", "to_here", "shm, synchronous", "1.15", "1.7"),
             ("shm", "to_here_async", "shm, async", "0.72", "0.99"),
             ("roce", "to_here", "ibv guest", "0.73", "1.0"))
    for part, way, name, before, _ in kinds:
        r = find(of[part], op="threads", way=way, threads=2)
        bound = 1.9
        if part == "roce":
            raw = r.get("raw_of_one_thread")
            bound = None if raw is None else 0.9 * raw
        t.add(part, f"2 threads / 1 thread, 8 B: {name}", ratio(r, "of_one_thread"), least(bound),
              before=before)
    for way, name in (("own values", "a value each"), ("one value", "one value"),
                      ("own values of several owners", "a value each, of 7 owners")):
        for n, key, of_what in ((2, "of_one_thread", "1 thread"),
                                (8, "of_two_threads", "2 threads")):
            r = find(of["fake"], op="threads", way=way, threads=n)
            t.add("fake", f"{n} threads / {of_what}, 8 B: fake devices, {name}", ratio(r, key),
                  least(0.95), before="-")
    for part, way, name, _, before in kinds:
        r = find(of[part], op="threads", way=way, threads=8)
        t.add(part, f"8 threads on two cores / 2 threads, 8 B: {name}",
              ratio(r, "of_two_threads"), least(0.95), before=before)
