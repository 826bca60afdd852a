/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * writer.bpf.c - a program that writes known records on demand, to test ring and loader.
 * getpriority(OPERATION, n) of process cfg_self_tgid or cfg_writer is the demand.
 */
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "flow.h"

enum operation {
	WRITE = 1000,	 /* n records */
	DISCARD = 1001,	 /* n records, of which every third is discarded */
	IDENTITY = 1002, /* one record: file and cgroup of the caller as the kernel knows them */
};

#define MOST 64 /* records a call */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct super_block {
	unsigned int s_dev;
};
struct inode {
	unsigned long i_ino;
	struct super_block *i_sb;
};
struct file {
	struct inode *f_inode;
};
struct mm_struct {
	struct file *exe_file;
};
struct task_struct {
	struct mm_struct *mm;
};
#pragma clang attribute pop

struct enter_args {
	__u64 common;
	__s64 nr;
	__u64 args[6];
};

/* Both sizes are one number, and so one type in BTF: a resize must tell them apart. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} conns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOW_LOSSES);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOW_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

#define FILTER(name, key_type, entries)                                                            \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_HASH);                                                   \
		__uint(max_entries, entries);                                                      \
		__type(key, key_type);                                                             \
		__type(value, __u8);                                                               \
	} name SEC(".maps")

struct exe_file {
	__u64 ino;
	__u32 dev;
	__u32 pad;
};
struct exe_name {
	char name[32];
};

FILTER(filter_ports, __u16, 2);
FILTER(filter_pids, __u32, 2);
FILTER(filter_exe_files, struct exe_file, 2);
FILTER(filter_exe_names, struct exe_name, 2);
FILTER(filter_cgroups, __u64, 2);

__u32 cfg_self_tgid = 0; /* in .bss */
__u32 cfg_filters = 0;
__u32 cfg_writer = 1; /* in .data */
__u8 cfg_mark = 1;
__u64 written = 0;
__u32 ring_awaited = 0;

const struct flow_record *__btf_flow_record __attribute__((unused));
const enum flow_loss *__btf_flow_loss __attribute__((unused));
const enum flow_count *__btf_flow_count __attribute__((unused));

static __always_inline void add(void *map, __u32 index)
{
	__u64 *n = bpf_map_lookup_elem(map, &index);

	if (n)
		(*n)++;
}

static __always_inline struct flow_record *begin(void)
{
	struct flow_record *r = bpf_ringbuf_reserve(&records, sizeof(*r), 0);

	if (!r)
		add(&losses, FLOW_LOSS_RING_FULL);
	return r;
}

static __always_inline void identity(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct flow_record *r = begin();

	if (!r)
		return;
	r->conn_id = BPF_CORE_READ(task, mm, exe_file, f_inode, i_ino);
	r->netns = BPF_CORE_READ(task, mm, exe_file, f_inode, i_sb, s_dev);
	r->cgroup_id = bpf_get_current_cgroup_id();
	r->flags = cfg_filters;
	r->kind = cfg_mark;
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
}

SEC("tracepoint/syscalls/sys_enter_getpriority")
int enter_getprio(struct enter_args *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u32 operation = ctx->args[0], n = ctx->args[1];

	if (tgid != cfg_self_tgid && tgid != cfg_writer)
		return 0;
	if (operation == IDENTITY)
		identity();
	if (operation != WRITE && operation != DISCARD)
		return 0;
	for (__u32 i = 0; i < MOST && i < n; i++) {
		__u64 number = written++;
		struct flow_record *r = begin();

		if (!r)
			continue;
		if (operation == DISCARD && number % 3 == 2) {
			bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
			continue;
		}
		r->start_ns = number;
		r->text_len = number & 0xffff;
		bpf_get_current_comm(r->comm, sizeof(r->comm));
		__builtin_memset(r->text, number & 0xff, sizeof(r->text));
		bpf_ringbuf_submit(r, ring_awaited ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
		ring_awaited = 0;
		add(&counts, FLOW_COUNT_EXCHANGES);
	}
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_getpriority")
int exit_getprio(void *ctx __attribute__((unused)))
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
