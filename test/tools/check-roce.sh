#!/usr/bin/env bash
# The tests over real RDMA. First the provider's conformance, then the same worker
# processes as over shm, on one host. Then two hosts (two virtual machines) with two
# workers on each: shm inside a host and ibv between them. Last the death of a host.
# Nothing here may be skipped. Ends with `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
export RREF_TEST_NO_SKIP=1
# Two processors are emulated, and the programs that take longest mostly wait.
export RREF_TEST_JOBS=2
# Each worker registers a whole region before it begins, and an emulated machine takes long to clear
# it. demo-roce takes the default.
export RREF_REGION_BYTES=$((2 << 20))
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0
sum() { # adds the closing line of a run that printed to $log; a run without one failed
	local line
	line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
	if [ -z "$line" ]; then
		echo "no verdict from: $1"
		failed=$((failed + 1))
		return
	fi
	passed=$((passed + $(echo "$line" | sed 's/ passed.*//')))
	failed=$((failed + $(echo "$line" | sed 's/.*passed, \([0-9]*\) failed.*/\1/')))
}

# All programs except those for shared memory alone. These are the limits and enemies of its
# provider, and the limits of the machine, which are met over shm.
one=$(find test/{proc,attack,conformance,roce} -name '*.c' |
	sed 's|^test/|build/bin/|; s|\.c$||' | sort |
	grep -vE '/shm/|/proc/base/(limits|container)_test$')
# The provider's own tests come first: their failures explain the rest. The tests with the longest
# waits follow, and the others run beside them.
for t in resume resume_abuse resume_meets abuse fence stall connections; do
	one=$(grep "/${t}_test\$" <<<"$one"; grep -v "/${t}_test\$" <<<"$one")
done
RREF_VM_TIMEOUT=2400 test/tools/on-roce.sh \
	env RREF_TEST_DEVICE=ibv RREF_TEST_NO_SKIP=1 RREF_TEST_SLOW=4 \
	test/tools/run-tests.sh --title "one host, ibv" --timeout 600 $one \
	--alone test/tools/perf.sh 2>&1 | tee "$log"
sum "one host"

test/tools/deps.sh roce &&
	test/tools/progress.sh "the virtual machine's kernel" test/vm/prepare.sh || exit 1
for t in mixed death flap; do
	echo "== two hosts: $t"
	test/vm/run.sh --hosts 2 --timeout 180 -- build/bin/host/two_hosts "$t" >"$log" 2>&1
	status=$?
	grep -vE '^[0-9]+ passed' "$log"
	if [ $status -eq 0 ] && grep -qE '^[0-9]+ passed, 0 failed' "$log"; then
		sum "two hosts, $t"
	else
		echo "two hosts, $t: status $status"
		failed=$((failed + 1))
	fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
