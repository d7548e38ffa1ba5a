#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions of reads around the calls of the device's driver, from callgrind's files.

around.py [FUNCTION] FILE...: takes the file with the most calls of the function, by default
rref_to_here, and prints a JSON line. A call into an object named as a library of verbs is the
driver's, with all that it calls. So is a call of the fake devices in test/fake.
"""
import json
import re
import sys

DRIVER = re.compile(r"/lib(ibverbs|rdmacm|[a-z0-9]+-rdmav\d+)\.so")
FAKE = ("fv_post_send", "fv_poll_cq")


def name_of(known, said):
    """Resolves "(12) name" and "(12)"."""
    number, name = re.fullmatch(r"\((\d+)\)(?: (.*))?", said).groups()
    if name is not None:
        known[number] = name
    return known.get(number, "")


def count(path, function):
    """The calls of the function, the instructions of all of them, and of these the driver's."""
    objects, functions = {}, {}
    reads = total = driver = 0
    ours = called = callee = ""
    calls = None
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            line = line.rstrip("\n")
            key, _, said = line.partition("=")
            if key == "ob":
                ours = called = name_of(objects, said)
            elif key == "cob":
                called = name_of(objects, said)
            elif key in ("fn", "cfn"):
                callee = name_of(functions, said)
            elif key == "calls":
                calls = int(said.split()[0])
            elif line.startswith("totals:"):
                total = int(line.split()[1])
            elif calls is not None and line:
                # The line after "calls=": a position, and the cost of all of these calls.
                if callee in FAKE or DRIVER.search(called) and not DRIVER.search(ours):
                    driver += int(line.split()[1])
                if callee == function:
                    reads += calls
                calls, called = None, ours
    return reads, total, driver


def main():
    function = "rref_to_here"
    if re.fullmatch(r"\w+", sys.argv[1]):
        function = sys.argv.pop(1)
    reads, total, driver = max(count(path, function) for path in sys.argv[1:])
    if not reads or not driver:
        sys.exit("around.py: no reads, or no driver, in " + " ".join(sys.argv[1:]))
    print(json.dumps({"op": "path", "device": "ibv", "bytes": 8, "reads": reads,
                      "instructions": round((total - driver) / reads),
                      "with_driver": round(total / reads)}))


if __name__ == "__main__":
    main()
