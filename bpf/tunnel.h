/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What hangs on the tunnel's control group: its listeners file themselves, its accepted sockets tell where the client
 * wanted to go, its dials to applications get the connection mark and a ticket. Part of capture.bpf.c.
 */
#ifndef MESH_TUNNEL_H
#define MESH_TUNNEL_H

#include "filed.h"

/*
 * What the accepted socket's client filed, from there on found with the socket. Done when the tunnel asks and not when the
 * handshake ends: that is within the client's connect(), which would wait for it. Read before it is said to be taken: from
 * then on the client's end may free the entry.
 */
static __always_inline struct mesh_destination *take_destination(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	struct mesh_destination *underway, *taken, filed = {};
	struct mesh_tuple t = {};

	read_tuple_of(sk, &t, 1);
	t.netns = bpf_get_netns_cookie(ctx);
	if (read_filed(&t, &filed, 1))
		return bpf_sk_storage_get(&mesh_asked, sk, &filed, BPF_SK_STORAGE_GET_F_CREATE);
	underway = bpf_map_lookup_elem(&mesh_underway, &t);
	if (!underway)
		return 0;
	taken = bpf_sk_storage_get(&mesh_asked, sk, underway, BPF_SK_STORAGE_GET_F_CREATE);
	if (bpf_map_lookup_elem(&mesh_underway, &t) != underway) {
		bpf_sk_storage_delete(&mesh_asked, sk); /* gone meanwhile: what was read may be another connection's */
		return 0;
	}
	if (underway->state == MESH_CLIENT_GONE)
		bpf_map_delete_elem(&mesh_underway, &t);
	else
		underway->state = MESH_TAKEN;
	return taken;
}

static __always_inline void give_ticket(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct mesh_tuple t = {};
	__u64 now;

	if (!sk || !mesh_has_connection_mark(sk->mark))
		return;
	read_tuple(ops, &t, 0);
	now = bpf_ktime_get_ns() & ~1ULL; /* see mesh_direct_ticket */
	bpf_map_update_elem(&mesh_tickets, &t, &now, BPF_ANY);
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* From then on somebody else may use the same ports. */
static __always_inline void take_ticket_back(struct bpf_sock_ops *ops)
{
	struct mesh_tuple t = {};

	read_tuple(ops, &t, 0);
	bpf_map_delete_elem(&mesh_tickets, &t);
}

static __always_inline void note_listener(struct bpf_sock_ops *ops)
{
	struct mesh_listener_key key = { .netns = bpf_get_netns_cookie(ops), .port = ops->local_port };

	if (key.port == MESH_INBOUND_PORT)
		bpf_sock_hash_update(ops, &mesh_listeners, &key, BPF_ANY);
}

SEC("sockops")
int mesh_tunnel_sockops(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		note_listener(ops);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		give_ticket(ops);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_CLOSE)
			take_ticket_back(ops);
		break;
	}
	return ALLOW;
}

/*
 * A connection that the tunnel opens within a pod from an address that is not the pod's: it speaks for a client, to the
 * application. Its packets get the connection mark, which the application's answers inherit (tcp_fwmark_accept) and by
 * which they find back to the tunnel instead of to the client.
 */
static __always_inline int mark_client(struct bpf_sock_addr *ctx, const struct mesh_address *from)
{
	struct mesh_id id = { .number = bpf_get_netns_cookie(ctx), .kind = MESH_NETNS };
	const struct mesh_workload *who = bpf_map_lookup_elem(&mesh_workloads, &id);
	struct bpf_sock *sk = ctx->sk;
	__u32 mark;

	if (!who || !sk || mesh_is_unspecified(from) || mesh_owns(who, &id, from))
		return ALLOW;
	mark = mesh_connection_mark(sk->mark);
	return bpf_setsockopt(ctx, MESH_SOL_SOCKET, MESH_SO_MARK, &mark, sizeof(mark)) ? REFUSE : ALLOW;
}

SEC("cgroup/connect4")
int mesh_tunnel_connect4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_address from;

	if (!sk || ctx->protocol != MESH_TCP)
		return ALLOW;
	from = mesh_mapped(sk->src_ip4);
	return mark_client(ctx, &from);
}

SEC("cgroup/connect6")
int mesh_tunnel_connect6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_address from;

	if (!sk || ctx->protocol != MESH_TCP)
		return ALLOW;
	from.word_be[0] = sk->src_ip6[0];
	from.word_be[1] = sk->src_ip6[1];
	from.word_be[2] = sk->src_ip6[2];
	from.word_be[3] = sk->src_ip6[3];
	return mark_client(ctx, &from);
}

/*
 * The tunnel reads a question: its socket takes over where the client's socket wanted to go, until the next one is read.
 * So SO_ORIGINAL_DST works for datagrams, right after each.
 */
static __always_inline void take_question(struct bpf_sock_addr *ctx, struct bpf_sock_tuple *client, __u32 size)
{
	struct bpf_sock *sk = ctx->sk, *asker;
	struct mesh_destination *asked, taken = {};

	if (!sk)
		return;
	asker = bpf_sk_lookup_udp(ctx, client, size, BPF_F_CURRENT_NETNS, 0);
	if (asker) {
		asked = bpf_sk_storage_get(&mesh_asked, asker, 0, 0);
		if (asked)
			taken = *asked;
		bpf_sk_release(asker);
	}
	bpf_sk_storage_delete(&mesh_asked, sk);
	if (taken.port_be)
		bpf_sk_storage_get(&mesh_asked, sk, &taken, BPF_SK_STORAGE_GET_F_CREATE);
}

SEC("cgroup/recvmsg4")
int mesh_tunnel_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock_tuple client = {};
	struct bpf_sock *sk = ctx->sk;

	if (!sk || sk->src_port != MESH_DNS_CAPTURE_PORT)
		return ALLOW;
	client.ipv4.saddr = sk->src_ip4;
	client.ipv4.sport = bpf_htons(MESH_DNS_CAPTURE_PORT);
	client.ipv4.daddr = ctx->user_ip4;
	client.ipv4.dport = (__u16)ctx->user_port;
	take_question(ctx, &client, sizeof(client.ipv4));
	return ALLOW;
}

SEC("cgroup/recvmsg6")
int mesh_tunnel_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock_tuple client = {};
	struct bpf_sock *sk = ctx->sk;

	if (!sk || sk->src_port != MESH_DNS_CAPTURE_PORT)
		return ALLOW;
	client.ipv6.saddr[0] = sk->src_ip6[0];
	client.ipv6.saddr[1] = sk->src_ip6[1];
	client.ipv6.saddr[2] = sk->src_ip6[2];
	client.ipv6.saddr[3] = sk->src_ip6[3];
	client.ipv6.sport = bpf_htons(MESH_DNS_CAPTURE_PORT);
	client.ipv6.daddr[0] = ctx->user_ip6[0];
	client.ipv6.daddr[1] = ctx->user_ip6[1];
	client.ipv6.daddr[2] = ctx->user_ip6[2];
	client.ipv6.daddr[3] = ctx->user_ip6[3];
	client.ipv6.dport = (__u16)ctx->user_port;
	take_question(ctx, &client, sizeof(client.ipv6));
	return ALLOW;
}

static __always_inline int answer4(struct bpf_sockopt *ctx, const struct mesh_destination *asked)
{
	struct {
		__u16 family, port_be;
		__u32 ip_be, zero[2];
	} *answer = ctx->optval;

	if ((void *)(answer + 1) > ctx->optval_end || !mesh_is_ipv4(&asked->ip))
		return 0;
	answer->family = MESH_AF_INET;
	answer->port_be = asked->port_be;
	answer->ip_be = asked->ip.word_be[3];
	answer->zero[0] = answer->zero[1] = 0;
	return sizeof(*answer);
}

static __always_inline int answer6(struct bpf_sockopt *ctx, const struct mesh_destination *asked)
{
	struct {
		__u16 family, port_be;
		__u32 flow;
		struct mesh_address ip;
		__u32 scope;
	} *answer = ctx->optval;

	if ((void *)(answer + 1) > ctx->optval_end)
		return 0;
	answer->family = 10;
	answer->port_be = asked->port_be;
	answer->flow = 0;
	answer->ip = asked->ip;
	answer->scope = 0;
	return sizeof(*answer);
}

#define MESH_SOL_IP 0
#define MESH_SOL_IPV6 41
#define MESH_ORIGINAL_DST 80 /* SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST */

SEC("cgroup/getsockopt")
int mesh_tunnel_getsockopt(struct bpf_sockopt *ctx)
{
	struct mesh_destination *asked;
	struct bpf_sock *sk;
	int length;

	if (ctx->optname != MESH_ORIGINAL_DST || (ctx->level != MESH_SOL_IP && ctx->level != MESH_SOL_IPV6)) {
		if (ctx->optlen > MESH_OPTION_WINDOW)
			ctx->optlen = 0; /* larger than we are shown: the kernel's own answer stands */
		return ALLOW;
	}
	sk = ctx->sk;
	if (!sk)
		return ALLOW;
	asked = bpf_sk_storage_get(&mesh_asked, sk, 0, 0);
	if (!asked)
		asked = take_destination(ctx, sk);
	if (!asked)
		return ALLOW;
	length = ctx->level == MESH_SOL_IP ? answer4(ctx, asked) : answer6(ctx, asked);
	if (!length)
		return ALLOW;
	ctx->optlen = length;
	asm volatile("" ::: "memory"); /* clang would join both stores into one of 8 bytes, which the verifier refuses */
	ctx->retval = 0;
	return ALLOW;
}

#endif
