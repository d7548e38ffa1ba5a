#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Looks at pages and at all that names them, for pages.sh: pages.py KIND <names of files.

Prints a line for each thing that is wrong. KIND is the name of a function below: links, names,
sections, strangers, paths, calls, variables, figures, orphans.
"""
import fnmatch
import glob
import os
import re
import sys

# Names of another library's files, of files that a script makes, and of an example.
OTHERS = re.compile(r"^include/jemalloc/|^(work|tree)/|/greet_test\.c$|^PAGE\.md$")
# Files that name files of another time, or of a tree that they make.
RECORDS = ("CHANGELOG.md", "docs/RACES.txt", "docs/SIMULATION.txt", "docs/model/BIG.txt",
           "docs/perf/beside.txt", "test/tools/lint.sh")
# Part of docs/PERF.md, which `make perf-report` writes.
PARTS = {"perf/measures.md": "docs/PERF.md"}
TOPS = "alloc|base|core|docs|include|perf|test|verbs"
ROOMS = "call|group|observe|op|protocol|read|session|value|wire"
FILES = [line.rstrip("\n") for line in sys.stdin]
ALL = {os.path.relpath(os.path.join(at, name)) for top in ([".ci"] + TOPS.split("|"))
       for at, _, names in os.walk(top) for name in names}
ALL |= {name for name in os.listdir(".") if os.path.isfile(name)}
FOLDERS = {os.path.dirname(p) for p in ALL}
FOLDERS |= {os.path.dirname(p) for p in FOLDERS}
PAGES = [p for p in FILES if p.endswith(".md")]


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def lines(path):
    """The lines of a file with their numbers."""
    return enumerate(read(path).splitlines(), 1)


def prose(path):
    """The lines of a page outside of its code."""
    code = False
    for n, line in lines(path):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            yield n, line


def headings(path):
    """The headings of a page: their words, and the anchors that they make."""
    words, anchors = [], set()
    for _, line in prose(path):
        found = re.match(r"#+ (.*)", line)
        if not found:
            continue
        title = found[1].strip()
        plain = re.sub(r"[`*]", "", title)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        n = 0
        while (slug if not n else f"{slug}-{n}") in anchors:
            n += 1
        anchors.add(slug if not n else f"{slug}-{n}")
        words.append(plain)
    return words, anchors


def page(name, by):
    """The page that a file means by a name, or nothing."""
    for at in (os.path.dirname(PARTS.get(by, by)), "", "docs", "docs/design"):
        path = os.path.normpath(os.path.join(at, name))
        if path in ALL:
            return path
    return None


def there(name, by):
    """Whether a file or folder is there: also by a pattern, without its suffix, or by a prefix."""
    tries = [name + end for end in ("", ".c", ".cc", ".h", ".sh")]
    tries += [name + "*"] * name.endswith("_")
    for at in ("", "include", "core", os.path.dirname(PARTS.get(by, by))):
        for t in tries:
            path = os.path.normpath(os.path.join(at, t))
            if path in ALL or path in FOLDERS or ("*" in path and fnmatch.filter(ALL, path)):
                return True
    return False


def links():
    for p in PAGES:
        folder = os.path.dirname(PARTS.get(p, p))
        for n, line in prose(p):
            for target in re.findall(r"\]\(([^)\s]+)\)", line):
                if re.match(r"[a-z]+:", target):
                    continue
                path, _, anchor = target.partition("#")
                to = os.path.normpath(os.path.join(folder, path)) if path else p
                if not os.path.exists(to):
                    print(f"{p}:{n}: no {target}")
                elif anchor and anchor not in headings(to)[1]:
                    print(f"{p}:{n}: no section #{anchor} in {to}")


def names():
    for p in FILES:
        if p in RECORDS:
            continue
        for n, line in lines(p):
            for name in re.findall(r"(?<![\w/$.-])(?:\.\./)*[\w/-]+\.md\b", line):
                if not OTHERS.search(name) and not page(name, p):
                    print(f"{p}:{n}: no page {name}")


def sections():
    """PAGE.md, "Section"."""
    for p in FILES:
        if p in RECORDS:
            continue
        text = re.sub(r"\n\s*(\*|#|//)?\s*", " ", read(p))
        for name, title in re.findall(r"([\w/-]+\.md)\)?, \"([^\"]+)\"", text):
            to = page(name, p)
            if to and title not in headings(to)[0]:
                print(f"{p}: no section \"{title}\" in {to}")


def strangers():
    """Pages by a name alone that no page of the tree has: FACTS 3, (FACTS)."""
    for p in FILES:
        if p in RECORDS:
            continue
        for n, line in lines(p):
            for name in re.findall(r"\b(?:FACTS|FAULTS|HOUSE|LIVING|HARDWARE|REFERENCE)\b", line):
                if p != "test/tools/pages.py":
                    print(f"{p}:{n}: {name}")


def paths():
    for p in FILES:
        if p in RECORDS:
            continue
        for n, line in lines(p):
            for name in re.findall(rf"(?<![\w/.$}}-])((?:{TOPS})/[\w/.*-]*[\w*/])", line):
                if not OTHERS.search(name) and not there(name.rstrip("/"), p):
                    print(f"{p}:{n}: no {name}")
            for name in re.findall(rf"(?<![\w/.-])((?:{ROOMS})/[\w*]+\.[ch])\b", line):
                if not there(name, p):
                    print(f"{p}:{n}: no core/{name}")


def calls():
    """Functions and macros that pages name."""
    parts = ["include/rref.h", *glob.glob("include/rref/*.h")]
    header = set(re.findall(r"\b(?:rref|RREF)_\w+", "".join(read(h) for h in parts)))
    for p in PAGES:
        if p in RECORDS:
            continue
        for n, line in prose(p):
            for name in re.findall(r"(?<![\w/.*-])(rref_[a-z][a-z0-9_]*)(?![\w*-]|\.[a-z])", line):
                if name not in header and not name.endswith("_"):
                    print(f"{p}:{n}: no {name} in include/rref.h")


def variables():
    """The table of variables has those that the library reads."""
    reads = set(re.findall(r"\"((?:RREF|MASTER)_[A-Z_]+)\"", read("core/group/options.c")))
    guide = read("docs/GUIDE.md").split("## Variables")[1]
    table = set(re.findall(r"`((?:RREF|MASTER)_[A-Z_]+)`", guide))
    for name in sorted(reads ^ table):
        print(f"{name}: in {'core/group/options.c' if name in reads else 'docs/GUIDE.md'} alone")


def figures():
    """The figures of README.md are those of docs/PERF.md."""
    rows = [line for line in read("README.md").splitlines() if re.search(r"\d (ns|us)\b", line)]
    perf, times = read("docs/PERF.md"), re.findall(r"([\d.]+) times", read("README.md"))
    for figure in re.findall(r"\d[\d.]* (?:ns|us)\b", "\n".join(rows)) + times:
        if not re.search(rf"(?<![\d.]){re.escape(figure)}", perf):
            print(f"{figure}: not in docs/PERF.md")
    if len(rows) < 3:
        print("README.md has less than three rows of figures")


def orphans():
    """Pages that no chain of links from README.md leads to."""
    seen, todo = set(), ["README.md"]
    while todo:
        p = todo.pop()
        if p in seen or not os.path.exists(p):
            continue
        seen.add(p)
        for target in re.findall(r"\]\(([^)#\s]+)", read(p)):
            if target.endswith(".md"):
                todo.append(os.path.normpath(os.path.join(os.path.dirname(p), target)))
    for p in sorted(set(PAGES) - seen - set(PARTS)):
        print(p)


globals()[sys.argv[1]]()
