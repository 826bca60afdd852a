/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * python.bpf.h - what passes through queues of CPython programs: work for a pool of threads,
 * and requests that tornado's client of HTTP has no room for yet. Each is told by the address
 * of an object that lives for as long as it is in the queue.
 */
#ifndef WIRESPAN_PYTHON_H
#define WIRESPAN_PYTHON_H

#include "conn.bpf.h"

/* ---- concurrent.futures.ThreadPoolExecutor ---------------------------------------------- */

/* Is it a _WorkItem, what the pools of concurrent.futures put into their queue? */
static __always_inline int is_work(const struct runtime *runtime, __u64 object)
{
	__u64 type, name, text[2] = {};

	return !bpf_probe_read_user(&type, sizeof(type), (void *)(object + runtime->object_type)) &&
	       !bpf_probe_read_user(&name, sizeof(name), (void *)(type + runtime->type_name)) &&
	       !bpf_probe_read_user(text, 10, (void *)name) &&
	       text[0] == WORD('_', 'W', 'o', 'r', 'k', 'I', 't', 'e') && text[1] == 'm';
}

/*
 * queue.SimpleQueue's put(self, &item, …), in C. The item is kept with whom this thread runs
 * for; one that runs for nobody replaces what an item of this address was before.
 */
HOOK("uprobe.multi", python_put, struct pt_regs *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct context_key key = { .tgid = pid_tgid >> 32, .kind = WORK_ITEM };
	struct runtime *runtime = runtime_of(pid_tgid);
	struct context known = {};
	struct io *io;

	if (!cfg_ready || !runtime || runtime->kind != RUNTIME_CPYTHON || !runtime->object_type)
		return;
	if (bpf_probe_read_user(&key.context, sizeof(key.context), (void *)C_ARG2(ctx)) ||
	    !is_work(runtime, key.context))
		return;
	io = io_get();
	if (!io)
		return;
	io->pid_tgid = pid_tgid;
	if (link_current(io, FLOW_PROTO_UNKNOWN)) {
		known.cause = io->cause;
		bpf_map_update_elem(&contexts, &key, &known, BPF_ANY);
	} else {
		bpf_map_delete_elem(&contexts, &key);
	}
}

/* get() returns an item, or NULL: until the next one this thread works for who put it. */
HOOK("uprobe.multi", python_got, struct pt_regs *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct context_key key = { .tgid = pid_tgid >> 32, .kind = WORK_ITEM };
	struct context *known = NULL;
	struct runtime *runtime;
	struct thread *thread;

	if (!cfg_ready)
		return;
	key.context = RETURNED(ctx);
	if (key.context)
		known = bpf_map_lookup_elem(&contexts, &key);
	runtime = known ? runtime_of(pid_tgid) : NULL;
	thread = runtime ? thread_make(runtime, (__u32)pid_tgid) : thread_of((__u32)pid_tgid);
	if (!thread)
		return;
	thread->work.id = 0;
	if (!known)
		return;
	thread->work = known->cause;
	bpf_map_delete_elem(&contexts, &key);
}

/* ---- asyncio.Protocol ------------------------------------------------------------------- */

#define TAGS 7ULL    /* bits of a reference that are none of the address's, from 3.14 on */
#define CALLS_MOST 8 /* that are looked through */

enum protocol_called {
	CALLED_NOT = 0,
	CALLED_MADE = 1,     /* connection_made(self, transport) */
	CALLED_RECEIVED = 2, /* data_received(), buffer_updated() */
};

/* The innermost of Python's calls; 0: none. */
static __always_inline __u64 frame_of(const struct runtime *runtime, __u64 state)
{
	__u64 frame = 0;

	bpf_probe_read_user(&frame, sizeof(frame), (void *)(state + runtime->frame));
	if (runtime->cframe)
		bpf_probe_read_user(&frame, sizeof(frame), (void *)(frame + runtime->cframe - 1));
	return frame;
}

/* The first 15 characters of a function's name; if it is no function's, none. */
static __always_inline void frame_name(const struct runtime *runtime, __u64 frame, __u64 text[2])
{
	__u64 code, name;

	text[1] = 0;
	if (bpf_probe_read_user(&code, sizeof(code), (void *)(frame + runtime->frame_code)) ||
	    bpf_probe_read_user(&name, sizeof(name),
				(void *)((code & ~TAGS) + runtime->code_name)) ||
	    bpf_probe_read_user(text, 15, (void *)(name + runtime->text)))
		text[0] = 0;
}

/* Which method of a protocol has the loop called? */
static __always_inline int protocol_called(const struct runtime *runtime, __u64 state,
					   __u64 *transport)
{
	__u64 frame = frame_of(runtime, state), text[2];
	int i;

	for (i = 0; i < CALLS_MOST && frame; i++) {
		frame_name(runtime, frame, text);
		if (text[0] == WORD('c', 'o', 'n', 'n', 'e', 'c', 't', 'i') &&
		    text[1] == WORD('o', 'n', '_', 'm', 'a', 'd', 'e', 0)) {
			bpf_probe_read_user(transport, sizeof(*transport),
					    (void *)(frame + runtime->frame_locals + 8));
			return CALLED_MADE;
		}
		if ((text[0] == WORD('d', 'a', 't', 'a', '_', 'r', 'e', 'c') &&
		     (text[1] & LOW_BYTES(6)) == WORD('e', 'i', 'v', 'e', 'd', 0, 0, 0)) ||
		    (text[0] == WORD('b', 'u', 'f', 'f', 'e', 'r', '_', 'u') &&
		     (text[1] & LOW_BYTES(7)) == WORD('p', 'd', 'a', 't', 'e', 'd', 0, 0)))
			return CALLED_RECEIVED;
		if (bpf_probe_read_user(&frame, sizeof(frame),
					(void *)(frame + runtime->frame_previous)))
			break;
	}
	return CALLED_NOT;
}

/* ---- tornado.simple_httpclient ---------------------------------------------------------- */

#define FRAMES_MOST 24 /* that are looked through: 8 functions, and what stands between them */

enum queued {
	QUEUED_NOT = 0,
	QUEUED_IN = 1,	/* a request is put into the queue */
	QUEUED_OUT = 2, /* one is taken from it, where another ended */
};

/*
 * SimpleAsyncHTTPClient begins a request for which there was no room where another one ends,
 * in that one's context: _release_fetch() calls _process_queue(), that _handle_request(self,
 * request, …), and that copies a context for what it sends. Before, fetch_impl(self, request,
 * …) copied one for a timer, without having called _handle_request(). So a copy's stack of
 * calls tells which of them it is, and of which request.
 */
static __always_inline int queued(const struct runtime *runtime, __u64 state, __u64 *request)
{
	__u64 frame = frame_of(runtime, state), text[2];
	int i, begun = 0, begins, comes;

	*request = 0;
	for (i = 0; i < FRAMES_MOST && frame; i++) {
		frame_name(runtime, frame, text);
		if (text[0] == WORD('_', 'r', 'e', 'l', 'e', 'a', 's', 'e') &&
		    (text[1] & LOW_BYTES(7)) == WORD('_', 'f', 'e', 't', 'c', 'h', 0, 0))
			return begun ? QUEUED_OUT : QUEUED_NOT;
		begins = text[0] == WORD('_', 'h', 'a', 'n', 'd', 'l', 'e', '_') &&
			 (text[1] & LOW_BYTES(7)) == WORD('r', 'e', 'q', 'u', 'e', 's', 't', 0);
		comes = text[0] == WORD('f', 'e', 't', 'c', 'h', '_', 'i', 'm') &&
			(text[1] & LOW_BYTES(3)) == WORD('p', 'l', 0, 0, 0, 0, 0, 0);
		if (comes && begun)
			return QUEUED_NOT;
		if (!begins && !comes)
			goto next;
		if (bpf_probe_read_user(request, sizeof(*request),
					(void *)(frame + runtime->frame_locals + 8)))
			*request = 0;
		*request &= ~TAGS;
		if (comes)
			return QUEUED_IN;
		begun = 1;
next:
		if (bpf_probe_read_user(&frame, sizeof(frame),
					(void *)(frame + runtime->frame_previous)))
			return QUEUED_NOT;
	}
	return QUEUED_NOT;
}

#endif
