/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * global.bpf.h - functions that the verifier looks at once each, by themselves, whoever calls
 * them (Linux kernel commit 51c39bb1d5d1, in v5.6): this keeps loading quick.
 *
 * They are given pointers since Linux 5.13. In the object for older kernels (OLD_KERNEL) they
 * take numbers, and look up again what the pointers pointed to; what they are called by stays
 * the same. `values` are the names of the parameters behind the pointers, in parentheses.
 */
#ifndef WIRESPAN_GLOBAL_H
#define WIRESPAN_GLOBAL_H

#include "io.bpf.h"

#define AND(...) __VA_OPT__(, ) __VA_ARGS__

#ifdef OLD_KERNEL

/* Of those that write to where they are told. */
#define POINTERS static __always_inline

#define GLOBAL_IO(name, values, ...)                                                               \
	static __always_inline int name##_body(struct io *io __VA_OPT__(, ) __VA_ARGS__);          \
	__noinline int name##_old(__VA_ARGS__)                                                     \
	{                                                                                          \
		struct io *io = io_get();                                                          \
                                                                                                   \
		return io ? name##_body(io AND values) : 0;                                        \
	}                                                                                          \
	static __always_inline int name(struct io *io __VA_OPT__(, ) __VA_ARGS__)                  \
	{                                                                                          \
		(void)io;                                                                          \
		return name##_old values;                                                          \
	}                                                                                          \
	static __always_inline int name##_body(struct io *io __VA_OPT__(, ) __VA_ARGS__)

#define GLOBAL_CONN_IO(name, values, ...)                                                          \
	static __always_inline int name##_body(struct conn *c,                                     \
					       struct io *io __VA_OPT__(, ) __VA_ARGS__);          \
	__noinline int name##_old(__u64 sk __VA_OPT__(, ) __VA_ARGS__)                             \
	{                                                                                          \
		struct conn *c = bpf_map_lookup_elem(&conns, &sk);                                 \
		struct io *io = io_get();                                                          \
                                                                                                   \
		return c && io ? name##_body(c, io AND values) : 0;                                \
	}                                                                                          \
	static __always_inline int name(struct conn *c, struct io *io __VA_OPT__(, ) __VA_ARGS__)  \
	{                                                                                          \
		(void)c;                                                                           \
		return name##_old(io->sk AND values);                                              \
	}                                                                                          \
	static __always_inline int name##_body(struct conn *c,                                     \
					       struct io *io __VA_OPT__(, ) __VA_ARGS__)

#define GLOBAL_CONN(name, values, ...)                                                             \
	static __always_inline int name##_body(                                                    \
		struct conn *c, __u64 sk __attribute__((unused)) __VA_OPT__(, ) __VA_ARGS__);      \
	__noinline int name##_old(__u64 sk __VA_OPT__(, ) __VA_ARGS__)                             \
	{                                                                                          \
		struct conn *c = bpf_map_lookup_elem(&conns, &sk);                                 \
                                                                                                   \
		return c ? name##_body(c, sk AND values) : 0;                                      \
	}                                                                                          \
	static __always_inline int name(struct conn *c, __u64 sk __VA_OPT__(, ) __VA_ARGS__)       \
	{                                                                                          \
		(void)c;                                                                           \
		return name##_old(sk AND values);                                                  \
	}                                                                                          \
	static __always_inline int name##_body(struct conn *c, __u64 sk                            \
					       __attribute__((unused)) __VA_OPT__(, ) __VA_ARGS__)

#else

#define POINTERS __noinline

#define GLOBAL_IO(name, values, ...)                                                               \
	static __always_inline int name##_body(struct io *io __VA_OPT__(, ) __VA_ARGS__);          \
	__noinline int name(struct io *io __VA_OPT__(, ) __VA_ARGS__)                              \
	{                                                                                          \
		return io ? name##_body(io AND values) : 0;                                        \
	}                                                                                          \
	static __always_inline int name##_body(struct io *io __VA_OPT__(, ) __VA_ARGS__)

#define GLOBAL_CONN_IO(name, values, ...)                                                          \
	static __always_inline int name##_body(struct conn *c,                                     \
					       struct io *io __VA_OPT__(, ) __VA_ARGS__);          \
	__noinline int name(struct conn *c, struct io *io __VA_OPT__(, ) __VA_ARGS__)              \
	{                                                                                          \
		return c && io ? name##_body(c, io AND values) : 0;                                \
	}                                                                                          \
	static __always_inline int name##_body(struct conn *c,                                     \
					       struct io *io __VA_OPT__(, ) __VA_ARGS__)

#define GLOBAL_CONN(name, values, ...)                                                             \
	static __always_inline int name##_body(                                                    \
		struct conn *c, __u64 sk __attribute__((unused)) __VA_OPT__(, ) __VA_ARGS__);      \
	__noinline int name(struct conn *c, __u64 sk __VA_OPT__(, ) __VA_ARGS__)                   \
	{                                                                                          \
		asm volatile("" : : "r"(sk)); /* or callers leave it out, if nothing needs it */   \
		return c ? name##_body(c, sk AND values) : 0;                                      \
	}                                                                                          \
	static __always_inline int name##_body(struct conn *c, __u64 sk                            \
					       __attribute__((unused)) __VA_OPT__(, ) __VA_ARGS__)

#endif

#endif
