/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From one workload to another of this node without the tunnel between, where the tunnel has said so beforehand. Part of
 * capture.bpf.c; the tunnel's side is ztunnel/crates/net/src/direct.
 *
 * The tunnel writes a pass for (namespace, destination), good for as long as it lives and nothing has changed. A socket
 * that connects under one is noted, gets the direct mark, which the guard lets out, and files its 4-tuple as a ticket
 * before its SYN, for which the other end's look-up lets it in. What becomes of it stands in mesh_direct for the tunnel,
 * which judges it as it judges every connection. Whatever is missing, the connection takes the tunnel.
 */
#ifndef MESH_DIRECT_H
#define MESH_DIRECT_H

#include "sockets.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MESH_MOST_CONNECTIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_pass_key);
	__type(value, struct mesh_pass);
} mesh_passes SEC(".maps");

/* By the number that a tunnel gave itself. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u64);
	__type(value, struct mesh_issuer);
} mesh_issuers SEC(".maps");

/* Until the tunnel that gave the pass has taken note of the end, or the next one has. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MESH_MOST_CONNECTIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_direct_key);
	__type(value, struct mesh_direct);
} mesh_direct SEC(".maps");

/* With the client's socket: under which key it is noted. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct mesh_direct_key);
} mesh_noted SEC(".maps");

/* The tunnel that gave it still lives, and nothing has changed since. */
static __always_inline int is_good(const struct mesh_pass *pass, __u64 now)
{
	const struct mesh_issuer *issuer = bpf_map_lookup_elem(&mesh_issuers, &pass->issuer);

	return issuer && mesh_is_good(pass, issuer, now);
}

/* Whether the workload behind a namespace's cookie takes part: only then its own hooks let answers out. */
static __always_inline int takes_part(__u64 netns)
{
	const struct mesh_id id = { .number = netns, .kind = MESH_NETNS };
	const struct mesh_workload *who = bpf_map_lookup_elem(&mesh_workloads, &id);

	return who && who->flags & MESH_GOES_DIRECT;
}

static __always_inline int set_mark(struct bpf_sock_addr *ctx, __u32 mark)
{
	return !bpf_setsockopt(ctx, MESH_SOL_SOCKET, MESH_SO_MARK, &mark, sizeof(mark));
}

/*
 * A socket that was direct and goes somewhere else now is so no longer, whatever mark its owner has given it meanwhile. 0: it could not
 * be told; it must not go.
 */
static __always_inline int unmark(struct bpf_sock_addr *ctx, const struct mesh_workload *who)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 1;
	if (mesh_has_direct_mark(sk->mark) || (who && who->flags & MESH_GOES_DIRECT))
		bpf_sk_storage_delete(&mesh_noted, sk);
	return mesh_has_direct_mark(sk->mark) ? set_mark(ctx, sk->mark & ~MESH_MARK_MASK) : 1;
}

static __always_inline int note(struct bpf_sock_addr *ctx, const struct mesh_pass *pass, __u64 netns, __u64 now,
				const struct mesh_destination *asked)
{
	struct mesh_direct_key key = { .socket = bpf_get_socket_cookie(ctx), .began_ns = now };
	struct mesh_direct connection = { .pass = pass->number, .issuer = pass->issuer, .netns = netns };
	struct mesh_destination dropped;
	struct bpf_sock *sk = ctx->sk;
	struct mesh_direct_key *noted;

	take_over(key.socket, &dropped); /* of a connect() that failed before its SYN */
	connection.tuple.netns = pass->netns;
	if (!sk || bpf_map_update_elem(&mesh_direct, &key, &connection, BPF_NOEXIST))
		return 0; /* nobody would see it */
	noted = bpf_sk_storage_get(&mesh_noted, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (noted && keep(sk, asked) && set_mark(ctx, mesh_direct_mark(sk->mark))) {
		*noted = key;
		return 1;
	}
	bpf_sk_storage_delete(&mesh_noted, sk);
	bpf_map_delete_elem(&mesh_direct, &key);
	return 0;
}

/* The address behind what was asked for, in `to` and `port_be`; 0: to the tunnel. */
static __always_inline int go_direct(struct bpf_sock_addr *ctx, const struct mesh_workload *who, const struct mesh_id *id,
				     struct mesh_address *to, __u16 *port_be)
{
	struct mesh_destination asked = { .ip = *to, .port_be = (__u16)ctx->user_port };
	struct mesh_pass_key key = { .netns = id->number, .to = asked.ip, .port_be = asked.port_be };
	const struct mesh_pass *pass;
	__u64 now;

	if (!(who->flags & MESH_GOES_DIRECT) || id->kind != MESH_NETNS || ctx->protocol != MESH_TCP)
		return 0;
	pass = bpf_map_lookup_elem(&mesh_passes, &key);
	if (!pass)
		return 0;
	now = bpf_ktime_get_ns();
	if (!is_good(pass, now) || !takes_part(pass->netns) || !note(ctx, pass, id->number, now, &asked))
		return 0;
	*to = pass->to;
	*port_be = pass->port_be;
	return 1;
}

static __always_inline struct mesh_direct_key *noted_of(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	return sk ? bpf_sk_storage_get(&mesh_noted, sk, 0, 0) : 0;
}

/* Before the SYN. A source that is not the workload's gets no ticket: its SYN will be the other tunnel end's, as plaintext. */
static __always_inline int begin_direct(struct bpf_sock_ops *ops)
{
	struct mesh_direct_key *noted = noted_of(ops);
	struct mesh_id id = { .kind = MESH_NETNS };
	const struct mesh_workload *who;
	struct mesh_direct *connection;
	struct mesh_tuple t = {};
	__u64 began;

	if (!noted)
		return 0;
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	connection = bpf_map_lookup_elem(&mesh_direct, noted);
	if (!connection)
		return 1;
	read_tuple(ops, &t, 0);
	id.number = t.netns;
	who = bpf_map_lookup_elem(&mesh_workloads, &id);
	if (!who || !mesh_owns(who, &id, &t.from))
		return 1;
	t.netns = connection->tuple.netns;
	connection->tuple = t;
	connection->state = MESH_DIRECT_BEGUN;
	began = mesh_direct_ticket(bpf_ktime_get_ns());
	bpf_map_update_elem(&mesh_tickets, &t, &began, BPF_ANY);
	return 1;
}

static __always_inline void open_direct(struct bpf_sock_ops *ops)
{
	struct mesh_direct_key *noted = noted_of(ops);
	struct mesh_direct *connection = noted ? bpf_map_lookup_elem(&mesh_direct, noted) : 0;

	if (connection)
		connection->state = MESH_DIRECT_OPEN;
}

/* `from`: the state of TCP that it closes from. */
static __always_inline void end_direct(struct bpf_sock_ops *ops, __u32 from)
{
	struct mesh_direct_key *noted = noted_of(ops);
	struct mesh_direct *connection = noted ? bpf_map_lookup_elem(&mesh_direct, noted) : 0;
	struct bpf_sock *sk = ops->sk;

	if (!connection)
		return;
	bpf_map_delete_elem(&mesh_tickets, &connection->tuple);
	connection->sent = mesh_sent(ops->bytes_acked, from);
	connection->received = mesh_received(ops->bytes_received, from);
	connection->was_open = connection->state == MESH_DIRECT_OPEN;
	connection->state = MESH_DIRECT_CLOSED;
	if (sk)
		bpf_sk_storage_delete(&mesh_noted, sk);
}

/* The other end's socket: its answers get the mark, which the guard lets out. */
static __always_inline void accept_direct(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct mesh_tuple t = {};
	__u64 *began;
	__u32 mark;

	if (!sk)
		return;
	read_tuple(ops, &t, 1);
	began = bpf_map_lookup_elem(&mesh_tickets, &t);
	if (!began || !mesh_is_direct_ticket(*began))
		return;
	mark = mesh_direct_mark(sk->mark);
	bpf_setsockopt(ops, MESH_SOL_SOCKET, MESH_SO_MARK, &mark, sizeof(mark));
}

/* What a listener has, its accepted sockets inherit. */
static __always_inline void listen_unmarked(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	__u32 mark;

	if (!sk || !mesh_has_direct_mark(sk->mark))
		return;
	mark = sk->mark & ~MESH_MARK_MASK;
	bpf_setsockopt(ops, MESH_SOL_SOCKET, MESH_SO_MARK, &mark, sizeof(mark));
}

/* Nobody gives himself the mark: since Linux 5.17 a container's usual capabilities are enough for other ones. */
SEC("cgroup/setsockopt")
int mesh_setsockopt(struct bpf_sockopt *ctx)
{
	__u32 *mark = ctx->optval;

	if (ctx->optlen > MESH_OPTION_WINDOW) {
		ctx->optlen = 0; /* larger than we are shown: it is the kernel's */
		return ALLOW;
	}
	if (ctx->level != MESH_SOL_SOCKET || ctx->optname != MESH_SO_MARK || (void *)(mark + 1) > ctx->optval_end)
		return ALLOW;
	return mesh_has_direct_mark(*mark) ? REFUSE : ALLOW;
}

#endif
