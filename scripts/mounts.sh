#!/usr/bin/env bash
# Mount what tracing needs and a bare system may lack: tracefs and bpffs.
# What cannot be mounted is said and left: `wirespan doctor` names the consequence.
set -euo pipefail

mount_once() {
	local kind=$1 dir=$2
	[ "$(stat -f -c %T "$dir" 2>/dev/null)" != "$3" ] || return 0
	if mount -t "$kind" "$kind" "$dir" 2>/dev/null; then
		echo "      mounted $kind on $dir"
	else
		echo "wirespan: cannot mount $kind on $dir" >&2
	fi
}

[ "$(id -u)" = 0 ] || exit 0
mount_once tracefs /sys/kernel/tracing tracefs
mount_once bpf /sys/fs/bpf bpf_fs
