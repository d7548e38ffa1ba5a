#!/bin/bash
# Runs a command on real SoftRoCE (rdma_rxe), in one or two small virtual
# machines whose root is this host's own. See README.md beside this file.
#
# Exit status: the command's (the larger of two hosts'); 124 when the deadline passed; 125 when the
# harness failed.
# shellcheck disable=SC2317 # the trap reaches clean, and the functions it calls
set -euo pipefail

usage() {
	cat <<'U'
usage: run.sh [OPTION...] -- COMMAND [ARG...]
       run.sh --shell [OPTION...] [-- COMMAND [ARG...]]   (COMMAND: for host 1)
  --hosts 1|2        how many guests (1)
  --timeout SECONDS  deadline, the boot included; 0: none (300; --shell: 0)
  --mem MIB          memory of each guest (2048)
  --cpus N           processors of each guest (2)
  --mtu BYTES        of the netdev under rxe0 (1500)
  --icount SHIFT     times that are counts: an instruction takes 2^SHIFT ns of the guest, which is
                     emulated and has one processor
  --log DIR          where results and logs go (build/vm/out.*, kept on failure)
  --verbose          say on stderr how long things took
U
}
fail() { echo "test/vm/run.sh: $*" >&2; exit 125; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
dir=${RREF_VM_DIR:-$root/build/vm}

hosts=1 timeout='' mem=2048 cpus=2 mtu=1500 icount='' log='' mode=command verbose=0
while (($#)); do
	case $1 in
	--hosts | --timeout | --mem | --cpus | --mtu | --icount)
		[[ ${2-} =~ ^[0-9]{1,7}$ ]] || fail "$1 needs a number"
		printf -v "${1#--}" %d "$((10#$2))"
		shift 2
		;;
	--log)
		[[ -n ${2-} ]] || fail "--log needs a folder"
		log=$2
		shift 2
		;;
	--shell) mode=shell; shift ;;
	--verbose) verbose=1; shift ;;
	-h | --help) usage; exit 0 ;;
	--) shift; break ;;
	*) usage >&2; fail "unknown option: $1" ;;
	esac
done
((hosts == 1 || hosts == 2)) || fail "--hosts is 1 or 2"
((mem >= 256)) || fail "--mem is at least 256"
((cpus >= 1)) || fail "--cpus is at least 1"
((mtu >= 1280 && mtu <= 9000)) || fail "--mtu is 1280 to 9000"
[[ -z $icount ]] || ((icount <= 10 && hosts == 1)) || fail "--icount is 0 to 10, with one guest"
if [[ $mode == command ]]; then
	(($#)) || { usage >&2; fail "no command"; }
	: "${timeout:=300}"
else
	[[ -t 0 && -t 1 ]] || fail "--shell needs a terminal"
	((hosts == 1 && $#)) && fail "--shell takes a command with --hosts 2 only (for host 1)"
	(($#)) || set -- true
	: "${timeout:=0}"
fi
[[ ${RREF_VM-} != 1 ]] || fail "this is a guest already"
case $PWD/ in /dev/* | /proc/* | /sys/*) fail "cannot work in $PWD in a guest" ;; esac
case $root/ in /dev/* | /proc/* | /sys/*) fail "sources in $root are out of a guest's reach" ;; esac

qemus=() helpers=() tmp='' made_log='' tty=''
declare -A gone

# Tells whether one of our own processes runs. It asks this shell's job table, so that it never
# means another process that got the same number meanwhile.
running() {
	jobs -rp >"$tmp/jobs"
	mapfile -t jobs <"$tmp/jobs"
	local pid
	for pid in "${jobs[@]}"; do [[ $pid == "$1" ]] && return 0; done
	return 1
}
pause() { read -rt "$1" -u "$tick" _ || true; } # sleep, without a process

end() { # PID...: ends those processes of ours, and waits
	local pid i
	for pid; do running "$pid" && kill "$pid" 2>/dev/null; done
	for pid; do
		for ((i = 0; i < 30; i++)); do running "$pid" || break; pause 0.1; done
		if running "$pid"; then kill -KILL "$pid" 2>/dev/null || true; fi
		wait "$pid" 2>/dev/null || true
	done
}

clean() {
	local status=$?
	trap '' INT TERM HUP
	set +e
	if [[ -n $tmp && -d $tmp ]]; then
		end "${qemus[@]}" "${helpers[@]}"
		save_logs
		rm -rf "$tmp"
	fi
	[[ -n $tty ]] && stty "$tty" 2>/dev/null
	if [[ -n $made_log && -d $made_log ]]; then
		# The logs of a good run that wrote no results are of no use.
		if ((status == 0)) &&
			[[ -z $(find "$made_log"/host? "$made_log/shared" -type f -print -quit) \
			]]; then
			rm -rf "$made_log"
		else
			echo "test/vm/run.sh: results and logs in $made_log" >&2
		fi
	fi
	exit "$status"
}
save_logs() {
	local f
	for f in "$tmp"/ctl/host?.{out,dmesg} "$tmp"/host?.qemu; do
		[[ -s $f ]] && cp "$f" "$log/"
	done
}

"$here/prepare.sh" || fail "prepare.sh failed"

if [[ -n $log ]]; then
	mkdir -p "$log" 2>/dev/null || true
	[[ -w $log ]] || fail "cannot write to the folder $log"
	log=$(cd "$log" && pwd -P)
	# The remains of an earlier run must not be taken for this one's.
	rm -rf "$log"/host[01] "$log"/shared "$log"/host[01].{out,dmesg,console,qemu}
else
	log=$(mktemp -d "$dir/out.XXXXXX" 2>/dev/null) ||
		fail "cannot write to $dir (use --log or RREF_VM_DIR)"
	chmod 755 "$log"
	made_log=$log
fi

trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
tmp=$(mktemp -d) || fail "cannot make a temporary folder"
mkdir "$tmp/ctl"
mkfifo "$tmp/tick"
exec {tick}<>"$tmp/tick"

# The command and its environment, as a script: quoted by bash, read by bash.
{
	printf 'cd -- %q || exit 125\n' "$PWD"
	for v in $(compgen -e); do
		case $v in
		RREF_VM | RREF_VM_*) ;; # run.sh's own
		RREF_* | CI) printf 'export %s=%q\n' "$v" "${!v}" ;;
		esac
	done
	printf 'exec'
	printf ' %q' "$@"
	echo
} >"$tmp/ctl/command"
read -r rows cols < <(stty size 2>/dev/null || echo 24 80)
{
	printf '%s=%q\n' hosts "$hosts" cwd "$PWD" root "$root" mtu "$mtu" mode "$mode" \
		rows "$rows" cols "$cols" term "${TERM-}" \
		moddir "$(cd "$dir" && pwd -P)/modules/lib/modules/$(cat "$dir/version")"
} >"$tmp/ctl/config"
cp "$here/guest.sh" "$tmp/ctl/guest.sh"
mkdir -p "$log/shared"

[[ -z $icount ]] || RREF_VM_ACCEL=tcg
accel=${RREF_VM_ACCEL:-$(head -n 1 "$dir/accel" 2>/dev/null || true)}
[[ -n ${RREF_VM_ACCEL-} || -w /dev/kvm ]] || accel=tcg # another user's finding
# Emulated with all processor features except two. 5-level page tables cost time at each TLB miss.
# The fast string instructions are emulated byte by byte: copies and clears take two to nine times
# as long by them. There is one thread for each virtual processor.
append='console=ttyS0 quiet panic=-1 oops=panic mitigations=off'
case ${accel:=tcg} in
tcg)
	machine=(-accel 'tcg,thread=multi' -cpu 'max,la57=off,erms=off,fsrm=off')
	# Code is translated for the addresses that it runs at. With address randomisation it would
	# be translated anew for each process.
	append+=' clearcpuid=rep_good init_on_alloc=0 norandmaps'
	;;
kvm) machine=(-accel kvm -cpu host) ;;
*) fail "RREF_VM_ACCEL is tcg or kvm" ;;
esac
# Linux does not come up with two processors: one waits for the other while its time stands still.
[[ -z $icount ]] ||
	{ machine[1]=tcg,thread=single machine+=(-icount "shift=$icount,sleep=off") cpus=1; }
# An emulated time stamp counter is the host's. Left alone, Linux finds it
# unsynchronised and reads the time from an emulated HPET: microseconds a time.
grep -qm1 '^flags.* constant_tsc' /proc/cpuinfo && append+=' tsc=reliable'

start() { # HOST
	local h=$1 net=() serial=(-serial "file:$log/host$1.console") in=/dev/null
	mkdir -p "$log/host$h"
	: >"$tmp/ctl/host$h.out"
	if ((hosts == 2)); then
		local server=on
		((h == 0)) || server=off
		# A relative path: the length of a socket's name is limited.
		net=(-netdev "stream,id=n,server=$server,addr.type=unix,addr.path=net"
			-device "virtio-net-pci,netdev=n,mac=52:54:00:10:77:0$((h + 1)),romfile=")
	fi
	if [[ $mode == shell && $h == 0 ]]; then
		serial=(-chardev 'stdio,id=tty,signal=off' -serial chardev:tty)
		in=/dev/tty
	fi
	# pdeathsig: no guest outlives this script, however that ends.
	local qemu=(setpriv --pdeathsig KILL qemu-system-x86_64
		-name "host$h" -M q35 "${machine[@]}" -smp "$cpus" -m "$mem"
		-no-user-config -nodefaults -display none -no-reboot
		-kernel "$(cd "$dir" && pwd -P)/vmlinux" -initrd "$(cd "$dir" && pwd -P)/initramfs"
		-append "$append rref.host=$h" "${serial[@]}" "${net[@]}"
		-fsdev 'local,id=h,path=/,security_model=none,readonly=on,multidevs=remap'
		-device 'virtio-9p-pci,fsdev=h,mount_tag=hostroot'
		-fsdev 'local,id=c,path=ctl,security_model=none' -device \
			'virtio-9p-pci,fsdev=c,mount_tag=ctl'
		-fsdev "local,id=o,path=${log//,/,,},security_model=none" -device \
			'virtio-9p-pci,fsdev=o,mount_tag=out')
	cd "$tmp"
	if [[ $in == /dev/tty ]]; then
		"${qemu[@]}" <"$in" 2>"$tmp/host$h.qemu" &
	else
		"${qemu[@]}" <"$in" >"$tmp/host$h.qemu" 2>&1 &
	fi
	qemus+=("$!")
	cd "$OLDPWD"
	((h == 0)) && [[ $mode == shell ]] && return
	if ((h == 0)); then
		tail -f -s 0.1 -c +1 --pid="$!" "$tmp/ctl/host$h.out" 2>/dev/null &
	else
		mkfifo "$tmp/prefix"
		local qemu_pid=$!
		sed -u 's/^/[host1] /' <"$tmp/prefix" &
		helpers+=("$!")
		tail -f -s 0.1 -c +1 --pid="$qemu_pid" "$tmp/ctl/host$h.out" >"$tmp/prefix" \
			2>/dev/null &
	fi
	helpers+=("$!")
}

harness() { # MESSAGE, HOST: ends the run, and shows the logs
	local h=$2
	{
		tail -n 60 "$tmp/host$h.qemu"
		[[ -e $log/host$h.console ]] && tail -n 60 "$log/host$h.console"
	} 2>/dev/null | sed "s/^/  host$h| /" >&2 || true
	[[ -n $made_log ]] || echo "test/vm/run.sh: logs in $log" >&2
	fail "$1"
}

[[ $mode == shell ]] && tty=$(stty -g)
SECONDS=0
began=${EPOCHREALTIME/[.,]/}
since() { local us=$((${EPOCHREALTIME/[.,]/} - began)); printf -v took '%d.%02d' $((us / 1000000)) \
	$((us / 10000 % 100)); }

start 0
if ((hosts == 2)); then
	until [[ -S $tmp/net ]]; do
		running "${qemus[0]}" || harness "host0's QEMU did not start" 0
		((SECONDS < 20)) || harness "host0's QEMU made no network socket in 20 s" 0
		pause 0.05
	done
	start 1
fi

# A guest that does not come up is a fault of the harness, not a slow test.
boot_limit=120
up=0 result=0 said=0
while :; do
	if ((!up && SECONDS >= said + 5)) && [[ $mode == command ]]; then
		said=$SECONDS
		echo "test/vm: the virtual machine starts, $said s" >&2
	fi
	ended=0 ready=0 finished=0
	for ((h = 0; h < hosts; h++)); do
		c=$tmp/ctl/host$h
		# Asked before the status is looked at: a guest writes it, then ends.
		alive=1
		running "${qemus[h]}" || alive=0
		[[ -e $c.failed ]] && harness "host$h: $(cat "$c.failed")" "$h"
		[[ -e $c.ready ]] && ready=$((ready + 1))
		[[ -e $c.status ]] && finished=$((finished + 1))
		if ((!alive)); then
			[[ -e $c.status ]] ||
				harness "host$h ended before its command did (a panic?)" "$h"
			[[ -n ${gone[$h]-} ]] || gone[$h]=1
			ended=$((ended + 1))
		fi
	done
	if ((!up && ready == hosts)); then
		up=1
		: >"$tmp/ctl/go"
		since
		((!verbose)) || echo "test/vm/run.sh: rxe0 up after $took s ($accel)" >&2
	fi
	((finished < hosts)) || : >"$tmp/ctl/end"
	((ended < hosts)) || break
	if ((timeout && SECONDS >= timeout)); then
		for ((h = 0; h < hosts; h++)); do
			c=$tmp/ctl/host$h
			if [[ -e $c.status ]]; then
				echo "test/vm/run.sh: host$h: exit status $(cat "$c.status")" >&2
			elif [[ -e $c.ready ]]; then
				echo "test/vm/run.sh: host$h: command still running" >&2
			else
				echo "test/vm/run.sh: host$h: still booting" >&2
			fi
		done
		echo "test/vm/run.sh: deadline of $timeout s passed" >&2
		result=124
		break
	fi
	((up || SECONDS < boot_limit)) ||
		harness "no rxe0 after $boot_limit s" "$((hosts == 2 && ready == 1 ? 1 : 0))"
	if [[ $mode == shell && -e $tmp/ctl/host0.status ]]; then
		end "${qemus[@]}" # host 1 is there for the shell only
		break
	fi
	pause 0.1
done
if ((result == 124)); then
	end "${qemus[@]}"
fi
# tail ends once its QEMU has; the last lines are still to be shown.
for pid in "${helpers[@]}"; do
	for ((i = 0; i < 600; i++)); do running "$pid" || break; pause 0.1; done
done
end "${helpers[@]}"

if ((result == 0)); then
	for ((h = 0; h < hosts; h++)); do
		[[ $mode == shell && $h == 1 ]] && break
		status=$(cat "$tmp/ctl/host$h.status")
		[[ $status =~ ^[0-9]+$ ]] || fail "host$h left no exit status but '$status'"
		((status <= result)) || result=$status
	done
fi
since
((!verbose)) || echo "test/vm/run.sh: exit status $result after $took s" >&2
exit "$result"
