#!/bin/bash
# Process 1 of the guest after init, in the host's root. It makes the RDMA device,
# runs the command, records its status, and powers the guest off. run.sh puts it into
# the ctl share, with the files `config` and `command`.
set -uo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

vm=/.rref-vm
read -r cmdline </proc/cmdline
[[ $cmdline =~ rref\.host=([01]) ]] && host=${BASH_REMATCH[1]}
# run.sh writes these into config; the defaults are for the reader's eye.
hosts=1 cwd=/ mtu=1500 mode=command rows=24 cols=80 term=''
# shellcheck source=/dev/null
. $vm/ctl/config

off() {
	sync
	echo o >/proc/sysrq-trigger
	sleep 60 # the power goes in another context
}

fail() { # a fault of the harness, not of the command
	echo "guest: $*" >/dev/ttyS0
	echo "$*" >"$vm/ctl/host$host.failed"
	off
}

must() { "$@" || fail "failed: $*"; }

name=host$host
echo "$name" >/proc/sys/kernel/hostname
echo "$name" >/etc/hostname

# Linux clears 2 MiB for a process that touches a few KB of a large
# mapping. Under emulation that takes 30 ms.
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled

# Each process loads the drivers of all possible devices before it looks at devices. That takes
# longer than the rest of its start.
for f in /etc/libibverbs.d/*.driver; do
	[[ $f == */rxe.driver ]] || echo "$f"
done | xargs -r rm

# The commands run in batches: under emulation, starting a program takes longer than its work.
netdev=eth0
((hosts == 2)) || netdev=d0
{
	echo link set lo up
	((hosts == 2)) || echo link add d0 type dummy
	echo link set "$netdev" mtu "$mtu"
	echo addr add "10.77.0.$((host + 1))/24" dev "$netdev"
	echo link set "$netdev" up
} >$vm/ip
must ip -batch $vm/ip
must rdma link add rxe0 type rxe netdev "$netdev"

# The GID table is filled by a work queue, after the command above returns.
rxe_up() {
	local state gid
	read -r state <"$port/state" && [[ $state == *ACTIVE* ]] || return 1
	for gid in "$port"/gids/[0-9]; do
		read -r gid <"$gid" && [[ $gid == *:0a4d:000$((host + 1)) ]] && return 0
	done 2>/dev/null
	return 1
}
port=/sys/class/infiniband/rxe0/ports/1
for ((i = 0; ; i++)); do
	rxe_up && break
	((i < 200)) || fail "rxe0 is not active after 20 s"
	sleep 0.1
done
for f in uverbs0 rdma_cm; do
	[[ -c /dev/infiniband/$f ]] || fail "no /dev/infiniband/$f"
done

export RREF_VM_OUT=$vm/out/host$host RREF_VM_SHARED=$vm/out/shared
export RREF_VM=1 RREF_VM_HOST=$host RREF_VM_HOSTS=$hosts RREF_VM_NETDEV=$netdev
export HOME=/root LANG=C.UTF-8
ulimit -l unlimited
ulimit -Hn 1048576
echo "$cmdline" >"$vm/ctl/host$host.ready"

# No command starts before both devices are up, with two hosts.
((hosts == 1)) || until [[ -e $vm/ctl/go ]]; do sleep 0.1; done

if [[ $mode == shell && $host == 0 ]]; then
	export TERM=${term:-linux}
	cd "$cwd" || fail "cannot enter $cwd"
	stty -F /dev/ttyS0 sane rows "$rows" cols "$cols"
	# A session of its own with the serial line as its terminal: job control.
	setsid -w -c /bin/bash -i </dev/ttyS0 >/dev/ttyS0 2>&1
	status=$?
else
	# The output goes through a pipe and not straight into the shared file. So small writes are
	# gathered, and /dev/stderr can be opened. The data is on the host when cat's write returns,
	# so that nothing is lost when the guest ends.
	mkfifo "$vm/output"
	cat <"$vm/output" >>"$vm/ctl/host$host.out" &
	cat=$!
	setsid -w /bin/bash "$vm/ctl/command" </dev/null >"$vm/output" 2>&1
	status=$?
	# A remaining process may hold the pipe open: the wait for it is short.
	for ((i = 0; i < 20; i++)); do
		kill -0 "$cat" 2>/dev/null || break
		sleep 0.1
	done
fi

dmesg >"$vm/ctl/host$host.dmesg"
sync
echo "$status" >"$vm/ctl/host$host.status.new"
mv "$vm/ctl/host$host.status.new" "$vm/ctl/host$host.status"
# A host stays until its peer is done: its death would be an event of its own.
((hosts == 1)) || until [[ -e $vm/ctl/end ]]; do sleep 0.1; done
off
