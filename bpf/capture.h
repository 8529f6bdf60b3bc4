/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is captured and what is not, as functions of values. Freestanding: one source for the verifier (capture.bpf.c,
 * inbound.bpf.c) and for pytest (tests/bpf, through ctypes). No map, no helper, no context in here.
 *
 * Byte order: *_be is network order, every other integer is host order. An address is four words in network order; an
 * IPv4 address is the mapped form ::ffff:a.b.c.d, so that one comparison serves both families.
 */
#ifndef MESH_CAPTURE_H
#define MESH_CAPTURE_H

#include <linux/types.h>

/* Changes when a map's layout or meaning does; part of every pin's path. = nodeagent/redirect/pins.py SCHEMA */
#define MESH_SCHEMA 1

/* = nodeagent/redirect/plan.py */
#define MESH_OUTBOUND_PORT 15001
#define MESH_INBOUND_PORT 15006
#define MESH_HBONE_PORT 15008
#define MESH_DNS_CAPTURE_PORT 15053
#define MESH_DNS_PORT 53
#define MESH_MARK_MASK 0xfffu
#define MESH_CONNECTION_MARK 0x111u
#define MESH_DIRECT_MARK 0x222u

#define MESH_TCP 6
#define MESH_UDP 17
#define MESH_MPTCP 262

/* A handshake that the tunnel began towards an application is over by then, with all its repetitions. */
#define MESH_TICKET_NS (60ULL * 1000 * 1000 * 1000)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define MESH_BE32(x) __builtin_bswap32(x)
#else
#define MESH_BE32(x) (x)
#endif

#define MESH_INLINE static inline __attribute__((always_inline))

struct mesh_address {
	__u32 word_be[4];
};

enum mesh_flag {
	MESH_CAPTURE_DNS = 1 << 0,
	MESH_INGRESS_MODE = 1 << 1, /* plaintext that comes in is left alone */
	MESH_HAS_IPV4 = 1 << 2,	    /* the workload has an address of the family */
	MESH_HAS_IPV6 = 1 << 3,
	MESH_EXEMPT_PROBES = 1 << 4, /* the kubelet's probes come from one of two known addresses */
	MESH_EXCLUSIONS = 1 << 5,    /* some of mesh_left_ports, mesh_left_ranges is the workload's */
	MESH_MORE_ADDRESSES = 1 << 6, /* it has others than `listen`: mesh_own has them all */
	MESH_GOES_DIRECT = 1 << 7,    /* takes part in the direct path within the node: all hooks for it hang */
	MESH_ONE_IPV4 = 1 << 8,	      /* `listen` is all that it has of the family, whatever it has of the other */
};

/* Who a socket belongs to: the cookie of its network namespace, or the id of a control group in the host's. */
enum mesh_kind { MESH_NETNS = 1, MESH_CGROUP = 2 };

struct mesh_id {
	__u64 number;
	__u32 kind; /* enum mesh_kind: a cookie never equals a control group's id by accident */
	__u32 zero;
};

/* One enrolled workload. Written by nodeagent/redirect/bpf.py. Where the tunnel listens for it: [0] IPv4, [1] IPv6. */
struct mesh_workload {
	struct mesh_address listen[2];
	struct mesh_address dns_listen[2]; /* loopback: who asks is known by the namespace */
	__u16 tcp_port[2];
	__u16 dns_port[2];
	__u32 flags; /* enum mesh_flag */
	__u32 zero;
};

/* Of what is filed under a tuple. The client's end removes it, and where the tunnel has not asked yet, the tunnel does. */
enum mesh_filed { MESH_FILED, MESH_TAKEN, MESH_CLIENT_GONE };

/* Where a socket's owner wanted to go. */
struct mesh_destination {
	struct mesh_address ip;
	__u16 port_be;
	__u16 state; /* enum mesh_filed */
};

/* What is kept with an MPTCP socket. `diverted`: else its peer is whom it is connected to. */
struct mesh_peer {
	__u64 subflow; /* cookie of the one that connect() uses; 0: none yet */
	struct mesh_destination asked;
	__u32 diverted;
};

struct mesh_tuple {
	__u64 netns;
	struct mesh_address from, to;
	__u16 from_port, to_port;
	__u32 zero;
};

/* For what is filed under tuples: one for each port. */
#define MESH_PLACES 65536

/* Whose, and where the application wants to go: maybe a service's address. */
struct mesh_pass_key {
	__u64 netns;
	struct mesh_address to;
	__u16 port_be;
	__u16 zero[3];
};

/* What the tunnel grants: straight to an address of a workload of this node. Written by ztunnel/crates/net/src/direct. */
struct mesh_pass {
	__u64 number;
	__u64 issuer;
	__u64 epoch;
	__u64 netns;	/* of the destination */
	__u64 until_ns; /* since boot */
	struct mesh_address to;
	__u16 port_be;
	__u16 zero[3];
};

/* A tunnel: when it was last alive, and since which change its passes are good. */
struct mesh_issuer {
	__u64 seen_ns;
	__u64 epoch;
};

/* A tunnel that has said nothing for so long is taken for dead. = HEARTBEAT in ztunnel/crates/net/src/direct */
#define MESH_ISSUER_NS (1000ULL * 1000 * 1000)

struct mesh_direct_key {
	__u64 socket; /* cookie */
	__u64 began_ns;
};

enum mesh_direct_state { MESH_DIRECT_NEW, MESH_DIRECT_BEGUN, MESH_DIRECT_OPEN, MESH_DIRECT_CLOSED };

struct mesh_direct {
	struct mesh_tuple tuple; /* netns: the destination's */
	__u64 pass;
	__u64 issuer;
	__u64 netns; /* the client's */
	__u64 sent;
	__u64 received;
	__u32 state; /* enum mesh_direct_state */
	__u32 was_open;
};

enum mesh_direction { MESH_OUT, MESH_IN };

struct mesh_own_key {
	struct mesh_id who;
	struct mesh_address ip;
};

struct mesh_port_key {
	struct mesh_id who;
	__u16 port;
	__u16 direction; /* enum mesh_direction */
	__u32 zero;
};

struct mesh_range_key {
	__u32 prefix_bits; /* of everything that follows */
	__u32 direction;
	struct mesh_id who;
	struct mesh_address ip;
};

struct mesh_listener_key {
	__u64 netns;
	__u32 port;
	__u32 zero;
};

enum mesh_why {
	MESH_CAPTURED,
	MESH_DNS_CAPTURED,
	MESH_NOT_ENROLLED, /* refused: whoever is hooked and unknown must not speak */
	MESH_NO_ADDRESS,   /* refused: the workload has none of this family, now */
	MESH_NOT_TCP,
	MESH_LOOPBACK,
	MESH_OWN_ADDRESS,
	MESH_EXCLUDED,
	MESH_WHY_MAX,
};

MESH_INLINE int mesh_same(const struct mesh_address *a, const struct mesh_address *b)
{
	return a->word_be[0] == b->word_be[0] && a->word_be[1] == b->word_be[1] && a->word_be[2] == b->word_be[2] &&
	       a->word_be[3] == b->word_be[3];
}

MESH_INLINE int mesh_is_ipv4(const struct mesh_address *a)
{
	return !a->word_be[0] && !a->word_be[1] && a->word_be[2] == MESH_BE32(0xffff);
}

MESH_INLINE struct mesh_address mesh_mapped(__u32 ip_be)
{
	struct mesh_address a = { { 0, 0, MESH_BE32(0xffff), ip_be } };

	return a;
}

MESH_INLINE int mesh_is_loopback(const struct mesh_address *a)
{
	if (mesh_is_ipv4(a))
		return MESH_BE32(a->word_be[3]) >> 24 == 127;
	return !a->word_be[0] && !a->word_be[1] && !a->word_be[2] && a->word_be[3] == MESH_BE32(1);
}

/* Where captured TCP comes to the tunnel: only there is anything filed under a connection's tuple. */
MESH_INLINE int mesh_is_met_at(__u16 port)
{
	return port == MESH_OUTBOUND_PORT || port == MESH_DNS_CAPTURE_PORT;
}

MESH_INLINE __u64 mesh_pair(const struct mesh_address *a, int word)
{
	return (__u64)a->word_be[word] << 32 | a->word_be[word + 1];
}

/*
 * Where what is filed under a tuple has its place, below MESH_PLACES. Two ports of one address never have the same, towards one listener;
 * where such a row of them begins is scattered.
 */
MESH_INLINE __u32 mesh_place_number(const struct mesh_tuple *t)
{
	const __u64 scatter = 0x9e3779b97f4a7c15ULL; /* 2^64 divided by the golden ratio */
	__u64 row = (t->netns + t->to_port) ^ mesh_pair(&t->from, 0) ^ mesh_pair(&t->from, 2) ^ mesh_pair(&t->to, 0);

	row = (row * scatter) ^ mesh_pair(&t->to, 2);
	return (t->from_port + (__u32)(row * scatter >> 48)) & (MESH_PLACES - 1);
}

/* connect() to :: or 0.0.0.0 means this machine. */
MESH_INLINE int mesh_is_unspecified(const struct mesh_address *a)
{
	return !a->word_be[0] && !a->word_be[1] && !a->word_be[3] && (!a->word_be[2] || mesh_is_ipv4(a));
}

/*
 * One connect(), or one datagram, of a process in a workload's control group. `own`: one of the workload's addresses;
 * `excluded`: its owner wants it left alone.
 */
MESH_INLINE enum mesh_why mesh_outbound(const struct mesh_workload *who, __u32 protocol,
					const struct mesh_address *to, __u16 port, int own, int excluded)
{
	if (protocol == MESH_MPTCP)
		protocol = MESH_TCP;
	if (protocol != MESH_TCP && protocol != MESH_UDP)
		return MESH_NOT_TCP;
	if (mesh_is_loopback(to) || mesh_is_unspecified(to))
		return MESH_LOOPBACK;
	if (protocol == MESH_UDP) {
		if (port != MESH_DNS_PORT || !who || !(who->flags & MESH_CAPTURE_DNS))
			return MESH_NOT_TCP;
	} else if (!who) {
		return MESH_NOT_ENROLLED;
	}
	if (own)
		return MESH_OWN_ADDRESS;
	if (excluded)
		return MESH_EXCLUDED;
	if (!(who->flags & (mesh_is_ipv4(to) ? MESH_HAS_IPV4 : MESH_HAS_IPV6)))
		return MESH_NO_ADDRESS;
	if (port == MESH_DNS_PORT && who->flags & MESH_CAPTURE_DNS)
		return MESH_DNS_CAPTURED;
	return MESH_CAPTURED;
}

MESH_INLINE int mesh_is_refused(enum mesh_why why)
{
	return why == MESH_NOT_ENROLLED || why == MESH_NO_ADDRESS;
}

/* Which of a workload's listeners: 0 for IPv4, 1 for IPv6. */
MESH_INLINE __u32 mesh_side(const struct mesh_address *to)
{
	return mesh_is_ipv4(to) ? 0 : 1;
}

/* A pod that held one of these would take the tunnel's place while the tunnel is away. */
MESH_INLINE int mesh_may_bind(__u32 protocol, __u16 port)
{
	if (protocol == MESH_UDP)
		return port != MESH_DNS_CAPTURE_PORT;
	return port != MESH_OUTBOUND_PORT && port != MESH_INBOUND_PORT && port != MESH_HBONE_PORT &&
	       port != MESH_DNS_CAPTURE_PORT;
}

/* What looking a new connection's socket up in a workload's namespace should end in. */
enum mesh_way { MESH_PASS, MESH_TO_TUNNEL, MESH_ASK };

/*
 * A SYN that came in, as far as its addresses tell. MESH_ASK: the tunnel's own dial, an exemption or another address of
 * the workload may still let it pass; else it goes to the tunnel.
 */
MESH_INLINE enum mesh_way mesh_inbound(const struct mesh_workload *who, __u32 protocol, const struct mesh_address *from,
				       const struct mesh_address *to, __u16 to_port)
{
	if (protocol != MESH_TCP)
		return MESH_PASS;
	if (!who)
		return MESH_TO_TUNNEL;
	if (to_port == MESH_HBONE_PORT || who->flags & MESH_INGRESS_MODE)
		return MESH_PASS;
	if (mesh_same(from, to) || mesh_is_loopback(to))
		return MESH_PASS;
	return MESH_ASK;
}

/* Where the kubelet's probes come from, and nothing else can: 169.254.7.127, fd16:9254:7127:1337:ffff:ffff:ffff:ffff. */
MESH_INLINE struct mesh_address mesh_probe_source4(void)
{
	return mesh_mapped(MESH_BE32(0xa9fe077f));
}

MESH_INLINE struct mesh_address mesh_probe_source6(void)
{
	const struct mesh_address a = { { MESH_BE32(0xfd169254), MESH_BE32(0x71271337), ~0u, ~0u } };

	return a;
}

MESH_INLINE int mesh_is_probe(const struct mesh_workload *who, const struct mesh_address *from)
{
	const struct mesh_address four = mesh_probe_source4(), six = mesh_probe_source6();

	return who->flags & MESH_EXEMPT_PROBES && (mesh_same(from, &four) || mesh_same(from, &six));
}

/* `mark` with the connection mark in it, other users' bits kept. */
MESH_INLINE __u32 mesh_connection_mark(__u32 mark)
{
	return (mark & ~MESH_MARK_MASK) | MESH_CONNECTION_MARK;
}

MESH_INLINE int mesh_has_connection_mark(__u32 mark)
{
	return (mark & MESH_MARK_MASK) == MESH_CONNECTION_MARK;
}

MESH_INLINE __u32 mesh_direct_mark(__u32 mark)
{
	return (mark & ~MESH_MARK_MASK) | MESH_DIRECT_MARK;
}

MESH_INLINE int mesh_has_direct_mark(__u32 mark)
{
	return (mark & MESH_MARK_MASK) == MESH_DIRECT_MARK;
}

/* `now` may be older than what another processor wrote. */
MESH_INLINE int mesh_is_good(const struct mesh_pass *pass, const struct mesh_issuer *issuer, __u64 now)
{
	return pass->epoch == issuer->epoch && now < pass->until_ns && now < issuer->seen_ns + MESH_ISSUER_NS;
}

/* A ticket is the moment that it was given; its last bit tells a workload's from the tunnel's. */
MESH_INLINE __u64 mesh_direct_ticket(__u64 now)
{
	return now | 1;
}

MESH_INLINE int mesh_is_direct_ticket(__u64 ticket)
{
	return ticket & 1;
}

/* Of the sequence numbers that the peer acknowledged, SYN and FIN are no bytes. `from`: TCP's state until now. */
MESH_INLINE __u64 mesh_sent(__u64 acknowledged, __u32 from)
{
	const __u32 fin_acknowledged = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11; /* FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING */
	__u64 more = 1 + (fin_acknowledged >> from & 1);

	return acknowledged > more ? acknowledged - more : 0;
}

/* Closed by a FIN of this end: whoever accepts it still finds what was sent. `from`: TCP's state until now. */
MESH_INLINE int mesh_is_orderly(__u32 from)
{
	const __u32 fin_sent = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11; /* FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING */

	return fin_sent >> from & 1;
}

/* The peer's FIN has come, or, from FIN_WAIT2 of a socket that nobody holds any longer, may yet come: then one too few. */
MESH_INLINE __u64 mesh_received(__u64 received, __u32 from)
{
	const __u32 fin_received = 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 11; /* and CLOSE_WAIT */
	__u64 more = fin_received >> from & 1;

	return received > more ? received - more : 0;
}

#endif
