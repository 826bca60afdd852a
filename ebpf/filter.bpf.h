/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * filter.bpf.h - whose exchanges are wanted. Asked when a connection is recognised and
 * when another process takes it up, never per message. Kinds of include are ANDed, values
 * of one kind ORed, and one exclude is enough to say no.
 */
#ifndef WIRESPAN_FILTER_H
#define WIRESPAN_FILTER_H

#include "io.bpf.h"

#define FILTER_ANCESTORS 8

/* What the map says of a key: FILTER_INCLUDE and FILTER_EXCLUDE bits. */
static __always_inline __u8 filter_look(void *map, const void *key)
{
	__u8 *bits = bpf_map_lookup_elem(map, key);

	return bits ? *bits : 0;
}

/* --pid also stands for the process's descendants, as far as they can be followed. */
static __always_inline __u8 filter_pid(void *task)
{
	__u8 found = 0;
	int i;

	task = LOAD(struct task_struct, task, group_leader);
	for (i = 0; i < FILTER_ANCESTORS && task; i++) {
		__u32 tgid = LOAD(struct task_struct, task, tgid);

		if (tgid <= 1)
			break;
		found |= filter_look(&filter_pids, &tgid);
		task = LOAD(struct task_struct, task, real_parent);
	}
	return found;
}

static __always_inline __u8 filter_exe(void *task)
{
	struct mm_struct *mm = LOAD(struct task_struct, task, mm);
	struct file *exe = mm ? LOAD(struct mm_struct, mm, exe_file) : NULL;
	struct exe_file file = {};
	struct exe_name name = {};
	struct dentry *dentry;
	struct inode *inode;

	if (!exe)
		return 0;
	inode = LOAD(struct file, exe, f_inode);
	file.ino = LOAD(struct inode, inode, i_ino);
	file.dev = LOAD(struct super_block, LOAD(struct inode, inode, i_sb), s_dev);
	dentry = LOAD(struct file, exe, f_path.dentry);
	bpf_probe_read_kernel_str(name.name, sizeof(name.name),
				  LOAD(struct dentry, dentry, d_name.name));
	return filter_look(&filter_exe_files, &file) | filter_look(&filter_exe_names, &name);
}

/* The id of the group at this level that the task is in, or in one below it; 0: none. */
static __always_inline __u64 cgroup_at(int level)
{
#ifdef OLD_KERNEL
	void *task = (void *)bpf_get_current_task();
	void *set = LOAD(struct task_struct, task, cgroups);
	char *group = (char *)LOAD(struct css_set, set, dfl_cgrp);
	__u64 id = 0;

	if (bpf_core_field_exists(struct cgroup, ancestor_ids) &&
	    level <= LOAD(struct cgroup, group, level))
		bpf_probe_read_kernel(&id, sizeof(id),
				      group + bpf_core_field_offset(struct cgroup, ancestor_ids) +
					      8 * level);
	return id;
#else
	return bpf_get_current_ancestor_cgroup_id(level);
#endif
}

/* --cgroup also stands for the groups below. */
static __always_inline __u8 filter_cgroup(void)
{
	__u64 id = bpf_get_current_cgroup_id();
	__u8 found = filter_look(&filter_cgroups, &id);
	int level;

	for (level = 1; level <= FILTER_ANCESTORS; level++) {
		id = cgroup_at(level);
		if (!id)
			break;
		found |= filter_look(&filter_cgroups, &id);
	}
	return found;
}

static __always_inline int filter_says_no(__u8 found, __u32 want_bit, __u32 out_bit)
{
	if ((cfg_filters & out_bit) && (found & FILTER_EXCLUDE))
		return 1;
	return (cfg_filters & want_bit) && !(found & FILTER_INCLUDE);
}

/* What was found of a process says nothing of another image, or of who has its number next. */
static __always_inline void filter_forget(__u32 tgid)
{
	if (unwanted_hints[tgid & 1023] == tgid)
		unwanted_hints[tgid & 1023] = 0;
	bpf_map_delete_elem(&verdicts, &tgid);
}

static __always_inline int filter_process(__u32 tgid)
{
	void *task = (void *)bpf_get_current_task();
	__u8 *known = bpf_map_lookup_elem(&verdicts, &tgid), verdict = 1;

	if (known) {
		verdict = *known;
		goto found;
	}
	if (cfg_filters & (FILTER_PIDS | FILTER_PIDS_OUT) &&
	    filter_says_no(filter_pid(task), FILTER_PIDS, FILTER_PIDS_OUT))
		verdict = 0;
	if (cfg_filters & (FILTER_EXES | FILTER_EXES_OUT) &&
	    filter_says_no(filter_exe(task), FILTER_EXES, FILTER_EXES_OUT))
		verdict = 0;
	if (cfg_filters & (FILTER_CGROUPS | FILTER_CGROUPS_OUT) &&
	    filter_says_no(filter_cgroup(), FILTER_CGROUPS, FILTER_CGROUPS_OUT))
		verdict = 0;
	bpf_map_update_elem(&verdicts, &tgid, &verdict, BPF_ANY);
found:
	if (!verdict)
		unwanted_hints[tgid & 1023] = tgid;
	return verdict;
}

/* Is this connection, in the hands of this process, wanted? */
static __noinline int filter_wants(__u32 tgid, __u16 local_port, __u16 remote_port)
{
	if (cfg_filters & (FILTER_PORTS | FILTER_PORTS_OUT) &&
	    filter_says_no(filter_look(&filter_ports, &local_port) |
				   filter_look(&filter_ports, &remote_port),
			   FILTER_PORTS, FILTER_PORTS_OUT))
		return 0;
	if (cfg_filters & FILTER_PROCESSES)
		return filter_process(tgid);
	return 1;
}

#endif
