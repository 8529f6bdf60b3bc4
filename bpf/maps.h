/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps that more than one object uses. Pinned by name, so that every object and every agent's life finds the same. */
#ifndef MESH_MAPS_H
#define MESH_MAPS_H

#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "capture.h"

#define MESH_MOST_WORKLOADS 16384
#define MESH_MOST_CONNECTIONS 65536

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MESH_MOST_WORKLOADS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_id);
	__type(value, struct mesh_workload);
} mesh_workloads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * MESH_MOST_WORKLOADS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_own_key);
	__type(value, __u8);
} mesh_own SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * MESH_MOST_WORKLOADS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_port_key);
	__type(value, __u8);
} mesh_left_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 4 * MESH_MOST_WORKLOADS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_range_key);
	__type(value, __u8);
} mesh_left_ranges SEC(".maps");

/* The tunnel's listeners, put in by themselves when they begin to listen, gone with them. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, MESH_MOST_WORKLOADS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_listener_key);
	__type(value, __u64);
} mesh_listeners SEC(".maps");

/* Connections that the tunnel opens towards applications: when they began. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MESH_MOST_CONNECTIONS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_tuple);
	__type(value, __u64); /* ns since boot */
} mesh_tickets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MESH_WHY_MAX);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32); /* enum mesh_why */
	__type(value, __u64);
} mesh_outcomes SEC(".maps");

/*
 * A context's word, read where it stands. clang merges the loads of both branches of an `if (family)` into one at a
 * computed offset, which the verifier refuses ("dereference of modified ctx ptr"), even when they are volatile.
 */
#define MESH_READ(ctx, type, field)                                                                                    \
	({                                                                                                             \
		__u32 _word;                                                                                           \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                                                  \
			     : "=r"(_word)                                                                             \
			     : "r"(ctx), "i"(__builtin_offsetof(struct type, field)));                                 \
		_word;                                                                                                 \
	})

static __always_inline int mesh_owns(const struct mesh_workload *who, const struct mesh_id *id,
				     const struct mesh_address *ip)
{
	struct mesh_own_key key = { .who = *id, .ip = *ip };

	if (mesh_same(ip, &who->listen[mesh_side(ip)]))
		return 1;
	if (!(who->flags & MESH_MORE_ADDRESSES) || (who->flags & MESH_ONE_IPV4 && mesh_is_ipv4(ip)))
		return 0;
	return bpf_map_lookup_elem(&mesh_own, &key) != 0;
}

/* Whether the workload's owner wants a port, or an address, of one direction left alone. */
static __always_inline int mesh_leaves(const struct mesh_workload *who, const struct mesh_id *id,
				       enum mesh_direction direction, const struct mesh_address *ip, __u16 port)
{
	struct mesh_port_key by_port = { .who = *id, .port = port, .direction = direction };
	struct mesh_range_key by_range = {
		.prefix_bits = 8 * (sizeof(by_range) - sizeof(by_range.prefix_bits)),
		.direction = direction,
		.who = *id,
		.ip = *ip,
	};

	if (!(who->flags & MESH_EXCLUSIONS))
		return 0;
	return bpf_map_lookup_elem(&mesh_left_ports, &by_port) || bpf_map_lookup_elem(&mesh_left_ranges, &by_range);
}

#endif
