/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whom the owner of an MPTCP socket takes its peer to be. connect() is seen on the subflow that the kernel opens for the
 * socket, getpeername() on the socket itself; when the SYN is built the one leads to the other. Part of capture.bpf.c.
 *
 * Linux before 5.19, or without MPTCP or BTF, has no way from one to the other. There the loader leaves mesh_multipath 0,
 * and the verifier takes the call out before it asks whether there is such a helper.
 */
#ifndef MESH_MULTIPATH_H
#define MESH_MULTIPATH_H

#include "sockets.h"

/* Written by the loader. In a section of its own: clang keeps initial values of structs in .rodata. */
const volatile __u32 mesh_multipath SEC(".rodata.able") = 0;

/* With the MPTCP socket, not with a subflow: it goes when the socket goes. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct mesh_peer);
} mesh_peers SEC(".maps");

/* The kernel's own socket: where it goes, sock_release is not called. */
static __always_inline int is_subflow(struct bpf_sock *sk)
{
	return mesh_multipath && bpf_skc_to_mptcp_sock(sk);
}

/*
 * The subflow that connect() of the socket itself uses is the first, and the same when the socket is used again. Others
 * (MP_JOIN) go where the kernel sends them, which is nobody's wish. So even one that was not diverted is written down.
 */
static __always_inline void name_whole(struct bpf_sock_ops *ops, struct bpf_sock *sk, const struct mesh_destination *asked)
{
	struct mptcp_sock *whole;
	struct mesh_peer *peer;
	__u64 subflow;

	whole = bpf_skc_to_mptcp_sock(sk);
	if (!whole)
		return;
	subflow = bpf_get_socket_cookie(ops);
	peer = bpf_sk_storage_get(&mesh_peers, whole, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer || (peer->subflow && peer->subflow != subflow))
		return;
	peer->subflow = subflow;
	peer->diverted = asked != 0;
	if (asked)
		peer->asked = *asked;
}

static __always_inline struct mesh_destination *asked_of_whole(struct bpf_sock *sk)
{
	struct mesh_peer *peer = bpf_sk_storage_get(&mesh_peers, sk, 0, 0);

	return peer && peer->diverted ? &peer->asked : 0;
}

#endif
