// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Connections out of a workload, on its control group: sent to the tunnel's listener before the first packet, with the
 * destination kept beside the socket. What is captured is decided in capture.h; here it is done, and done or refused.
 *
 * The destination travels: connect() keeps it with the client's socket; the socket's tuple carries it over before the
 * SYN (so that fast open is no exception); the tunnel's accepted socket takes it and tells it as SO_ORIGINAL_DST.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MESH_AF_INET 2
#define MESH_DEEPEST_CGROUP 12
#define MESH_SOL_SOCKET 1
#define MESH_SO_MARK 36
#define MESH_SOL_TCP 6
#define MESH_TCP_CONGESTION 13

#define ALLOW 1
#define REFUSE 0

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct mesh_destination);
} mesh_asked SEC(".maps");

/* From the SYN until the tunnel's side is established: microseconds. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MESH_MOST_CONNECTIONS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_tuple);
	__type(value, struct mesh_destination);
} mesh_underway SEC(".maps");

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

static __always_inline void read_address6(struct bpf_sock_addr *ctx, struct mesh_address *a)
{
	a->word_be[0] = ctx->user_ip6[0];
	a->word_be[1] = ctx->user_ip6[1];
	a->word_be[2] = ctx->user_ip6[2];
	a->word_be[3] = ctx->user_ip6[3];
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
	if (!who || (why != MESH_CAPTURED && why != MESH_DNS_CAPTURED)) {
		forget(ctx);
		return 0;
	}
	if (!keep(ctx, to))
		return -1; /* without it the tunnel could not tell where to */
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
	struct bpf_sock *sk = ctx->sk;

	return sk ? bpf_sk_storage_get(&mesh_asked, sk, 0, 0) : 0;
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

/* On the workload's control group: before the SYN is built the tuple is complete. */
SEC("sockops")
int mesh_sockops(struct bpf_sock_ops *ops)
{
	struct mesh_destination *asked;
	struct mesh_tuple t = {};
	struct bpf_sock *sk;

	if (ops->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
		return ALLOW;
	sk = ops->sk;
	if (!sk)
		return ALLOW;
	asked = bpf_sk_storage_get(&mesh_asked, sk, 0, 0);
	if (!asked)
		return ALLOW;
	read_tuple(ops, &t, 0);
	bpf_map_update_elem(&mesh_underway, &t, asked, BPF_ANY);
	return ALLOW;
}

/* What follows is for the tunnel's control group. */

static __always_inline void take_destination(struct bpf_sock_ops *ops)
{
	struct mesh_destination *underway;
	struct mesh_tuple t = {};
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return;
	read_tuple(ops, &t, 1);
	underway = bpf_map_lookup_elem(&mesh_underway, &t);
	if (!underway)
		return;
	bpf_sk_storage_get(&mesh_asked, sk, underway, BPF_SK_STORAGE_GET_F_CREATE);
	bpf_map_delete_elem(&mesh_underway, &t);
}

static __always_inline void give_ticket(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct mesh_tuple t = {};
	__u64 now;

	if (!sk || !mesh_has_connection_mark(sk->mark))
		return;
	read_tuple(ops, &t, 0);
	now = bpf_ktime_get_ns();
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
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		take_destination(ops);
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
#define MESH_OPTION_WINDOW 4096

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
		return ALLOW;
	length = ctx->level == MESH_SOL_IP ? answer4(ctx, asked) : answer6(ctx, asked);
	if (!length)
		return ALLOW;
	ctx->optlen = length;
	asm volatile("" ::: "memory"); /* clang would join both stores into one of 8 bytes, which the verifier refuses */
	ctx->retval = 0;
	return ALLOW;
}
