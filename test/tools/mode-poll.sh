#!/usr/bin/env bash
# Runs the worker processes again in one of the two other progress modes. The mode is this file's
# name (mode-manual.sh is a link). poll: a poller that never sleeps; manual: no poller at all.
#   mode-poll.sh [BUILD_DIR]
set -uo pipefail
mode=$(basename "$0" .sh)
mode=${mode#mode-}
cd "$(dirname "$0")/../.." || exit 1
bin=${1:-build}/bin
themes="calls deferred creating reading chains"
# Pollers that never sleep compete for the cores: programs with many workers run without any only.
[ "$mode" = manual ] && themes="$themes group sharing leaving faults beyond"
# shellcheck disable=SC2046
RREF_TEST_PROGRESS=$mode exec test/tools/run-tests.sh --title "progress: $mode" --jobs 1 \
	"$bin"/proc/{spine,poller,shutdown,serving}_test \
	"$bin"/proc/base/{hooks,hook_rules,log,sleepers,lock_turns}_test \
	"$bin"/proc/call/{calls,passed_on,payload,payload_ends}_test \
	"$bin"/proc/{op/futures,read/batch,session/peer_down,value/refs}_test \
	$(printf "$bin/conformance/%s " $themes)
