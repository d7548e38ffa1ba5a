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


def rows(path):
    if not path or not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.startswith("{")]


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
        ratio = f"{r['ratio_p50']:.2f} ({r['ratio_p50_low']:.2f} to {r['ratio_p50_high']:.2f})" if "ratio_p50" in r else "-"
        lines.append([r["op"], size(r["bytes"]) if r["bytes"] else "", duration(r["p50_ns"]), duration(r["p99_ns"]), duration(r["p999_ns"]),
                      duration(r.get("raw_p50_ns")), r.get("raw", "-"), ratio,
                      bandwidth(r.get("bytes_per_s")) if r["op"] == "bw" else f"{r['ops_per_s']:.3g} /s",
                      duration(r["cpu_ns_per_op"]), f"{r['doorbells_per_op']:.3g}"])
    table(["operation", "size", "p50", "p99", "p99.9", raw, "which is", "p50 / raw (rounds)", "flow", "processor", "doorbells"], lines)


def verdict(value, bound, at_least=False):
    if value is None:
        return "not measured"
    return "met" if (value >= bound if at_least else value <= bound) else "**missed**"


def targets(shm, roce, peers, perftest):
    def ratio(rs, **want):
        r = find(rs, **want)
        return r.get("ratio_p50") if r else None

    lines = []

    def line(what, value, bound, at_least=False, unit=""):
        shown = "-" if value is None else f"{value:.3g}{unit}"
        lines.append([what, f"at {'least' if at_least else 'most'} {bound:g}{unit}", shown, verdict(value, bound, at_least)])

    for n in (8, 4096, 65536):
        line(f"ibv (SoftRoCE guest): to_here / raw READ, p50, {size(n)}", ratio(roce, op="lat", bytes=n), 1.10)
    ours, ucx, torch = (find(shm, op="lat", bytes=8), find(peers, op="lat", peer="ucx", bytes=8), find(peers, op="lat", peer="torch", bytes=8))
    line("shm: to_here 8 B / UCX `ucp_get`", ours["p50_ns"] / ucx["p50_ns"] if ours and ucx else None, 1.5)
    line("torch's to_here 8 B / ours", torch["p50_ns"] / ours["p50_ns"] if ours and torch else None, 1000, True)
    for n in (65536, 1 << 20, 16 << 20):
        line(f"shm: to_here / memcpy from the segment, p50, {size(n)}", ratio(shm, op="lat", bytes=n), 1.05)
    call, am = find(shm, op="call"), find(peers, op="am_lat", peer="ucx")
    line("shm: empty call / twice UCX's active message, one way", call["p50_ns"] / (2 * am["p50_ns"]) if call and am else None, 1.5)
    line("shm: share user to user until confirmed, in empty calls", ratio(shm, op="share"), 3)
    line("shm: create on a peer, to_here, release, in empty calls", ratio(shm, op="create"), 3)
    batch = ratio(roce, op="batch")
    line("ibv: one by one / batch of 1,000 reads of 64 B", 1 / batch if batch else None, 3, True)
    bw, ib = find(roce, op="bw", bytes=1 << 20), find(perftest, op="bw", bytes=1 << 20)
    line("ibv: READ bandwidth, 1 MiB / `ib_read_bw` in the same boot", bw["bytes_per_s"] / ib["bytes_per_s"] if bw and ib else None, 0.95, True)
    table(["what", "target", "measured", ""], lines)


def command(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except OSError:
        return ""


def machine():
    model = re.search(r"model name\s*:\s*(.*)", open("/proc/cpuinfo", encoding="utf-8").read())
    memory = re.search(r"MemTotal:\s*(\d+)", open("/proc/meminfo", encoding="utf-8").read())
    print(f"- Processor: {model.group(1) if model else platform.machine()}, {os.cpu_count()} cores; "
          f"{int(memory.group(1)) >> 20 if memory else '?'} GiB of memory; Linux {platform.release().split("-")[0]}.")
    print(f"- Compiler: {command('gcc', '--version').splitlines()[0] if command('gcc', '--version') else 'unknown'}; `-O2`.")
    print(f"- librref at {command('git', 'rev-parse', '--short', 'HEAD') or 'an unknown commit'}.")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name in ("shm", "roce", "peers"):
        p.add_argument("--" + name)
    a = p.parse_args()
    shm, peers, guest = rows(a.shm), rows(a.peers), rows(a.roce)
    roce = [r for r in guest if "peer" not in r]
    perftest = [r for r in guest if r.get("peer") == "perftest"]

    print("# Speed\n\nMade by `make perf-report`; not edited by hand. Every ratio is taken in one process and minute, in short stretches of each "
          "side in turn; it is the median of the rounds, with the smallest and largest round behind it. Times on a shared machine are "
          "noisy: the ratios are what to look at. SoftRoCE in an emulated guest tells nothing about a NIC's speed, only what the library adds.\n")
    machine()
    print("\n## Targets\n")
    targets(shm, roce, peers, perftest)
    print("## Over shared memory\n\n`build/bin/rref-perf all --json`\n")
    sweep(shm, "raw p50") if shm else print("Not measured.\n")
    if os.path.exists("docs/perf/lat-shm.svg"):
        print("![to_here over shared memory](perf/lat-shm.svg)\n")
    print("## Over SoftRoCE\n\n`make perf-roce`, in the virtual machine of test/vm where there is no RDMA device\n")
    sweep(roce, "raw p50") if roce else print("Not measured.\n")
    if perftest:
        print("perftest in the same boot (`ib_read_lat`, `ib_read_bw`):\n")
        table(["test", "size", "median", "bandwidth"],
              [[r["op"], size(r["bytes"]), duration(r.get("p50_ns")), bandwidth(r.get("bytes_per_s"))] for r in perftest])
    print("## Peers\n\n`make perf-peers`: UCX (`ucx_perftest`, posix shared memory), MPI_Get with a flush (Open MPI), torch's `to_here`; "
          "in the same minutes as the table over shared memory\n")
    if peers:
        sizes = sorted({r["bytes"] for r in peers if r["op"] == "lat"})
        lines = []
        for n in sizes:
            line = [size(n)]
            for name in (None, "ucx", "mpi", "torch"):
                r = find(shm, op="lat", bytes=n) if name is None else find(peers, op="lat", peer=name, bytes=n)
                line.append(duration(r["p50_ns"]) if r else "-")
            lines.append(line)
        table(["read of", "librref to_here", "UCX ucp_get", "MPI_Get + flush", "torch to_here"], lines)
        lines = []
        for what, op, peer in (("empty call, round trip", "call", "torch"), ("active message, one way", "am_lat", "ucx"),
                               ("create, to_here, release", "create", "torch")):
            mine, other = find(shm, op=op), find(peers, op=op, peer=peer)
            if other:
                lines.append([what, duration(mine["p50_ns"]) if mine else "-", f"{peer}: {duration(other['p50_ns'])}"])
        table(["", "librref", "peer"], lines)
    else:
        print("Not measured.\n")
    notes = os.path.join(os.path.dirname(__file__), "notes.md")
    if os.path.exists(notes):
        print(open(notes, encoding="utf-8").read(), end="")


if __name__ == "__main__":
    main()
