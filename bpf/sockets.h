/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the hooks of capture.bpf.c have in common: what is kept with a socket, and how its ends are read. */
#ifndef MESH_SOCKETS_H
#define MESH_SOCKETS_H

#include "maps.h"

#define MESH_AF_INET 2
#define MESH_SOL_SOCKET 1
#define MESH_SO_MARK 36
#define MESH_SOL_TCP 6
#define MESH_TCP_CONGESTION 13
#define MESH_OPTION_WINDOW 4096 /* bytes of an option that a hook is shown */

#define ALLOW 1
#define REFUSE 0

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct mesh_destination);
} mesh_asked SEC(".maps");

/* From the SYN until the tunnel has accepted and asks: microseconds. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MESH_MOST_CONNECTIONS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_tuple);
	__type(value, struct mesh_destination);
} mesh_underway SEC(".maps");

static __always_inline void read_address6(struct bpf_sock_addr *ctx, struct mesh_address *a)
{
	a->word_be[0] = ctx->user_ip6[0];
	a->word_be[1] = ctx->user_ip6[1];
	a->word_be[2] = ctx->user_ip6[2];
	a->word_be[3] = ctx->user_ip6[3];
}

static __always_inline void read_ends(struct bpf_sock_ops *ops, struct mesh_address *here, struct mesh_address *there)
{
	if (ops->family == MESH_AF_INET) {
		*here = mesh_mapped(MESH_READ(ops, bpf_sock_ops, local_ip4));
		*there = mesh_mapped(MESH_READ(ops, bpf_sock_ops, remote_ip4));
		return;
	}
	here->word_be[0] = MESH_READ(ops, bpf_sock_ops, local_ip6[0]);
	here->word_be[1] = MESH_READ(ops, bpf_sock_ops, local_ip6[1]);
	here->word_be[2] = MESH_READ(ops, bpf_sock_ops, local_ip6[2]);
	here->word_be[3] = MESH_READ(ops, bpf_sock_ops, local_ip6[3]);
	there->word_be[0] = MESH_READ(ops, bpf_sock_ops, remote_ip6[0]);
	there->word_be[1] = MESH_READ(ops, bpf_sock_ops, remote_ip6[1]);
	there->word_be[2] = MESH_READ(ops, bpf_sock_ops, remote_ip6[2]);
	there->word_be[3] = MESH_READ(ops, bpf_sock_ops, remote_ip6[3]);
}

/* The connection as its opener sees it; `accepted`: the socket is the other end's. */
static __always_inline void read_tuple(struct bpf_sock_ops *ops, struct mesh_tuple *t, int accepted)
{
	__u16 here = (__u16)MESH_READ(ops, bpf_sock_ops, local_port);
	__u16 there = (__u16)bpf_ntohl(MESH_READ(ops, bpf_sock_ops, remote_port));

	read_ends(ops, accepted ? &t->to : &t->from, accepted ? &t->from : &t->to);
	t->from_port = accepted ? there : here;
	t->to_port = accepted ? here : there;
	t->netns = bpf_get_netns_cookie(ops);
}

#endif
