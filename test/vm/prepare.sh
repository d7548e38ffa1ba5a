#!/bin/bash
# Makes the kernel and the initramfs that run.sh boots, cached in build/vm/.
#
#   prepare.sh              make the missing files (returns at once if there are none)
#   prepare.sh --packages   print the Debian packages that test/vm needs
#
# The kernel is Debian's own, downloaded and unpacked but never installed. The host keeps its
# kernel, and needs no RDMA module.
set -euo pipefail

# Every package test/vm uses, the test programs of selftest.sh included.
packages=(
	qemu-system-x86 kmod busybox-static cpio xz-utils util-linux
	iproute2 ibverbs-utils ibverbs-providers rdmacm-utils perftest
)

# The initramfs loads these, in this order, before the host's root is entered. crc32_generic: rxe
# computes a CRC of every packet with the module loaded by then. crc32_pclmul, which Linux would
# choose, is slower under emulation.
boot_modules=(
	virtio_pci 9pnet_virtio 9p overlay
	crc32_generic dummy virtio_net ib_uverbs rdma_rxe rdma_ucm
)
# Kept for `modprobe` in the guest: links and link faults.
extra_modules=(
	crc32_pclmul veth tun ifb bridge macvlan
	sch_netem sch_tbf sch_prio sch_ingress cls_u32 cls_matchall act_mirred
	nf_tables nft_limit nft_ct nft_numgen ip_tables iptable_filter xt_statistic xt_u32
)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
dir=${RREF_VM_DIR:-$root/build/vm}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # kmod's programs, for ordinary users

die() { echo "test/vm/prepare.sh: $*" >&2; exit 1; }

case ${1-} in
'') ;;
--packages) printf '%s\n' "${packages[@]}"; exit 0 ;;
*) die "usage: prepare.sh [--packages]" ;;
esac

busybox=$(command -v busybox || true)

# One line names all missing commands, so that one apt-get mends it.
missing=()
needs() { # PACKAGE COMMAND...
	local package=$1 c
	shift
	for c; do
		command -v "$c" >/dev/null || { missing+=("$package"); return 0; }
	done
}
needs qemu-system-x86 qemu-system-x86_64
needs kmod depmod modprobe
needs cpio cpio
needs xz-utils xz
needs util-linux flock setpriv setsid
needs iproute2 ip rdma
needs ibverbs-utils ibv_rc_pingpong
needs rdmacm-utils rping
needs perftest ib_read_lat
compgen -G '/usr/lib/*/libibverbs/librxe*.so' >/dev/null ||
	compgen -G '/usr/lib/libibverbs/librxe*.so' >/dev/null ||
	missing+=(ibverbs-providers)
# The shared busybox of package `busybox` cannot run in an initramfs.
if [[ -z $busybox ]] || ! { ldd "$busybox" 2>&1 || true; } |
	grep -qE 'not a dynamic|statically'; then
	missing+=(busybox-static)
fi
((${#missing[@]} == 0)) ||
	die "missing Debian packages: ${missing[*]} (apt-get install ${missing[*]})"
[[ $(uname -m) == x86_64 ]] || die "needs an x86_64 machine, not $(uname -m)"

# The usability of KVM is a fact about this machine, not about the files: some have a /dev/kvm that
# starts nothing. Boot once and see; remember.
machine=$(uname -r; grep -m1 '^model name' /proc/cpuinfo || true)
probe_accel() {
	local accel=tcg log=$dir/probe.$$ pid end
	if [[ -r /dev/kvm && -w /dev/kvm ]]; then
		echo "test/vm: trying KVM (8 s at most, once)" >&2
		setpriv --pdeathsig KILL qemu-system-x86_64 -accel kvm -cpu host \
			-M q35 -m 512 -smp 2 -no-user-config -nodefaults -display none -no-reboot \
			-kernel "$dir/vmlinux" -initrd "$dir/initramfs" -serial "file:$log" \
			-append 'console=ttyS0 quiet panic=-1 rref.probe' </dev/null >/dev/null \
			2>&1 &
		pid=$!
		trap 'kill -KILL "$pid" 2>/dev/null || true' EXIT
		end=$((SECONDS + 8))
		while ((SECONDS < end)) && [[ -n $(jobs -rp) ]]; do sleep 0.2; done
		[[ -n $(jobs -rp) ]] && kill -KILL "$pid"
		wait "$pid" 2>/dev/null || true
		trap - EXIT
		grep -qs 'rref probe ok' "$log" && accel=kvm
		rm -f "$log"
	fi
	printf '%s\n' "$accel" "$machine" >"$dir/accel.new"
	mv "$dir/accel.new" "$dir/accel"
}

# Two stamps, so that a change of init does not download the kernel again.
kernel_stamp="2 ${boot_modules[*]} ${extra_modules[*]} ${RREF_VM_KERNEL_DEB-}"
initramfs_stamp=$(cat "$here/prepare.sh" "$here/init" | cksum)
stamped() { [[ -s $dir/$1 && $(cat "$dir/$1.stamp" 2>/dev/null) == "$2" ]]; }
fresh() { stamped vmlinux "$kernel_stamp" && stamped initramfs "$initramfs_stamp"; }
probed() { [[ $(tail -n +2 "$dir/accel" 2>/dev/null) == "$machine" ]]; }

# Files that another user made are as good, if they are there.
fresh && { probed || [[ ! -w $dir ]]; } && exit 0

mkdir -p "$dir" 2>/dev/null || true
[[ -w $dir ]] || die "cannot write $dir (set RREF_VM_DIR to a folder of your own)"
exec {lock}>"$dir/lock"
flock -w 300 "$lock" || die "another prepare.sh has held $dir/lock for 300 s"

# The files to load for a module, in order. No configuration of the host's.
depends() { # FOLDER VERSION MODULE
	modprobe -C /dev/null -d "$1" -S "$2" --show-depends "$3" |
		sed -n 's/^insmod \([^ ]*\) *$/\1/p'
}

make_kernel() {
	local work=$1 deb=${RREF_VM_KERNEL_DEB:-} image version vmlinuz m name path

	if [[ -z $deb ]]; then
		image=$(apt-cache depends linux-image-amd64 2>/dev/null |
			sed -n 's/^.*Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
		[[ -n $image ]] || die "apt knows no package linux-image-amd64 (apt-get update?)"
		echo "test/vm: downloading $image" >&2
		# Unsandboxed: apt's own user need not be able to write here.
		(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$image") >&2 ||
			die "apt-get download $image failed (apt-get update?)"
		deb=$(compgen -G "$work/linux-image-*.deb") ||
			die "apt-get download left no package"
	fi
	dpkg -x "$deb" "$work/deb" || die "cannot unpack $deb"
	vmlinuz=$(compgen -G "$work/deb/boot/vmlinuz-*") || die "$deb holds no kernel"
	version=${vmlinuz##*/vmlinuz-}

	# Unpacking the kernel here, once, saves 3 s of every boot: emulated, xz is
	# slow. The header's fields are those of the x86 boot protocol.
	local sects offset length
	sects=$(od -An -tu1 -j $((0x1f1)) -N1 "$vmlinuz")
	offset=$(od -An -tu4 -j $((0x248)) -N4 "$vmlinuz")
	length=$(od -An -tu4 -j $((0x24c)) -N4 "$vmlinuz")
	# `|| true`: the end after the payload is cut off, which the commands call errors.
	{ tail -c "+$(((sects + 1) * 512 + offset + 1))" "$vmlinuz" 2>/dev/null || true; } |
		{ head -c "$length"; cat >/dev/null; } |
		{ xz -dc --single-stream 2>/dev/null || true; } >"$work/vmlinux"
	if [[ $(head -c 4 "$work/vmlinux" | tr -d '\0') != $'\x7fELF' ]] ||
		(($(stat -c %s "$work/vmlinux") < $(stat -c %s "$vmlinuz"))); then
		cp "$vmlinuz" "$work/vmlinux" # boots as well, only later
	fi

	# Keep the wanted modules alone: 400 MB become a few.
	depmod -b "$work/deb" "$version" || die "depmod failed"
	local from=$work/deb to=$work/modules
	mkdir -p "$to/lib/modules/$version"
	cp "$from/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} \
		"$to/lib/modules/$version/"
	for m in "${boot_modules[@]}" "${extra_modules[@]}"; do
		depends "$from" "$version" "$m" | while read -r path; do
			name=${path#"$from/"}
			mkdir -p "$to/${name%/*}"
			cp -n "$path" "$to/$name"
		done || die "$version has no module $m"
	done
	depmod -b "$to" "$version" || die "depmod failed"

	chmod -R a+rX "$to" "$work/vmlinux"
	rm -rf "$dir/modules" "$dir"/*.stamp "$dir/accel"
	mv "$to" "$work/vmlinux" "$dir/"
	echo "$version" >"$dir/version"
	echo "$kernel_stamp" >"$dir/vmlinux.stamp"
}

make_initramfs() {
	local work=$1 version m path name
	version=$(cat "$dir/version")
	local initramfs=$work/initramfs.d
	mkdir -p "$initramfs"/{bin,modules}
	for m in "${boot_modules[@]}"; do
		depends "$dir/modules" "$version" "$m" | while read -r path; do
			name=${path##*/}
			grep -qsxF "$name" "$initramfs/modules/order" && continue
			cp "$path" "$initramfs/modules/$name"
			echo "$name" >>"$initramfs/modules/order"
		done || die "no module $m"
	done
	cp "$busybox" "$initramfs/bin/busybox"
	cp "$here/init" "$initramfs/init"
	chmod 755 "$initramfs/init" "$initramfs/bin/busybox"
	# Not compressed: unpacking would be emulated, copying is not.
	(cd "$initramfs" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) \
		>"$work/initramfs"

	chmod a+r "$work/initramfs"
	mv "$work/initramfs" "$dir/"
	echo "$initramfs_stamp" >"$dir/initramfs.stamp"
}

if ! fresh; then # else another prepare.sh made them while this one waited
	work=$(mktemp -d "$dir/work.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	stamped vmlinux "$kernel_stamp" || make_kernel "$work"
	make_initramfs "$work"
	rm -rf "$work"
	trap - EXIT
fi
probed || probe_accel
echo "test/vm: kernel $(cat "$dir/version"), $(head -n 1 "$dir/accel"), in $dir" >&2
