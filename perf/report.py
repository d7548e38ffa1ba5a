#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/PERF.md from the JSON lines of perf/report.sh: report.py RESULTS PLOTS > docs/PERF.md

RESULTS is a folder with a file for each part, PLOTS gets the pictures. A part may be missing, or
say nothing, or nonsense: its rows then tell the reason. See `make perf-report`.
"""
import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import textwrap

sys.dont_write_bytecode = True  # the tree stays as it is
from targets import completions, find, general, over  # pylint: disable=wrong-import-position

PARTS = ("shm", "peers", "idle", "path", "fake", "roce", "counted")


TEXTS = ("op", "peer", "device", "raw", "way", "what")


def no_number(r):
    """Says which number of a row is none; None if all are good."""
    for key, v in r.items():
        if key in TEXTS:
            good = isinstance(v, str)
        else:
            good = isinstance(v, (int, float)) and math.isfinite(v)
        if not good:
            return f"{key} is {v}"
    return None


def rows(folder, part, failed):
    """The rows of a part, from its JSON lines. What is no row is left out, and told in failed."""
    path, good = os.path.join(folder, part + ".jsonl"), []
    if not os.path.exists(path):
        failed.setdefault(part, []).append("it left no file of results")
        return good
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in (x.strip() for x in f):
            if not line.startswith("{"):
                continue
            try:
                r = json.loads(line)
                wrong = no_number(r)
            except ValueError:
                wrong = "no JSON"
            if wrong:
                failed.setdefault(part, []).append(f"{wrong} in the line `{line[:120]}`")
            else:
                good.append(r)
    return good


def failures(folder):
    """What the script noted: the reasons by part, of those that failed."""
    failed = {}
    path = os.path.join(folder, "failed")
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                part, what, why = (line.rstrip("\n").split("\t") + ["", ""])[:3]
                failed.setdefault(part, []).append(f"`{what}`: {why}")
    return failed


def middle(rs):
    """Keeps one run of each operation: the one with the median ratio, with the spread of all."""
    groups = {}
    for r in rs:
        key = ("op", "bytes", "raw", "peer", "way", "threads", "window")
        groups.setdefault(tuple(r.get(k) for k in key), []).append(r)
    out = []
    for runs in groups.values():
        runs.sort(key=lambda r: r.get("ratio_p50", 0))
        r = runs[len(runs) // 2]
        if len(runs) > 1 and "ratio_p50" in r:
            r["ratio_p50_low"] = min(x.get("ratio_p50_low", r["ratio_p50"]) for x in runs)
            r["ratio_p50_high"] = max(x.get("ratio_p50_high", r["ratio_p50"]) for x in runs)
        out.append(r)
    return out


def plot(rs, op, file, title):
    """Draws p50 of ours and of the raw side over size.

    Draws nothing without gnuplot, or with less than two sizes.
    """
    points = [(r["bytes"], r["p50_ns"] / 1e3, r["raw_p50_ns"] / 1e3) for r in rs
              if r.get("op") == op and {"bytes", "p50_ns", "raw_p50_ns"} <= r.keys()
              and not r.get("raw", "").endswith("+header")]
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
    print(f"![{title}](perf/{os.path.basename(file)})\n")


def said(text, margin=""):
    print(textwrap.fill(text, 100, subsequent_indent=margin, break_long_words=False,
                        break_on_hyphens=False))


def duration(ns):
    if ns is None:
        return "-"
    if ns < 1000:
        return f"{ns:.1f} ns" if ns < 100 else f"{ns:.0f} ns"
    return f"{ns / 1e3:.2f} us" if ns < 1e6 else f"{ns / 1e6:.2f} ms"


def size(n):
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
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


def rounds(r, key):
    """A ratio, with the smallest and the largest round."""
    if key not in r:
        return "-"
    return f"{r[key]:.2f} ({r.get(key + '_low', r[key]):.2f} to {r.get(key + '_high', r[key]):.2f})"


def name(r):
    return r.get("op", "?") + (f", {r['window']} in flight" if "window" in r else "")


def amount(v, form="{:.3g}"):
    return "-" if v is None else form.format(v)


def sweep(rs, raw):
    lines = []
    for r in rs:
        if "ops_per_s" not in r or "threads" in r or "ratio_p99" in r:
            continue
        doorbells, flow = "-", f"{r['ops_per_s']:.3g} /s"
        if r.get("op") in ("lat", "bw", "rate", "batch", "async", "view"):
            doorbells = amount(r.get("doorbells_per_op"))
        if r.get("op") == "bw":
            flow = bandwidth(r.get("bytes_per_s"))
        lines.append([name(r), size(r["bytes"]) if r.get("bytes") else "",
                      duration(r.get("p50_ns")), duration(r.get("p99_ns")),
                      duration(r.get("p999_ns")), duration(r.get("raw_p50_ns")), r.get("raw", "-"),
                      rounds(r, "ratio_p50"), flow, duration(r.get("cpu_ns_per_op")), doorbells])
    table(["operation", "size", "p50", "p99", "p99.9", raw, "which is", "p50 / raw (rounds)",
           "flow", "processor", "doorbells"], lines)
    crowds = [[r.get("way"), r["threads"], f"{r['ops_per_s']:.3g} /s",
               rounds(r, "of_one_thread"), rounds(r, "of_two_threads"), r.get("raw", "-"),
               amount(r.get("raw_ops_per_s"), "{:.3g} /s"), rounds(r, "raw_of_one_thread")]
              for r in rs if "threads" in r and "ops_per_s" in r]
    if crowds:
        print("Threads that read 8 bytes at once, each its own value (`rref-perf threads`):\n")
        table(["way", "threads", "all together", "/ one thread (rounds)", "/ two threads (rounds)",
               "raw", "all together", "/ one thread (rounds)"], crowds)
    tails = [[name(r), duration(r.get("p50_ns")), duration(r.get("p99_ns")),
              duration(r.get("p999_ns")), duration(r.get("raw_p99_ns")),
              duration(r.get("raw_p999_ns")), rounds(r, "ratio_p99"), rounds(r, "ratio_p999"),
              noise(r)] for r in rs if "ratio_p99" in r]
    if tails:
        print("Beside other work of the same worker, and without it (each is timed alone):\n")
        table(["operation", "p50", "p99", "p99.9", "p99 without", "p99.9 without",
               "p99 / without (rounds)", "p99.9 / without (rounds)", "meanwhile"], tails)


def noise(r):
    if "frees" not in r:
        return "-"
    return (f"{r['frees']:,.0f} values freed, {r.get('calls', 0):,.0f} calls, "
            f"{r.get('sessions', 0):,.0f} sessions ended")


def instructions(ns):
    return "-" if ns is None else f"{ns / 4:,.0f}"


def counted(rs, failed):
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
            what = "to_here" if r.get("op") == "lat" else "to_here, 16 in flight"
            lines.append([what, size(r.get("bytes", 0)), instructions(r.get("p50_ns")),
                          r.get("raw", "-"), instructions(r["raw_p50_ns"]),
                          amount(r.get("ratio_p50"), "{:.4f}")])
        elif lines:
            ours, theirs = (over(x.get("bytes"), x.get("bytes_per_s")) for x in
                            (find(rs, op="bw"), r))
            lines.append(["the same, of all reads", size(r.get("bytes", 0)),
                          instructions(over(ours, 1e-9)), "`ib_read_bw`",
                          instructions(over(theirs, 1e-9)), amount(over(ours, theirs), "{:.4f}")])
    if lines:
        table(["read", "size", "instructions", "beside", "instructions", "ratio"], lines)
    else:
        missing("counted", failed)


def missing(part, failed):
    said("Not measured: " + "; ".join(failed.get(part, ["no line came"])) + ".")
    print()


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


def head(a, failed):
    print("# Speed\n")
    said("Made by `make perf-report`; not edited by hand. Every ratio is taken in one process "
         "and minute, in short stretches of each side in turn. It is the median of the rounds,"
         " with the smallest and largest round after it. Times on a shared machine are noisy:"
         " look at the ratios. SoftRoCE in an emulated guest tells nothing about a "
         "NIC's speed. It shows only the library's own part.")
    print()
    machine()
    try:
        with open(os.path.join(a.results, "load"), encoding="utf-8") as f:
            said(f"- Other work meanwhile: load average {f.read().strip()}"
                 ". Above the number of cores, absolute times are of little use. So are figures "
                 "that need two workers at once (call, share, create, idle). The ratios are of use "
                 "as far as their spread allows.", "  ")
    except OSError:
        pass
    if failed:
        print("- Not everything could be measured:")
    for part, reasons in failed.items():
        for why in reasons[:3]:
            print("  - " + part + ": " + why)
        if len(reasons) > 3:
            print(f"  - {part}: and {len(reasons) - 3} more")


def beside_peers(shm, peers, failed):
    print("## Peers\n")
    said("`make perf-peers`, in the same minutes as the table over shared memory. The peers are "
         "UCX (`ucx_perftest`, posix shared memory), MPI_Get with a flush (Open MPI), and torch's "
         "`to_here`.")
    print()
    if not peers:
        missing("peers", failed)
        return
    lines = []
    for n in sorted({r["bytes"] for r in peers if r.get("op") == "lat" and "bytes" in r}):
        line = [size(n), duration(find(shm, op="lat", bytes=n).get("p50_ns"))]
        for peer in ("ucx", "mpi", "torch"):
            line.append(duration(find(peers, op="lat", peer=peer, bytes=n).get("p50_ns")))
        lines.append(line)
    table(["read of", "librref to_here", "UCX ucp_get", "MPI_Get + flush", "torch to_here"], lines)
    lines = []
    for what, op, peer in (("empty call, round trip", "call", "torch"),
                           ("active message, one way", "am_lat", "ucx"),
                           ("create, to_here, release", "create", "torch")):
        mine, other = find(shm, op=op), find(peers, op=op, peer=peer)
        lines.append([what, duration(mine.get("p50_ns")),
                      f"{peer}: {duration(other.get('p50_ns'))}"])
    table(["", "librref", "peer"], lines)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("results")
    p.add_argument("plots")
    a = p.parse_args()
    failed = failures(a.results)
    of = {part: rows(a.results, part, failed) for part in PARTS}
    guest = of["roce"]
    of["shm"] = shm = middle(of["shm"])
    of["perftest"] = [r for r in guest if r.get("peer") == "perftest"]
    of["roce"] = [r for r in guest if "peer" not in r]
    # A row's reason is one line.
    short = {part: reasons[0] for part, reasons in failed.items()}

    head(a, failed)
    print("\n## Targets\n")
    table(["what", "target", "measured (rounds)", ""], general(short, of))
    print("## Completions without a lock\n")
    said("What the library was asked to reach where no read's end waits for a lock. `before` is "
         "the figure before that work, on the same machine.")
    print()
    table(["what", "before", "target", "measured (rounds)", ""], completions(short, of))
    print("## Over shared memory\n\n`build/bin/rref-perf all --json`\n")
    sweep(shm, "raw p50") if shm else missing("shm", failed)
    plot(shm, "lat", os.path.join(a.plots, "lat-shm.svg"), "to_here over shared memory")
    print("## Over SoftRoCE\n\n`make perf-roce`, in the virtual machine of test/vm where "
          "there is no RDMA device\n")
    sweep(middle(of["roce"]), "raw p50") if of["roce"] else missing("roce", failed)
    plot(of["roce"], "lat", os.path.join(a.plots, "lat-roce.svg"), "to_here over SoftRoCE")
    if of["perftest"]:
        print("perftest in the same boot (`ib_read_lat`, `ib_read_bw`):\n")
        table(["test", "size", "median", "bandwidth"],
              [[r.get("op"), size(r.get("bytes", 0)), duration(r.get("p50_ns")),
                bandwidth(r.get("bytes_per_s"))] for r in of["perftest"]])
    print("## Over fake devices\n\n`make perf-fake`: RDMA by memcpy in one process "
          "(`test/fake`), the ceiling of the library over ibv\n")
    sweep(of["fake"], "raw p50") if of["fake"] else missing("fake", failed)
    counted(of["counted"], failed)
    beside_peers(shm, of["peers"], failed)
    with open(os.path.join(os.path.dirname(__file__), "measures.md"), encoding="utf-8") as f:
        print(f.read(), end="")


if __name__ == "__main__":
    main()
