// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Connections out of a workload, on its control group: sent to the tunnel's listener before the first packet, with the
 * destination kept beside the socket. What is captured is decided in capture.h; here it is done, and done or refused.
 *
 * The destination travels: connect() hands it over to the callback before the SYN (so that fast open is no exception), which
 * files it under the socket's tuple; the tunnel's accepted socket takes it when asked for SO_ORIGINAL_DST.
 */
#include "sockets.h"

#include "direct.h"
#include "filed.h"
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

/* A socket that goes somewhere else now must not be told the old tale. */
static __always_inline void forget(struct bpf_sock_addr *ctx)
{
	struct mesh_destination dropped;
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return;
	bpf_sk_storage_delete(&mesh_asked, sk);
	if (ctx->protocol == MESH_TCP)
		take_over(bpf_get_socket_cookie(ctx), &dropped);
}

/* A datagram's socket asks nobody in between: what it is told comes from where it keeps it. */
static __always_inline int remember(struct bpf_sock_addr *ctx, const struct mesh_address *to)
{
	struct mesh_destination asked = { .ip = *to, .port_be = (__u16)ctx->user_port };
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 0;
	if (ctx->protocol != MESH_TCP)
		return keep(sk, &asked);
	if (bpf_sk_storage_get(&mesh_asked, sk, 0, 0)) /* that takes no reference, as deleting does */
		bpf_sk_storage_delete(&mesh_asked, sk);
	if (!is_subflow(sk) && hand_over(bpf_get_socket_cookie(ctx), &asked))
		return 1;
	return keep(sk, &asked);
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
	if (ctx->protocol == MESH_TCP && !unmark(ctx, who))
		return -1;
	if (!who || (why != MESH_CAPTURED && why != MESH_DNS_CAPTURED)) {
		forget(ctx);
		return 0;
	}
	if (why == MESH_CAPTURED && go_direct(ctx, who, &id, to, port_be))
		return 1;
	if (!remember(ctx, to))
		return -1; /* without it the tunnel could not tell where to, nor the application whom it asked for */
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

/* Of a connection to the tunnel. */
static __always_inline int filed_of(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct mesh_destination *asked)
{
	const struct mesh_destination *underway;
	struct mesh_tuple t = {};

	if (ctx->protocol != MESH_TCP || !mesh_is_met_at(bpf_ntohs(sk->dst_port)))
		return 0;
	read_tuple_of(sk, &t, 0);
	t.netns = bpf_get_netns_cookie(ctx);
	if (read_filed(&t, asked, 0))
		return 1;
	underway = bpf_map_lookup_elem(&mesh_underway, &t);
	if (underway)
		*asked = *underway;
	return underway != 0;
}

/* What the socket's owner takes its peer to be. */
static __always_inline int asked_of(struct bpf_sock_addr *ctx, struct mesh_destination *asked)
{
	const struct mesh_destination *kept;
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 0;
	kept = bpf_sk_storage_get(&mesh_asked, sk, 0, 0);
	if (!kept)
		kept = asked_of_whole(sk);
	if (!kept)
		return filed_of(ctx, sk, asked);
	*asked = *kept;
	return 1;
}

static __always_inline int name_peer4(struct bpf_sock_addr *ctx)
{
	struct mesh_destination asked = {};

	if (asked_of(ctx, &asked)) {
		ctx->user_ip4 = asked.ip.word_be[3];
		ctx->user_port = asked.port_be;
	}
	return ALLOW;
}

static __always_inline int name_peer6(struct bpf_sock_addr *ctx)
{
	struct mesh_destination asked = {};

	if (asked_of(ctx, &asked)) {
		write_address6(ctx, &asked.ip);
		ctx->user_port = asked.port_be;
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

/* Whether the socket's destination is kept with it. It may go directly then, or be a part of a whole: else it was handed over. */
static __always_inline int kept_with(struct bpf_sock_ops *ops, struct bpf_sock *sk, struct mesh_destination *asked)
{
	const struct mesh_destination *kept = bpf_sk_storage_get(&mesh_asked, sk, 0, 0);

	if (kept)
		*asked = *kept;
	if (mesh_multipath)
		name_whole(ops, sk, kept ? asked : 0);
	return kept != 0;
}

/* Before the SYN is built the tuple is complete. Who goes to the tunnel by himself gets nobody's destination. */
static __always_inline void begin(struct bpf_sock_ops *ops)
{
	struct mesh_destination asked = {};
	struct bpf_sock *sk = ops->sk;
	struct mesh_tuple t = {};
	__u64 socket;
	int diverted;

	if (!sk)
		return;
	socket = bpf_get_socket_cookie(ops);
	diverted = take_over(socket, &asked);
	if (!diverted) {
		diverted = kept_with(ops, sk, &asked);
		if (begin_direct(ops))
			return;
	}
	read_tuple(ops, &t, 0);
	if (diverted && file(&t, &asked, (__u32)socket))
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	else if (mesh_is_met_at(t.to_port))
		unfile(&t);
}

/* `from`: the state of TCP that it closes from. */
static __always_inline void end(struct bpf_sock_ops *ops, __u32 from)
{
	struct mesh_tuple t = {};

	read_tuple(ops, &t, 0);
	if (mesh_is_met_at(t.to_port))
		end_filed(&t, (__u32)bpf_get_socket_cookie(ops), mesh_is_orderly(from));
}

/* Until the socket's next SYN: a connect() of it that fails before, as its tuple is another's, ends with the same change. */
static __always_inline void be_told_no_more(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_STATE_CB_FLAG);
}

SEC("sockops")
int mesh_sockops(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
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
		if (ops->args[1] == BPF_TCP_CLOSE) {
			end(ops, ops->args[0]);
			end_direct(ops, ops->args[0]);
			be_told_no_more(ops);
		}
		break;
	}
	return ALLOW;
}

/* A socket that goes before its SYN. */
SEC("cgroup/sock_release")
int mesh_release(struct bpf_sock *sk)
{
	struct mesh_destination dropped;

	take_over(bpf_get_socket_cookie(sk), &dropped);
	return ALLOW;
}
