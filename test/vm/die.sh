#!/bin/bash
# Kills the host for a test: ends the guest it runs in at once (no DREQ,
# no FIN). Before that it records STATUS as that host's exit status.
#   die.sh [STATUS]
set -euo pipefail
[[ ${RREF_VM-} == 1 ]] || { echo "die.sh: not in a guest of test/vm/run.sh" >&2; exit 125; }
echo "${1-0}" >"/.rref-vm/ctl/host$RREF_VM_HOST.status"
echo b >/proc/sysrq-trigger # with -no-reboot: QEMU ends
sleep 60
