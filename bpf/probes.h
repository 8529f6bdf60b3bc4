/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What hangs on the kubelet's control group: its connections to this node's pods come from an address of their own, which
 * the pods let pass (mesh_is_probe, and the rules of the other backends). Part of capture.bpf.c.
 *
 * The address is one of the host's (nodeagent/redirect/probing.py puts it on lo), so that answers to it end at the host,
 * whoever forged the question, and the kernel binds to it here and nowhere else. Where it cannot, the probe keeps the
 * address it would have had, and is captured.
 */
#ifndef MESH_PROBES_H
#define MESH_PROBES_H

#include "sockets.h"

#define MESH_AF_INET6 10

/* The addresses of pods that let probes pass. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * MESH_MOST_WORKLOADS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_address);
	__type(value, __u8);
} mesh_probed SEC(".maps");

/* struct sockaddr_in and sockaddr_in6, port 0: the kernel chooses one when it connects. */
struct mesh_sockaddr4 {
	__u16 family, port_be;
	__u32 ip_be;
	__u8 zero[8];
};

struct mesh_sockaddr6 {
	__u16 family, port_be;
	__u32 flow;
	struct mesh_address ip;
	__u32 scope;
};

static __always_inline int is_probe(struct bpf_sock_addr *ctx, const struct mesh_address *to)
{
	return ctx->protocol == MESH_TCP && bpf_map_lookup_elem(&mesh_probed, to);
}

/* A socket that its owner bound keeps its source. */
static __always_inline int is_bound6(const struct bpf_sock *sk)
{
	return sk->src_ip6[0] || sk->src_ip6[1] || sk->src_ip6[2] || sk->src_ip6[3];
}

SEC("cgroup/connect4")
int mesh_probe_connect4(struct bpf_sock_addr *ctx)
{
	struct mesh_sockaddr4 from = { .family = MESH_AF_INET, .ip_be = mesh_probe_source4().word_be[3] };
	const struct mesh_address to = mesh_mapped(ctx->user_ip4);
	struct bpf_sock *sk = ctx->sk;

	if (sk && !sk->src_ip4 && is_probe(ctx, &to))
		bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from));
	return ALLOW;
}

SEC("cgroup/connect6")
int mesh_probe_connect6(struct bpf_sock_addr *ctx)
{
	struct mesh_sockaddr6 from = { .family = MESH_AF_INET6 };
	struct bpf_sock *sk = ctx->sk;
	struct mesh_address to;

	read_address6(ctx, &to);
	if (!sk || is_bound6(sk) || !is_probe(ctx, &to))
		return ALLOW;
	from.ip = mesh_is_ipv4(&to) ? mesh_probe_source4() : mesh_probe_source6();
	bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from));
	return ALLOW;
}

#endif
