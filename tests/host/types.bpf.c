/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * types.bpf.c - no program, only types: compiled for their BTF, from which the tests learn
 * the layout of what parsers.c takes and gives, and the names of its numbers.
 */
#include "parsers.h"

const struct flow_record *__btf_flow_record __attribute__((unused));
const enum flow_end *__btf_flow_end __attribute__((unused));
const enum flow_flag *__btf_flow_flag __attribute__((unused));
const enum flow_kind *__btf_flow_kind __attribute__((unused));
const enum flow_method *__btf_flow_method __attribute__((unused));
const enum flow_protocol *__btf_flow_protocol __attribute__((unused));
const enum flow_role *__btf_flow_role __attribute__((unused));
const enum flow_text *__btf_flow_text __attribute__((unused));
const enum detect *__btf_detect __attribute__((unused));
const struct host_segment *__btf_host_segment __attribute__((unused));
const struct host_options *__btf_host_options __attribute__((unused));
const struct host_result *__btf_host_result __attribute__((unused));
const enum host_kind *__btf_host_kind __attribute__((unused));
const enum replay_outcome *__btf_replay_outcome __attribute__((unused));
const enum host_limit *__btf_host_limit __attribute__((unused));
