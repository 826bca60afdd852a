#!/usr/bin/env bash
# Debian packages this machine lacks: `packages.sh missing GROUP...` prints them,
# `packages.sh install GROUP...` installs them. Groups: build, check, test, fuzz.
#
# What counts is whether the command or file is there, not which package brought it.
set -euo pipefail

group_build() {
	need /usr/bin/clang-19 clang-19
	need /usr/bin/llvm-strip-19 llvm-19
	need /usr/include/bpf/bpf_helpers.h libbpf-dev
	need /usr/include/linux/types.h linux-libc-dev
	need /etc/ssl/certs/ca-certificates.crt ca-certificates
	need_command python3 python3
	# Debian splits venv's ensurepip from the interpreter.
	python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

group_check() {
	need /usr/bin/clang-format-19 clang-format-19
}

group_test() {
	need_command gcc gcc
	need /usr/include/stdio.h libc6-dev
	need_command nginx nginx
	need_command haproxy haproxy
	need_command node nodejs
	need_command npm npm
	need_command javac default-jdk-headless
	need_command mvn maven
	need_command wrk wrk
	need_command curl curl
	need_command h2load nghttp2-client
	need_command openssl openssl
	need_command gcore gdb
	need_command tcpdump tcpdump
	need_command mariadbd mariadb-server
	need_command redis-server redis-server
	need_command redis-cli redis-tools
	need_command psql postgresql-client
	compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || echo postgresql
	need_command patchelf patchelf
	need_command ip iproute2
	need_command nft nftables
	need_command nsenter util-linux
}

# Also part of `make test`: libFuzzer and the sanitizers.
group_fuzz() {
	need /usr/include/stdio.h libc6-dev
	need "/usr/lib/llvm-19/lib/clang/19/lib/linux/libclang_rt.fuzzer-$(uname -m).a" \
		libclang-rt-19-dev
}

# Guests that boot other kernels.
group_kernels() {
	need_command qemu-system-x86_64 qemu-system-x86
	need_command qemu-system-aarch64 qemu-system-arm
	need_command busybox busybox-static
	need /sbin/depmod kmod
	need /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
}

need() { [ -e "$1" ] || echo "$2"; }
need_command() { command -v "$1" >/dev/null || echo "$2"; }

missing() {
	local group
	for group in "$@"; do "group_$group"; done | sort -u
}

# Packages of servers start them, and again at each boot. Tests run their own copies.
policy=/usr/sbin/policy-rc.d
hold_services() {
	[ -e $policy ] && return
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
	trap 'rm -f $policy' EXIT
}

disable_services() {
	local pair now=()
	command -v systemctl >/dev/null || return 0
	# A policy-rc.d of this machine's own may have allowed the start.
	[ ! -d /run/systemd/system ] || now=(--now)
	# Package and its service.
	for pair in nginx/nginx haproxy/haproxy mariadb-server/mariadb postgresql/postgresql \
		redis-server/redis-server; do
		case " $* " in
		*" ${pair%/*} "*) systemctl --quiet disable "${now[@]}" "${pair#*/}" || true ;;
		esac
	done
}

install() {
	local packages
	mapfile -t packages < <(missing "$@")
	[ ${#packages[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ]; then
		echo "wirespan: these system packages are missing: ${packages[*]}" >&2
		echo "hint: run as root: apt-get install --no-install-recommends ${packages[*]}" >&2
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	hold_services
	# The lists may be absent (container images) or too old to name what the mirror still has.
	if ! apt-get install --simulate --no-install-recommends "${packages[@]}" >/dev/null 2>&1 ||
		[ -z "$(find /var/lib/apt/lists -name '*_Packages*' -mtime -7 -print -quit 2>/dev/null)" ]; then
		echo "      apt-get update"
		apt-get update -qq
	fi
	echo "      apt-get install ${packages[*]}"
	apt-get install -y --no-install-recommends -o Dpkg::Use-Pty=0 "${packages[@]}" |
		sed -u -n -E 's/^(Need to get|Get:|Setting up)/      &/p'
	disable_services "${packages[@]}"
}

command=${1:?missing or install}
shift
case $command in
missing) missing "$@" ;;
install) install "$@" ;;
*)
	echo "usage: packages.sh missing|install GROUP..." >&2
	exit 2
	;;
esac
