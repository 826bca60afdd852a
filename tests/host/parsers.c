/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * parsers.c - runs whole connections through ebpf/replay.c, the kernel programs' own
 * connections, exchanges and parsers on the host.
 */
#include "../../ebpf/replay.c"

#include "parsers.h"

#define CONN 1 /* the one connection's id */

static void closed(const struct host_segment *seg, const struct host_options *options)
{
	int by_local = seg->response == (options->role == FLOW_SERVER);

	replay_end(CONN, by_local ? REPLAY_FIN_SENT : REPLAY_FIN_RECEIVED, seg->at);
	if (by_local && options->role == FLOW_CLIENT) {
		struct conn *c = conn_of(CONN, CONN);

		if (c)
			end_exchanges(c, CONN, FLOW_END_LOCAL, seg->at);
	}
}

void host_run(const __u8 *bytes, const struct host_segment *segments, __u32 n,
	      const struct host_options *options, struct flow_record *out, __u32 most,
	      struct host_result *result)
{
	struct replay_conn conn = { .id = CONN,
				    .family = FLOW_FAMILY_INET,
				    .fresh = !options->old };
	struct replay_state state;
	__u32 seq[2] = { 0, 0 }, any = 0, i;

	memset(result, 0, sizeof(*result));
	replay_reset();
	replay_window(options->window);
	host_resync = options->resync;
	replay_open(&conn);
	for (i = 0; i < n; i++) {
		const struct host_segment *seg = &segments[i];
		__u32 tx = seg->response == (options->role == FLOW_SERVER);

		if (seg->kind == HOST_CLOSE) {
			closed(seg, options);
			continue;
		}
		if (seg->kind == HOST_UNSEEN) {
			__u64 left = seg->len, some;
			__u32 at = seq[seg->response];

			/* a connection that begins so is an old one: that is what `old` is for */
			if (!any)
				continue;
			for (; left; left -= some, at += some) { /* no call moves 2 GiB */
				some = left < 1 << 30 ? left : 1 << 30;
				replay_unseen(CONN, tx, at, seg->at, some);
			}
		} else {
			replay_bytes(CONN, tx, seq[seg->response], seg->at, bytes, seg->len);
			bytes += seg->len;
			any |= seg->len != 0;
		}
		seq[seg->response] += (__u32)seg->len;
	}
	replay_state(CONN, &state);
	result->records = ring_count - ring_head;
	replay_take(out, most);
	result->in_flight = state.in_flight;
	result->request = state.request;
	result->response = state.response;
	result->protocol = state.protocol;
}

__u32 host_detect(const __u8 *bytes, __u32 n, __u64 total, __u32 fresh)
{
	struct io *io = io_get();

	memset(io->win.bytes, 0, sizeof(io->win.bytes));
	memcpy(io->win.bytes + CARRY, bytes, n);
	io->win.pos = CARRY;
	io->win.end = CARRY + n;
	io->left = total - n;
	return detect(io, fresh);
}
