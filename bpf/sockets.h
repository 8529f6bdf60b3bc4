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
#define MESH_HANDOVERS 4096 /* a processor numbers that many sockets in a row */
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

static __always_inline int keep(struct bpf_sock *sk, const struct mesh_destination *asked)
{
	struct mesh_destination *kept = bpf_sk_storage_get(&mesh_asked, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (kept)
		*kept = *asked;
	return kept != 0;
}

/*
 * From connect() to the SYN, mostly the same system call: what would be two allocations with the socket. A place that somebody
 * else's connect() holds is left to him; then the destination is kept with the socket.
 */
struct mesh_handover {
	struct bpf_spin_lock lock;
	__u32 zero;
	__u64 socket; /* cookie; 0: free */
	struct mesh_destination asked;
	__u32 end;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MESH_HANDOVERS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct mesh_handover);
} mesh_handovers SEC(".maps");

static __always_inline struct mesh_handover *place_of(__u64 socket)
{
	__u32 place = socket & (MESH_HANDOVERS - 1);

	return bpf_map_lookup_elem(&mesh_handovers, &place);
}

/* 0: the place is another's. */
static __always_inline int hand_over(__u64 socket, const struct mesh_destination *asked)
{
	struct mesh_handover *place = place_of(socket);
	int ours;

	if (!place)
		return 0;
	bpf_spin_lock(&place->lock);
	ours = !place->socket || place->socket == socket;
	if (ours) {
		place->socket = socket;
		place->asked = *asked;
	}
	bpf_spin_unlock(&place->lock);
	return ours;
}

/* Frees the place. 0: nothing was handed over. */
static __always_inline int take_over(__u64 socket, struct mesh_destination *asked)
{
	struct mesh_handover *place = place_of(socket);

	if (!place || place->socket != socket)
		return 0; /* only the socket itself writes its cookie, and takes it away */
	bpf_spin_lock(&place->lock);
	*asked = place->asked;
	place->socket = 0;
	bpf_spin_unlock(&place->lock);
	return 1;
}

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

/* As below, of any socket of TCP; `netns` is the caller's to fill in. */
static __always_inline void read_tuple_of(struct bpf_sock *sk, struct mesh_tuple *t, int accepted)
{
	struct mesh_address *here = accepted ? &t->to : &t->from, *there = accepted ? &t->from : &t->to;
	__u16 here_port = (__u16)sk->src_port, there_port = bpf_ntohs(sk->dst_port);

	t->from_port = accepted ? there_port : here_port;
	t->to_port = accepted ? here_port : there_port;
	if (sk->family == MESH_AF_INET) {
		*there = mesh_mapped(MESH_READ(sk, bpf_sock, dst_ip4));
		*here = mesh_mapped(MESH_READ(sk, bpf_sock, src_ip4));
		return;
	}
	there->word_be[0] = MESH_READ(sk, bpf_sock, dst_ip6[0]);
	there->word_be[1] = MESH_READ(sk, bpf_sock, dst_ip6[1]);
	there->word_be[2] = MESH_READ(sk, bpf_sock, dst_ip6[2]);
	there->word_be[3] = MESH_READ(sk, bpf_sock, dst_ip6[3]);
	here->word_be[0] = MESH_READ(sk, bpf_sock, src_ip6[0]);
	here->word_be[1] = MESH_READ(sk, bpf_sock, src_ip6[1]);
	here->word_be[2] = MESH_READ(sk, bpf_sock, src_ip6[2]);
	here->word_be[3] = MESH_READ(sk, bpf_sock, src_ip6[3]);
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
