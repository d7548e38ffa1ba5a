#!/usr/bin/env bash
# Counts one read over SoftRoCE, in a guest whose time is its instructions. So ratios repeat to the
# third digit, and other work on the machine does not show. Prints JSON lines; their times are 4 ns
# for each instruction.
#   test/vm/run.sh --icount 2 -- perf/counted.sh
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
failed=0
run() { build/bin/rref-perf "$@" --device ibv --json --seconds 1 --rounds 1 || failed=1; }

run lat --sizes 8 >/dev/null # what comes first loads drivers, and pages
run lat --sizes 8,4k,64k
run lat --headed --sizes 8,4k,64k
run bw --sizes 1m
if command -v ib_read_bw >/dev/null; then
	ip=$(ip -4 -o addr show | grep -oE '([0-9]{1,3}\.){3}[0-9]{1,3}' |
		grep -v '^127\.' | head -n 1)
	ib_read_bw -F -s 1048576 -n 64 -p 18599 >/dev/null 2>&1 &
	server=$!
	sleep 2
	ib_read_bw -F -s 1048576 -n 64 -p 18599 "$ip" 2>/dev/null |
		awk '/^ *1048576 / {
			printf "{\"op\":\"bw\",\"peer\":\"perftest\",\"device\":\"ibv\","
			printf "\"bytes\":1048576,\"bytes_per_s\":%.1f}\n", $4 * 1048576
		}'
	wait "$server" || failed=1
fi
exit $failed
