// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Connections out of a workload, on its control group: sent to the tunnel's listener before the first packet, with the
 * destination kept beside the socket. What is captured is decided in capture.h; here it is done, and done or refused.
 *
 * The destination travels: connect() keeps it with the client's socket; the socket's tuple carries it over before the
 * SYN (so that fast open is no exception); the tunnel's accepted socket takes it when asked for SO_ORIGINAL_DST.
 */
#include "sockets.h"

#include "direct.h"
#include "multipath.h"
#include "probes.h"
#include "tunnel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MESH_DEEPEST_CGROUP 12

static __always_inline void count(enum mesh_why why)
{
	__u32 key = why;
	__u64 *n = bpf_map_lookup_elem(&mesh_outcomes, &key);

	if (n)
		*n += 1;
}

/* By network namespace; in the host's, which many share, by the innermost control group that is enrolled. */
static __always_inline struct mesh_workload *workload_of(struct bpf_sock_addr *ctx, struct mesh_id *id)
{
	struct mesh_workload *found;
	struct mesh_id group = { .kind = MESH_CGROUP };

	id->number = bpf_get_netns_cookie(ctx);
	id->kind = MESH_NETNS;
	found = bpf_map_lookup_elem(&mesh_workloads, id);
	if (found)
		return found;
	for (int level = MESH_DEEPEST_CGROUP; level > 0; level--) {
		group.number = bpf_get_current_ancestor_cgroup_id(level);
		found = group.number ? bpf_map_lookup_elem(&mesh_workloads, &group) : 0;
		if (found)
			break;
	}
	*id = group;
	return found;
}

static __always_inline void write_address6(struct bpf_sock_addr *ctx, const struct mesh_address *a)
{
	ctx->user_ip6[0] = a->word_be[0];
	ctx->user_ip6[1] = a->word_be[1];
	ctx->user_ip6[2] = a->word_be[2];
	ctx->user_ip6[3] = a->word_be[3];
}

static __always_inline enum mesh_why judge(struct bpf_sock_addr *ctx, const struct mesh_workload *who,
					   const struct mesh_id *id, const struct mesh_address *to)
{
	__u16 port = bpf_ntohs((__u16)ctx->user_port);
	int own = who && mesh_owns(who, id, to);
	int left = who && mesh_leaves(who, id, MESH_OUT, to, port);

	return mesh_outbound(who, ctx->protocol, to, port, own, left);
}

/* Keeps where the socket wanted to go. A socket that goes somewhere else now must not be told the old tale. */
static __always_inline int keep(struct bpf_sock_addr *ctx, const struct mesh_address *to)
{
	struct mesh_destination *asked;
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 0;
	asked = bpf_sk_storage_get(&mesh_asked, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!asked)
		return 0;
	asked->ip = *to;
	asked->port_be = (__u16)ctx->user_port;
	return 1;
}

static __always_inline void forget(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (sk)
		bpf_sk_storage_delete(&mesh_asked, sk);
}

/*
 * Where the connection or datagram has to go instead, in `to` and `port_be`; 0: it goes on as it is. Negative: it must
 * not go at all.
 */
static __always_inline int divert(struct bpf_sock_addr *ctx, struct mesh_address *to, __u16 *port_be)
{
	struct mesh_id id = {};
	struct mesh_workload *who;
	enum mesh_why why;
	__u32 side;

	if (ctx->protocol == MESH_UDP && (__u16)ctx->user_port != bpf_htons(MESH_DNS_PORT))
		return 0; /* the short way: most datagrams are no questions */
	who = workload_of(ctx, &id);
	why = judge(ctx, who, &id, to);
	count(why);
	if (mesh_is_refused(why))
		return -1;
	if (ctx->protocol == MESH_TCP && !unmark(ctx))
		return -1;
	if (!who || (why != MESH_CAPTURED && why != MESH_DNS_CAPTURED)) {
		forget(ctx);
		return 0;
	}
	if (!keep(ctx, to))
		return -1; /* without it the tunnel could not tell where to, nor the application whom it asked for */
	if (why == MESH_CAPTURED && go_direct(ctx, who, &id, to, port_be))
		return 1;
	side = mesh_side(to);
	*to = why == MESH_DNS_CAPTURED ? who->dns_listen[side & 1] : who->listen[side & 1];
	*port_be = bpf_htons(why == MESH_DNS_CAPTURED ? who->dns_port[side & 1] : who->tcp_port[side & 1]);
	return 1;
}

static __always_inline int divert4(struct bpf_sock_addr *ctx)
{
	struct mesh_address to = mesh_mapped(ctx->user_ip4);
	__u16 port_be = 0;
	int diverted = divert(ctx, &to, &port_be);

	if (diverted > 0) {
		ctx->user_ip4 = to.word_be[3];
		ctx->user_port = port_be;
	}
	return diverted;
}

static __always_inline int divert6(struct bpf_sock_addr *ctx)
{
	struct mesh_address to;
	__u16 port_be = 0;
	int diverted;

	read_address6(ctx, &to);
	diverted = divert(ctx, &to, &port_be);
	if (diverted > 0) {
		write_address6(ctx, &to);
		ctx->user_port = port_be;
	}
	return diverted;
}

/*
 * To the tunnel's listener nothing is lost and nothing is far: an algorithm that paces (BBR, where it is the default) would
 * only break segments up and set a timer for each. Without Reno the connection is slower, not worse.
 */
static __always_inline void do_not_pace(struct bpf_sock_addr *ctx)
{
	char reno[] = "reno";

	if (ctx->protocol == MESH_TCP)
		bpf_setsockopt(ctx, MESH_SOL_TCP, MESH_TCP_CONGESTION, reno, sizeof(reno));
}

static __always_inline int connects(struct bpf_sock_addr *ctx, int diverted)
{
	if (diverted > 0)
		do_not_pace(ctx);
	return diverted < 0 ? REFUSE : ALLOW;
}

SEC("cgroup/connect4")
int mesh_connect4(struct bpf_sock_addr *ctx)
{
	return connects(ctx, divert4(ctx));
}

SEC("cgroup/connect6")
int mesh_connect6(struct bpf_sock_addr *ctx)
{
	return connects(ctx, divert6(ctx));
}

SEC("cgroup/sendmsg4")
int mesh_sendmsg4(struct bpf_sock_addr *ctx)
{
	return divert4(ctx) < 0 ? REFUSE : ALLOW;
}

SEC("cgroup/sendmsg6")
int mesh_sendmsg6(struct bpf_sock_addr *ctx)
{
	return divert6(ctx) < 0 ? REFUSE : ALLOW;
}

/* What the socket's owner takes its peer to be. */
static __always_inline struct mesh_destination *asked_of(struct bpf_sock_addr *ctx)
{
	struct mesh_destination *asked;
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 0;
	asked = bpf_sk_storage_get(&mesh_asked, sk, 0, 0);
	return asked ? asked : asked_of_whole(sk);
}

static __always_inline int name_peer4(struct bpf_sock_addr *ctx)
{
	struct mesh_destination *asked = asked_of(ctx);

	if (asked) {
		ctx->user_ip4 = asked->ip.word_be[3];
		ctx->user_port = asked->port_be;
	}
	return ALLOW;
}

static __always_inline int name_peer6(struct bpf_sock_addr *ctx)
{
	struct mesh_destination *asked = asked_of(ctx);

	if (asked) {
		write_address6(ctx, &asked->ip);
		ctx->user_port = asked->port_be;
	}
	return ALLOW;
}

SEC("cgroup/getpeername4")
int mesh_getpeername4(struct bpf_sock_addr *ctx)
{
	return name_peer4(ctx);
}

SEC("cgroup/getpeername6")
int mesh_getpeername6(struct bpf_sock_addr *ctx)
{
	return name_peer6(ctx);
}

/* An answer is said to come from the server that was asked. A datagram of anybody else keeps its sender. */
static __always_inline int is_answer(struct bpf_sock_addr *ctx)
{
	return (__u16)ctx->user_port == bpf_htons(MESH_DNS_CAPTURE_PORT);
}

SEC("cgroup/recvmsg4")
int mesh_recvmsg4(struct bpf_sock_addr *ctx)
{
	return is_answer(ctx) ? name_peer4(ctx) : ALLOW;
}

SEC("cgroup/recvmsg6")
int mesh_recvmsg6(struct bpf_sock_addr *ctx)
{
	return is_answer(ctx) ? name_peer6(ctx) : ALLOW;
}

static __always_inline int may_bind(struct bpf_sock_addr *ctx)
{
	return mesh_may_bind(ctx->protocol, bpf_ntohs((__u16)ctx->user_port)) ? ALLOW : REFUSE;
}

SEC("cgroup/bind4")
int mesh_bind4(struct bpf_sock_addr *ctx)
{
	return may_bind(ctx);
}

SEC("cgroup/bind6")
int mesh_bind6(struct bpf_sock_addr *ctx)
{
	return may_bind(ctx);
}

/* Before the SYN is built the tuple is complete. */
static __always_inline void begin(struct bpf_sock_ops *ops)
{
	struct mesh_destination *asked;
	struct mesh_tuple t = {};
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return;
	asked = bpf_sk_storage_get(&mesh_asked, sk, 0, 0);
	if (!asked)
		return;
	read_tuple(ops, &t, 0);
	bpf_map_update_elem(&mesh_underway, &t, asked, BPF_ANY);
}

SEC("sockops")
int mesh_sockops(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (mesh_multipath)
			name_whole(ops);
		if (!begin_direct(ops))
			begin(ops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		open_direct(ops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		accept_direct(ops);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		listen_unmarked(ops);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_CLOSE)
			end_direct(ops, ops->args[0]);
		break;
	}
	return ALLOW;
}
