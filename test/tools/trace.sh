#!/usr/bin/env bash
# Trace files and dumps as others read them: by a JSON parser. Begins and ends match. Keys
# and names are in their places for a viewer. The remains of a killed worker can be read too.
#   trace.sh [BUILD_DIR]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
build=${1:-build}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if ! RREF_TEST_TRACE_DIR=$tmp timeout $((120 * ${RREF_TEST_SLOW:-1})) \
	"$build/bin/proc/base/scopes_test" >"$tmp/log" 2>&1; then
	cat "$tmp/log"
	echo "0 passed, 1 failed"
	exit 1
fi
python3 - "$tmp" <<'END'
import collections, glob, json, sys

passed = failed = 0


def check(name, ok):
    global passed, failed
    passed += bool(ok)
    failed += not ok
    if not ok:
        print("FAILED", name)


def events(path, ended):
    text = open(path).read()
    check(path + ": closing bracket", text.endswith("\n]\n") == ended)
    return json.loads(text if ended else text + "]")


for path, worker, ended in (("whole.0", "worker0", True), ("whole.1", "worker1", True),
                            ("killed.0", "worker0", False)):
    es = events("%s/%s.json" % (sys.argv[1], path), ended)
    scopes = [e for e in es if e["ph"] in "Xbe"]
    names = {e["args"]["name"] for e in es if e["name"] == "process_name"}
    check(path + ": process is the worker", names == {worker})
    check(path + ": there are scopes", scopes)
    check(path + ": rank is the process", all(e["pid"] == int(path[-1]) for e in es))
    threads = {e["tid"] for e in es if e["name"] == "thread_name"}
    check(path + ": every thread has a name", all(e["tid"] in threads for e in scopes))
    check(path + ": times", all(e["ts"] > 0 for e in scopes) and
          all(e["dur"] >= 0 for e in scopes if e["ph"] == "X"))
    check(path + ": names are keys", all("#" in e["name"] and ")->(" in e["name"] for e in scopes))
    begins = {(e["id"], e["name"]): e["ts"] for e in scopes if e["ph"] == "b"}
    ends = {(e["id"], e["name"]): e["ts"] for e in scopes if e["ph"] == "e"}
    check(path + ": each begin has its end", begins.keys() == ends.keys())
    check(path + ": in that order", all(begins[k] <= ends[k] for k in begins if k in ends))
    check(path + ": no id twice", len(begins) == sum(e["ph"] == "b" for e in scopes) ==
          sum(e["ph"] == "e" for e in scopes))
    if path == "whole.0":
        count = collections.Counter(e["name"].split("#")[0] for e in scopes if e["ph"] != "e")
        check(path + ": one of each kind, two where both sides were read",
              count == {"new": 1, "alloc": 1, "remote": 1, "to_here": 2, "to_here_into": 1,
                        "to_here_batch": 1, "to_here_async": 2, "rpc_sync": 1, "rpc_async": 1,
                        "fork": 1})
print("%d passed, %d failed" % (passed, failed))
sys.exit(failed != 0)
END
