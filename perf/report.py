#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/PERF.md from JSON lines: report.py --shm FILE --roce FILE --peers FILE > docs/PERF.md

Each file may be missing: its part then says so. See `make perf-report`.
"""
import argparse
import json
import os
import platform
import re
import subprocess
import textwrap


def rows(path):
    if not path or not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.startswith("{")]


def middle(rs):
    """Keeps one run of each operation: the one with the median ratio, with the spread of all."""
    groups = {}
    for r in rs:
        groups.setdefault((r["op"], r.get("bytes"), r.get("raw"), r.get("peer")), []).append(r)
    out = []
    for runs in groups.values():
        runs.sort(key=lambda r: r.get("ratio_p50", 0))
        r = runs[len(runs) // 2]
        if len(runs) > 1:
            r["ratio_p50_low"] = min(x["ratio_p50_low"] for x in runs)
            r["ratio_p50_high"] = max(x["ratio_p50_high"] for x in runs)
        out.append(r)
    return out


def plot(rs, op, file, title):
    """Draws p50 of ours and of the raw side over size.

    Draws nothing without gnuplot, or with less than two sizes.
    """
    points = [(r["bytes"], r["p50_ns"] / 1e3, r["raw_p50_ns"] / 1e3) for r in rs
              if r["op"] == op and "raw_p50_ns" in r and not r["raw"].endswith("+header")]
    if len(points) < 2:
        return
    data = "".join(f"{b} {x} {y}\n" for b, x, y in points)
    script = (f"set terminal svg size 900,520 font 'sans,14' background rgb 'white'\n"
              f"set output '{file}'\nset logscale x 2\nset logscale y\n"
              "set format x '%.0b %BB'\nset grid\nset key left top\nset xlabel 'bytes'\n"
              f"set ylabel 'p50, microseconds'\nset title '{title}'\n$d << EOD\n{data}EOD\n"
              "plot $d using 1:2 with linespoints lw 2 title 'librref', "
              "$d using 1:3 with linespoints lw 2 title 'raw'\n")
    try:
        subprocess.run(["gnuplot"], input=script, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return
    print(f"![{title}]({os.path.relpath(file, 'docs')})\n")


def said(text, margin=""):
    print(textwrap.fill(text, 100, subsequent_indent=margin, break_long_words=False,
                        break_on_hyphens=False))


def find(rs, **want):
    for r in rs:
        if all(r.get(k) == v for k, v in want.items()):
            return r
    return None


def duration(ns):
    if ns is None:
        return "-"
    if ns < 1000:
        return f"{ns:.1f} ns" if ns < 100 else f"{ns:.0f} ns"
    return f"{ns / 1e3:.2f} us" if ns < 1e6 else f"{ns / 1e6:.2f} ms"


def size(n):
    for unit, shift in (("MiB", 20), ("KiB", 10)):
        if n >= 1 << shift and n % (1 << shift) == 0:
            return f"{n >> shift} {unit}"
    return f"{n} B"


def bandwidth(v):
    return "-" if v is None else f"{v / 1e9:.2f} GB/s" if v >= 1e9 else f"{v / 1e6:.1f} MB/s"


def table(head, lines):
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for line in lines:
        print("| " + " | ".join(str(x) for x in line) + " |")
    print()


def sweep(rs, raw):
    lines = []
    for r in rs:
        if "ops_per_s" not in r:
            continue
        ratio, doorbells = "-", "-"
        if "ratio_p50" in r:
            ratio = (f"{r['ratio_p50']:.2f} "
                     f"({r['ratio_p50_low']:.2f} to {r['ratio_p50_high']:.2f})")
        if r["op"] in ("lat", "bw", "rate", "batch"):
            doorbells = f"{r['doorbells_per_op']:.3g}"
        flow = f"{r['ops_per_s']:.3g} /s"
        if r["op"] == "bw":
            flow = bandwidth(r.get("bytes_per_s"))
        lines.append([r["op"], size(r["bytes"]) if r["bytes"] else "", duration(r["p50_ns"]),
                      duration(r["p99_ns"]), duration(r["p999_ns"]),
                      duration(r.get("raw_p50_ns")), r.get("raw", "-"), ratio,
                      flow, duration(r["cpu_ns_per_op"]), doorbells])
    table(["operation", "size", "p50", "p99", "p99.9", raw, "which is", "p50 / raw (rounds)",
           "flow", "processor", "doorbells"], lines)


def verdict(value, bound, at_least=False):
    if value is None:
        return "not measured"
    return "met" if (value >= bound if at_least else value <= bound) else "**missed**"


def targets(shm, roce, peers, perftest, idle, path):
    def ratio(rs, **want):
        r = find(rs, **want)
        return r.get("ratio_p50") if r else None

    lines = []

    def line(what, value, bound, at_least=False, unit="", spread=None):
        shown = "-" if value is None else f"{value:.3g}{unit}"
        if spread and value is not None and spread[0] is not None and spread[0] != spread[1]:
            shown += f" ({spread[0]:.3g} to {spread[1]:.3g})"
        lines.append([what, f"at {'least' if at_least else 'most'} {bound:,g}{unit}", shown,
                      verdict(value, bound, at_least)])

    def rounds(r):
        return (r["ratio_p50_low"], r["ratio_p50_high"]) if r and "ratio_p50_low" in r else None

    def ratio_line(what, rs, bound, **want):
        r = find(rs, **want)
        line(what, r.get("ratio_p50") if r else None, bound, spread=rounds(r))

    def pairs_line(what, ratios, bound, at_least=False):
        ratios = sorted(ratios)
        line(what, ratios[len(ratios) // 2] if ratios else None, bound, at_least,
             spread=(ratios[0], ratios[-1]) if ratios else None)

    def pairs(what):
        return [r["ours_ns"] / r["peer_ns"] for r in peers if r["op"] == "pair"
                and r["what"] == what]

    for n in (8, 4096, 65536):
        ratio_line(f"ibv (SoftRoCE guest): to_here / raw READ, p50, {size(n)}", roce, 1.10,
                   op="lat", raw="READ", bytes=n)
    ours, torch = find(shm, op="lat", bytes=8), find(peers, op="lat", peer="torch", bytes=8)
    pairs_line("shm: to_here 8 B / UCX `ucp_get`", pairs("lat"), 1.5)
    line("torch's to_here 8 B / ours", torch["p50_ns"] / ours["p50_ns"] if ours and torch else None,
         1000, True)
    for n in (65536, 1 << 20, 16 << 20):
        ratio_line(f"shm: to_here / memcpy from the segment, p50, {size(n)}", shm, 1.05, op="lat",
                   bytes=n)
    pairs_line("shm: empty call / twice UCX's active message, one way",
               [r / 2 for r in pairs("call")], 1.5)
    ratio_line("shm: share user to user until confirmed, in empty calls", shm, 3, op="share")
    ratio_line("shm: create on a peer, to_here, release, in empty calls", shm, 3, op="create")
    r = find(roce, op="batch")
    line("ibv: one by one / batch of 1,000 reads of 64 B",
         1 / r["ratio_p50"] if r else None, 3, True,
         spread=(1 / r["ratio_p50_high"], 1 / r["ratio_p50_low"]) if r else None)
    line("ibv: doorbells for each read of such a batch", r["doorbells_per_op"] if r else None,
         1 / 16)
    bw = [r for r in roce if r["op"] == "bw" and r["bytes"] == 1 << 20]
    ib = [r for r in perftest if r["op"] == "bw"]
    pairs_line("ibv: READ bandwidth, 1 MiB / `ib_read_bw` in the same boot",
               [a["bytes_per_s"] / b["bytes_per_s"] for a, b in zip(bw, ib)], 0.95, True)
    for n in (128, 4096, 65536):
        r = find(shm, op="alloc", bytes=n)
        line(f"value memory of {size(n)}: arena / plain mallocx and dallocx, p50",
             r["ratio_p50"] if r else None, 1.3, spread=rounds(r))
    r = [x for x in shm if x["op"] == "alloc"]
    line("registrations meanwhile", sum(x["registrations"] for x in r) if r else None, 0)
    r = find(shm, op="live")
    line("bookkeeping of each of 10^6 live references at their owner, "
         "handle and value record included",
         r["bytes_per_reference"] if r else None, 200, unit=" B")
    line("a value made and released among 10^6 / among 10^3", r["ratio_p50"] if r else None, 1.25,
         spread=rounds(r))
    r = find(idle, op="idle")
    line("idle worker, auto mode, 10 s, of one core", r["cpu_share"] * 100 if r else None, 0.1,
         unit=" %")
    line("first call after a rest (shm, median of 9)", r["p50_ns"] / 1e3 if r else None, 100,
         unit=" us")
    r = find(path, op="path")
    line("instructions of to_here before and after the device's READ, 8 B over shm (callgrind)",
         r["instructions"] if r else None, 250)
    line("mallocs, locks and system calls among them", r["foreign"] if r else None, 0)
    table(["what", "target", "measured (rounds)", ""], lines)


def counted(rs):
    """Instructions of the guest for one read: what it took of its time, where each takes 4 ns."""
    print("### Counted\n")
    said("`test/vm/run.sh --icount 2 -- perf/counted.sh` counts the instructions of one read, "
         "with the kernel's and both ends'. The guest has one processor, and they are its "
         "clock. Other work on the machine does not show, and the ratios of a run repeat to "
         "the third digit. Code outside of loops takes three to five times as long, emulated, as "
         "its share of the instructions.")
    print()
    lines = []
    for r in rs:
        if "raw_p50_ns" in r:
            what = "to_here" if r["op"] == "lat" else "to_here, 16 in flight"
            lines.append([what, size(r["bytes"]), f"{r['p50_ns'] / 4:,.0f}", r["raw"],
                          f"{r['raw_p50_ns'] / 4:,.0f}", f"{r['ratio_p50']:.4f}"])
        elif lines:
            ours, theirs = (x["bytes"] / x["bytes_per_s"] * 1e9 / 4 for x in (find(rs, op="bw"), r))
            lines.append(["the same, of all reads", size(r["bytes"]), f"{ours:,.0f}",
                          "`ib_read_bw`", f"{theirs:,.0f}", f"{ours / theirs:.4f}"])
    if lines:
        table(["read", "size", "instructions", "beside", "instructions", "ratio"], lines)
    else:
        print("Not measured.\n")


def command(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20,
                              check=False).stdout.strip()
    except OSError:
        return ""


def machine():
    model = re.search(r"model name\s*:\s*(.*)", open("/proc/cpuinfo", encoding="utf-8").read())
    memory = re.search(r"MemTotal:\s*(\d+)", open("/proc/meminfo", encoding="utf-8").read())
    gib = int(memory.group(1)) >> 20 if memory else "?"
    gcc = command("gcc", "--version")
    print(f"- Processor: {model.group(1) if model else platform.machine()}, "
          f"{os.cpu_count()} cores; {gib} GiB of memory; "
          f"Linux {platform.release().split('-')[0]}.")
    print(f"- Compiler: {gcc.splitlines()[0] if gcc else 'unknown'}; `-O2`.")
    print(f"- librref at {command('git', 'rev-parse', '--short', 'HEAD') or 'an unknown commit'}.")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name in ("shm", "roce", "peers", "idle", "path", "counted", "load"):
        p.add_argument("--" + name)
    a = p.parse_args()
    shm, peers, guest = middle(rows(a.shm)), rows(a.peers), rows(a.roce)
    roce = [r for r in guest if "peer" not in r]
    perftest = [r for r in guest if r.get("peer") == "perftest"]

    print("# Speed\n")
    said("Made by `make perf-report`; not edited by hand. Every ratio is taken in one process "
         "and minute, in short stretches of each side in turn. It is the median of the rounds,"
         " with the smallest and largest round after it. Times on a shared machine are noisy:"
         " look at the ratios. SoftRoCE in an emulated guest tells nothing about a "
         "NIC's speed. It shows only the library's own part.")
    print()
    machine()
    if a.load:
        said(f"- Other work meanwhile: load average {a.load}"
             ". Above the number of cores, absolute times are of little use. So are figures that "
             "need two workers at once (call, share, create, idle). The ratios are of use as far "
             "as their spread allows.", "  ")
    print("\n## Targets\n")
    targets(shm, roce, peers, perftest, rows(a.idle), rows(a.path))
    print("## Over shared memory\n\n`build/bin/rref-perf all --json`\n")
    sweep(shm, "raw p50") if shm else print("Not measured.\n")
    plot(shm, "lat", "docs/perf/lat-shm.svg", "to_here over shared memory")
    print("## Over SoftRoCE\n\n`make perf-roce`, in the virtual machine of test/vm where "
          "there is no RDMA device\n")
    sweep(middle(roce), "raw p50") if roce else print("Not measured.\n")
    plot(roce, "lat", "docs/perf/lat-roce.svg", "to_here over SoftRoCE")
    if perftest:
        print("perftest in the same boot (`ib_read_lat`, `ib_read_bw`):\n")
        table(["test", "size", "median", "bandwidth"],
              [[r["op"], size(r["bytes"]), duration(r.get("p50_ns")),
                bandwidth(r.get("bytes_per_s"))] for r in perftest])
    counted(rows(a.counted))
    print("## Peers\n")
    said("`make perf-peers`, in the same minutes as the table over shared memory. The peers are "
         "UCX (`ucx_perftest`, posix shared memory), MPI_Get with a flush (Open MPI), and torch's "
         "`to_here`.")
    print()
    if peers:
        sizes = sorted({r["bytes"] for r in peers if r["op"] == "lat"})
        lines = []
        for n in sizes:
            line = [size(n)]
            for name in (None, "ucx", "mpi", "torch"):
                r = (find(shm, op="lat", bytes=n) if name is None
                     else find(peers, op="lat", peer=name, bytes=n))
                line.append(duration(r["p50_ns"]) if r else "-")
            lines.append(line)
        table(["read of", "librref to_here", "UCX ucp_get", "MPI_Get + flush", "torch to_here"],
              lines)
        lines = []
        for what, op, peer in (("empty call, round trip", "call", "torch"),
                               ("active message, one way", "am_lat", "ucx"),
                               ("create, to_here, release", "create", "torch")):
            mine, other = find(shm, op=op), find(peers, op=op, peer=peer)
            if other:
                lines.append([what, duration(mine["p50_ns"]) if mine else "-",
                              f"{peer}: {duration(other['p50_ns'])}"])
        table(["", "librref", "peer"], lines)
    else:
        print("Not measured.\n")
    with open(os.path.join(os.path.dirname(__file__), "measures.md"), encoding="utf-8") as f:
        print(f.read(), end="")


if __name__ == "__main__":
    main()
