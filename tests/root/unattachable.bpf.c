/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* unattachable.bpf.c - loads, but the second program's event is in no kernel. */
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "flow.h"

const struct flow_record *__btf_flow_record __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} records SEC(".maps");

__u32 cfg_self_tgid = 0;
__u32 cfg_filters = 0;

SEC("tracepoint/syscalls/sys_enter_getpriority")
int enter_there(void *ctx __attribute__((unused)))
{
	return cfg_self_tgid != 0 && bpf_ringbuf_query(&records, 0) != 0;
}

SEC("tracepoint/syscalls/sys_enter_nowhere")
int enter_nowhere(void *ctx __attribute__((unused)))
{
	return cfg_filters != 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
