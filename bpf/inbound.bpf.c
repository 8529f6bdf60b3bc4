// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Connections into a workload's namespace: all but the tunnel's own go to the tunnel's listener, addresses untouched.
 * Loaded once per namespace, because a program of this type has no way to ask which namespace it runs in.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MESH_AF_INET 2

const volatile __u64 mesh_netns = 0; /* the cookie; written by the loader */

static __always_inline void read_tuple(struct bpf_sk_lookup *ctx, struct mesh_tuple *t)
{
	t->netns = mesh_netns;
	if (ctx->family == MESH_AF_INET) {
		t->from = mesh_mapped(MESH_READ(ctx, bpf_sk_lookup, remote_ip4));
		t->to = mesh_mapped(MESH_READ(ctx, bpf_sk_lookup, local_ip4));
	} else {
		t->from.word_be[0] = MESH_READ(ctx, bpf_sk_lookup, remote_ip6[0]);
		t->from.word_be[1] = MESH_READ(ctx, bpf_sk_lookup, remote_ip6[1]);
		t->from.word_be[2] = MESH_READ(ctx, bpf_sk_lookup, remote_ip6[2]);
		t->from.word_be[3] = MESH_READ(ctx, bpf_sk_lookup, remote_ip6[3]);
		t->to.word_be[0] = MESH_READ(ctx, bpf_sk_lookup, local_ip6[0]);
		t->to.word_be[1] = MESH_READ(ctx, bpf_sk_lookup, local_ip6[1]);
		t->to.word_be[2] = MESH_READ(ctx, bpf_sk_lookup, local_ip6[2]);
		t->to.word_be[3] = MESH_READ(ctx, bpf_sk_lookup, local_ip6[3]);
	}
	t->from_port = bpf_ntohs(ctx->remote_port);
	t->to_port = (__u16)ctx->local_port;
}

static __always_inline int is_tunnels(const struct mesh_tuple *t)
{
	__u64 *began = bpf_map_lookup_elem(&mesh_tickets, t);

	return began && bpf_ktime_get_ns() - *began < MESH_TICKET_NS;
}

/* The tunnel is away, or cannot take it: refused, never past it. */
static __always_inline int to_tunnel(struct bpf_sk_lookup *ctx)
{
	struct mesh_listener_key key = { .netns = mesh_netns, .port = MESH_INBOUND_PORT };
	struct bpf_sock *listener = bpf_map_lookup_elem(&mesh_listeners, &key);
	long failed;

	if (!listener)
		return SK_DROP;
	failed = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	return failed ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int mesh_arrives(struct bpf_sk_lookup *ctx)
{
	const struct mesh_id id = { .number = mesh_netns, .kind = MESH_NETNS };
	const struct mesh_workload *who;
	struct mesh_tuple t = {};
	enum mesh_way way;

	if (ctx->protocol != MESH_TCP)
		return SK_PASS;
	read_tuple(ctx, &t);
	who = bpf_map_lookup_elem(&mesh_workloads, &id);
	way = mesh_inbound(who, MESH_TCP, &t.from, &t.to, t.to_port);
	if (way == MESH_PASS)
		return SK_PASS;
	if (way == MESH_ASK && who) {
		if (is_tunnels(&t) || mesh_owns(who, &id, &t.from) || mesh_is_probe(who, &t.from) ||
		    mesh_leaves(who, &id, MESH_IN, &t.from, t.to_port))
			return SK_PASS;
	}
	return to_tunnel(ctx);
}
