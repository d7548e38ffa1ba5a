#!/usr/bin/env bash
# Runs a command over real SoftRoCE or better. It runs here if this machine
# has a usable RDMA device, else in the small virtual machine of test/vm.
#   on-roce.sh COMMAND [ARGS...]
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "${RREF_VM-}" != 1 ] && build/bin/rref-info --device ibv >/dev/null 2>&1; then
	exec "$@"
fi
test/tools/deps.sh roce
test/tools/progress.sh "the virtual machine's kernel" test/vm/prepare.sh
exec test/vm/run.sh --timeout "${RREF_VM_TIMEOUT:-600}" -- "$@"
