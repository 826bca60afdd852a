/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * thread.bpf.h - what runs on the current thread: CPython's context, the goroutine, the JVM's
 * virtual thread. Read from the process's memory, where user space said that it is
 * (struct runtime).
 */
#ifndef WIRESPAN_THREAD_H
#define WIRESPAN_THREAD_H

#include "maps.bpf.h"

#define THREADS_MOST 64 /* of a CPython process that are looked through */
#define DTV 8		/* from where the FS base points to: the thread's vector of TLS blocks */

SEC(".data") __u32 cfg_link = 0; /* contexts are to be looked at */

static __always_inline struct thread *thread_of(__u32 tid)
{
	return bpf_map_lookup_elem(&threads, &tid);
}

/* What runs in the process of a thread; NULL: nobody asks for links, or it isn't known. */
static __always_inline struct runtime *runtime_of(__u64 pid_tgid)
{
	__u32 tgid = pid_tgid >> 32;

	return cfg_link ? bpf_map_lookup_elem(&runtimes, &tgid) : NULL;
}

/*
 * The current thread, which is met for the first time perhaps: then its name may tell something.
 * One of the JVM's ForkJoinPools carries virtual threads, each for a while, or runs others' tasks
 * while it waits: like an event loop it has several in hand, even where it reads one request at a
 * time.
 */
static __always_inline struct thread *thread_make(const struct runtime *runtime, __u32 tid)
{
	static const struct thread blank_thread = {};
	struct thread *thread = thread_of(tid);

	if (thread)
		return thread;
	bpf_map_update_elem(&threads, &tid, &blank_thread, BPF_NOEXIST);
	thread = thread_of(tid);
	if (thread && runtime->event_loop & EVENT_LOOP_CHECKS && task_carries())
		thread->loop = thread->carries = 1;
	return thread;
}

/* ---- CPython ---------------------------------------------------------------------------- */

/*
 * The context that the current thread of a CPython process runs in; 0: none, or the thread's
 * own, which CPython makes unseen as soon as somebody needs one there. Where that one lies may
 * have been a copy before, that ran for somebody. It is the only one that was never entered.
 */
static __always_inline __u64 context_of(struct runtime *runtime, struct thread *thread)
{
	__u64 base, state, id = 0, context = 0;
	__u32 entered = 0;
	int i;

	base = THREAD_POINTER(bpf_get_current_task());
	if (runtime->tls_state) {
		if (bpf_probe_read_user(&state, sizeof(state), (void *)(base + runtime->tls_state)))
			return 0;
		goto found;
	}
	state = thread->python;
	if (state && !bpf_probe_read_user(&id, sizeof(id), (void *)(state + runtime->thread_id)) &&
	    id == base)
		goto found;
	if (bpf_probe_read_user(&state, sizeof(state), (void *)runtime->interpreter))
		return 0;
	state += runtime->threads_head;
	if (bpf_probe_read_user(&state, sizeof(state), (void *)state))
		return 0;
	for (i = 0; i < THREADS_MOST && state; i++) {
		if (bpf_probe_read_user(&id, sizeof(id), (void *)(state + runtime->thread_id)))
			return 0;
		if (id == base) {
			thread->python = state;
			goto found;
		}
		if (bpf_probe_read_user(&state, sizeof(state), (void *)(state + runtime->next)))
			return 0;
	}
	return 0;
found:
	if (!state)
		return 0;
	thread->python = state;
	bpf_probe_read_user(&context, sizeof(context), (void *)(state + runtime->context));
	if (context)
		bpf_probe_read_user(&entered, sizeof(entered),
				    (void *)(context + runtime->entered));
	return entered ? context : 0;
}

#ifdef OLD_KERNEL
__noinline __u64 python_context_old(__u32 tgid, __u32 tid)
{
	struct runtime *runtime = bpf_map_lookup_elem(&runtimes, &tgid);
	struct thread *thread = thread_of(tid);

	return runtime && thread ? context_of(runtime, thread) : 0;
}
static __always_inline __u64 python_context(struct runtime *runtime, struct thread *thread)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	(void)runtime;
	(void)thread;
	return python_context_old(pid_tgid >> 32, (__u32)pid_tgid);
}
#else
__noinline __u64 python_context(struct runtime *runtime, struct thread *thread)
{
	return runtime && thread ? context_of(runtime, thread) : 0;
}
#endif

/* ---- Go --------------------------------------------------------------------------------- */

/* The goroutine that runs on this thread, by what its g says. */
static __always_inline __u64 goroutine_of(const struct runtime *runtime, __u64 g, __u64 *parent)
{
	__u64 goid = 0;

	*parent = 0;
	if (!g || bpf_probe_read_user(&goid, sizeof(goid), (void *)(g + runtime->goid)))
		return 0;
	if (runtime->parent_goid)
		bpf_probe_read_user(parent, sizeof(*parent), (void *)(g + runtime->parent_goid));
	return goid;
}

static __always_inline __u64 current_g(const struct runtime *runtime)
{
	__u64 base = THREAD_POINTER(bpf_get_current_task()), g = 0;

	bpf_probe_read_user(&g, sizeof(g), (void *)(base + runtime->tls_g));
	return g;
}

/* ---- JVM -------------------------------------------------------------------------------- */

/*
 * Sets io->virtual to the number of the virtual thread that the current thread carries, which no
 * other will ever have, and returns whether it does, as far as this is known.
 */
GLOBAL_IO(virtual_thread, ())
{
	__u64 at = THREAD_POINTER(bpf_get_current_task()) + DTV, carries = 0;
	struct runtime *runtime = runtime_of(io->pid_tgid);
	struct thread *thread = thread_of((__u32)io->pid_tgid);

	io->virtual = 0;
	if (!runtime || !runtime->java_number || !thread || !thread->carries ||
	    bpf_probe_read_user(&at, sizeof(at), (void *)at) ||
	    bpf_probe_read_user(&at, sizeof(at), (void *)(at + runtime->java_dtv)) ||
	    bpf_probe_read_user(&at, sizeof(at), (void *)(at + runtime->java_thread)) ||
	    bpf_probe_read_user(&carries, sizeof(carries),
				(void *)(at + runtime->java_continuation)) ||
	    !carries)
		return 0;
	bpf_probe_read_user(&io->virtual, sizeof(io->virtual), (void *)(at + runtime->java_number));
	return io->virtual != 0;
}

#endif
