#!/usr/bin/env bash
# Tests run-tests.sh: it counts passed, failed and skipped tests; its limit ends a program, later on
# a busy machine, and says so; deadlines inside of the tests follow the load. Slow work under the
# progress lock fails the run.   runner.sh
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
run=$PWD/test/tools/run-tests.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
unset RREF_TEST_SLOW RREF_TEST_TIMEOUT RREF_TEST_JOBS RREF_TEST_NO_SKIP RREF_TEST_LOAD
said=$tmp/out
program() { # NAME: a test program, of standard input
	{ echo '#!/bin/bash'; cat; } >"$tmp/$1"
	chmod +x "$tmp/$1"
}

program good <<<'exit 0'
program bad <<<'echo what went wrong; exit 3'
program counted <<<'echo "7 passed, 2 failed"; exit 1'
program skipping <<<'echo "[  PASSED  ] 2 test(s)."; echo "[  SKIPPED ] 1 test(s)"
echo "skipped: no such thing here"'
program slow <<<'echo "slow=${RREF_TEST_SLOW-}" >"$0.slow"; sleep 4'
program stubborn <<<'trap "" TERM; while :; do sleep 0.2; done'
program long <<<'sleep 13'

"$run" --jobs 2 "$tmp"/{good,bad,counted,skipping} >"$said" 2>&1
status=$?
check "the verdict is the exit status" [ $status -eq 1 ]
check "totals" says '^10 passed, 3 failed, 1 skipped$'
check "the log of what failed" says '^    \| what went wrong$'
check "the reason of a skipped test" says '^    skipped: no such thing here$'
check "the failed programs" says '^failed: bad counted$'
RREF_TEST_NO_SKIP=1 "$run" "$tmp/skipping" >"$said" 2>&1
check "no skip allowed" says '^2 passed, 1 failed, 0 skipped$'

RREF_TEST_LOAD=0 "$run" --timeout 1 "$tmp/slow" --alone "$tmp/good" >"$said" 2>&1
check "over the limit" says '^FAILED +slow .*over the limit of 1 s'
check "the line names the variable and the load" says \
	'load average 0\.00 on [0-9]+ processors; RREF_TEST_TIMEOUT='
check "the next program runs" says '^1 passed, 1 failed'
check "a quiet machine's deadlines" grep -qx slow=1 "$tmp/slow.slow"
many=$((20 * $(nproc)))
RREF_TEST_LOAD=$many.50 "$run" --timeout 1 "$tmp/slow" >"$said" 2>&1
check "the same program has longer on a busy machine" says '^1 passed, 0 failed'
check "and longer deadlines inside" grep -qxE 'slow=[5-9]' "$tmp/slow.slow"
RREF_TEST_SLOW=3 RREF_TEST_LOAD=$many "$run" --timeout 1 "$tmp/slow" >"$said" 2>&1
check "a factor that was given stays" grep -qx slow=3 "$tmp/slow.slow"
RREF_TEST_LOAD=$many "$run" "$tmp/bad" >"$said" 2>&1
check "a failure on a busy machine names the remedies" says \
	'RREF_TEST_JOBS=.*RREF_TEST_SLOW=.*RREF_TEST_TIMEOUT='
RREF_TEST_LOAD=0 "$run" "$tmp/bad" >"$said" 2>&1
check "on a quiet one it does not" not says 'RREF_TEST_JOBS='

RREF_TEST_LOAD=0 "$run" --timeout 1 "$tmp/stubborn" >"$said" 2>&1
check "a program that ignores SIGTERM is ended too" says '^0 passed, 1 failed'
"$run" "$tmp/long" >"$said" 2>&1
check "the running programs are named in a silence" says '^   \.\.\. long \(load average'

slow_test=build/bin/unit/base/slow_test
"$run" "$slow_test" >"$said" 2>&1
check "no slow work" says '^[0-9]+ passed, 0 failed'
check "no process shared its counts" not says '^longest hold'
RREF_TEST_PLANT=1 "$run" "$slow_test" >"$said" 2>&1
check "slow work fails the run" says '^[0-9]+ passed, 1 failed'
check "it is told what it was" says '^FAILED: slow work .*not in .*slow\.txt:.* hook'
check "the figure is one line" \
	says '^longest hold of the lock: [0-9]+ us of work .* holds with slow work: [0-9]+ of .*\(.*hook '
printf 'hook reason\nwait reason\ntrace reason\ncopy reason\nthread reason\n' >"$tmp/known"
truncate -s 4096 "$tmp/holds"
RREF_TEST_PLANT=1 RREF_TEST_HOLDS=$tmp/holds "$slow_test" >"$said" 2>&1
check "known kinds pass" run test/tools/holds.sh "$tmp/holds" "$tmp/known"
sed -i /wait/d "$tmp/known"
check "an unknown one among them does not" fails test/tools/holds.sh "$tmp/holds" "$tmp/known"
check "and is named alone" says 'slow\.txt: wait |known: wait '
RREF_TEST_PLANT=1 RREF_TEST_HOLDS_STOP=hook "$slow_test" >"$said" 2>&1
check "a process is ended at the kind that is asked for" [ $? -ne 0 ]

finish
