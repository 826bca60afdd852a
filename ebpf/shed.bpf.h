/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * shed.bpf.h - under overload some traces are let go before they cost user space anything.
 * Part of exchange.bpf.h.
 *
 * What becomes of a trace, its fate, is decided as its first request begins here, by 16 bits
 * that both ends of the connection compute alike. All that is made for it inherits that: a
 * call from the exchange it is made for, the server's side of the call from the client's. So
 * a trace is whole or gone as far as its links are known here, whatever the level is
 * meanwhile. What is kept says by which level, so that it is known what it stands for.
 */
#ifndef WIRESPAN_SHED_H
#define WIRESPAN_SHED_H

#include "maps.bpf.h"

#define FATE_SHED 0x80 /* of flow_record.level: let go */

/* 0: nothing is let go, and nobody asks; n: of all traces one in 2^(n - 1) is kept, n <= 17 */
SEC(".data") __u32 cfg_shed = 0;

/* A fate is flow_record.level | flow_record.lot << 8. Causes carry it above their index. */
static __always_inline __u64 fate_of(const struct flow_record *r)
{
	return r->level | (__u64)r->lot << 8;
}

static __always_inline __u64 fate_index(__u64 index, __u64 fate)
{
	return index | fate << 32;
}

/* The fate of an exchange that is made for no other: SplitMix64's finaliser, as tracer/ids.py. */
static __always_inline __u32 fate_drawn(__u64 key)
{
	__u32 level = cfg_shed - 1, lot;

	if (!level || level > 16)
		return 0;
	key ^= key >> 30;
	key *= 0xBF58476D1CE4E5B9ULL;
	key ^= key >> 27;
	key *= 0x94D049BB133111EBULL;
	key ^= key >> 31;
	lot = key >> 48;
	return level | lot << 8 | ((lot | 0xffff >> level) == 0xffff ? 0 : FATE_SHED);
}

/*
 * The fate of a request that begins, known by numbers that both its ends have. linked: its
 * client's side was made for io->cause.
 */
GLOBAL_IO(fate_begin, (request_seq, base, client, linked), __u32 request_seq, __u32 base,
	  __u32 client, __u32 linked)
{
	__u64 key = (__u64)request_seq << 32 | base;
	__u32 fate, *known;

	if (client) {
		fate = linked ? io->cause.index >> 32 : fate_drawn(key);
		bpf_map_update_elem(&fates, &key, &fate, BPF_ANY);
		return fate;
	}
	known = bpf_map_lookup_elem(&fates, &key);
	if (!known)
		return fate_drawn(key);
	fate = *known;
	bpf_map_delete_elem(&fates, &key);
	return fate;
}

#endif
