/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* rejected.bpf.c - a program that no verifier accepts: it follows a number as a pointer. */
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "flow.h"

const struct flow_record *__btf_flow_record __attribute__((unused));

SEC("tracepoint/syscalls/sys_enter_getpriority")
int enter_wild(void *ctx __attribute__((unused)))
{
	return *(__u32 *)bpf_get_current_pid_tgid();
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
