#!/usr/bin/env bash
# The worker processes again in the two other progress modes: a poller that never sleeps, and none at all.
#   modes.sh [BUILD_DIR]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
bin=${1:-build}/bin
passed=0 failed=0
for mode in poll manual; do
	themes="calls deferred creating reading chains"
	# Pollers that never sleep take the cores from each other: what has many workers runs without any only.
	jobs=1
	[ $mode = manual ] && themes="$themes group sharing leaving faults beyond" jobs=${RREF_TEST_JOBS:-1}
	out=$(RREF_TEST_PROGRESS=$mode test/tools/run-tests.sh --title "progress: $mode" --jobs "$jobs" \
		"$bin"/proc/{spine,calls,payload,refs,futures,batch,shutdown}_test \
		$(printf "$bin/conformance/%s " $themes))
	echo "$out"
	line=$(tail -n 1 <<<"$out")
	passed=$((passed + $(sed 's/ passed.*//' <<<"$line")))
	failed=$((failed + $(sed 's/.*passed, \([0-9]*\) failed.*/\1/' <<<"$line")))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
