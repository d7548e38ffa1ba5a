#!/usr/bin/env python3
"""The rooms of core/ and their order, checked on objects.

    rooms.py BUILD [up | circles | includes]

An object calls another if it leaves a name undefined which that other alone defines. A room calls
the rooms below it and itself. Without a word: two numbers, names called upwards and the objects of
the largest circle. With up or circles: what they are. With includes: headers of rooms above that a
file of a room includes. core/ctx.h is everybody's.
"""
import collections
import glob
import os
import re
import subprocess
import sys

ROOMS = ["base", "protocol", "wire", "group", "op", "value", "session", "read", "call", "observe",
         ""]  # the files at the top


def symbols(path):
    """Returns the names that an object defines, and those that it leaves undefined."""
    defined, undefined = set(), set()
    for line in subprocess.run(["nm", path], capture_output=True, text=True,
                               check=True).stdout.splitlines():
        part = line.split()
        if len(part) == 2 and part[0] == "U":
            undefined.add(part[1])
        elif len(part) == 3 and part[1] in "TDBRVW":
            defined.add(part[2])
    return defined, undefined


def largest_circle(calls):
    """Returns the largest set of objects that reach each other (Tarjan's components)."""
    index, low, stack, best = {}, {}, [], []

    def visit(v):
        nonlocal best
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in calls[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            at = stack.index(v)
            if len(stack) - at > max(1, len(best)):
                best = stack[at:]
            del stack[at:]

    for v in calls:
        if v not in index:
            visit(v)
    return best


def includes_up():
    """Returns lines of text, one for each header of a room above."""
    found = []
    for path in sorted(glob.glob("core/*/*.[ch]")):
        if path.startswith("core/tools/"):
            continue
        room = ROOMS.index(os.path.dirname(path)[len("core/"):])
        for header in re.findall(r'#include "core/([^"]+)"', open(path).read()):
            if header != "ctx.h" and ROOMS.index(os.path.dirname(header)) > room:
                found.append(f"{path}: {header}")
    return found


def main():
    core = os.path.join(sys.argv[1], "core")
    what = sys.argv[2] if len(sys.argv) > 2 else ""
    if what == "includes":
        print("\n".join(includes_up()))
        return
    objects = {os.path.relpath(p, core)[:-2]: symbols(p)
               for p in glob.glob(core + "/*.o") + glob.glob(core + "/*/*.o")
               if not os.path.relpath(p, core).startswith("tools/")}
    rank = {o: ROOMS.index(os.path.dirname(o)) for o in objects}
    by = collections.defaultdict(list)
    for o, (defined, _) in objects.items():
        for name in defined:
            by[name].append(o)
    calls = {o: set() for o in objects}
    up = collections.defaultdict(set)
    for o, (_, undefined) in objects.items():
        for name in undefined:
            if len(by[name]) == 1 and by[name][0] != o:
                callee = by[name][0]
                calls[o].add(callee)
                if rank[callee] > rank[o]:
                    up[callee, name].add(o)
    circle = largest_circle(calls)
    if what == "up":
        for (callee, name), callers in sorted(up.items()):
            print(f"{callee}: {name} <- {', '.join(sorted(callers))}")
    elif what == "circles":
        print("\n".join(sorted(circle)))
    else:
        print(len(up), len(circle))


sys.setrecursionlimit(10000)
main()
