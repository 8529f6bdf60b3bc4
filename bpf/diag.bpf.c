// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Looks on: who connects where, how long it takes, what is sent again. Tracepoints only, whose records keep their layout
 * (events/sock/inet_sock_set_state, events/tcp/tcp_retransmit_skb); nothing is changed. For nodeagent/diag.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MESH_IPPROTO_TCP 6
#define MESH_AF_INET 2
#define MESH_MOST_UNDERWAY 16384

enum mesh_seen { MESH_CONNECTED, MESH_REFUSED, MESH_RESENT };

struct mesh_event {
	__u64 took_ns; /* from the SYN; 0 when it was not seen */
	__u32 pid;
	__u16 from_port, to_port; /* host order */
	__u8 from[16], to[16];	  /* IPv4 in the first four bytes */
	__u8 seen, is_ipv4, zero[6];
	char program[16];
};
_Static_assert(sizeof(struct mesh_event) == 72, "= nodeagent/diag/events.py EVENT_BYTES");

/* What follows the eight bytes that all records have and no program may read. */
struct state_record {
	__u64 socket;
	__s32 before, after;
	__u16 from_port, to_port, family, protocol;
	__u8 from4[4], to4[4], from6[16], to6[16];
};

struct resent_record {
	__u64 packet, socket;
	__s32 state;
	__u16 from_port, to_port, family;
	__u8 from4[4], to4[4], from6[16], to6[16];
};

struct begun {
	__u64 at_ns;
	__u32 pid, zero;
	char program[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MESH_MOST_UNDERWAY);
	__type(key, __u64); /* the socket */
	__type(value, struct begun);
} mesh_begun SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} mesh_events SEC(".maps");

/* Taken over as a whole, at fixed offsets: clang would read the family's field through a computed pointer, which the
 * verifier refuses. */
#define MESH_TAKE(copy, context)                                                                                       \
	__builtin_memcpy(&(copy), __builtin_assume_aligned((context) + 8, 8), sizeof(copy));                                                               \
	asm volatile("" ::"r"(&(copy)) : "memory")

static __always_inline void copy_addresses(struct mesh_event *event, int is_ipv4, const __u8 *from4, const __u8 *to4,
					   const __u8 *from6, const __u8 *to6)
{
	event->is_ipv4 = (__u8)is_ipv4;
	__builtin_memset(event->from, 0, sizeof(event->from));
	__builtin_memset(event->to, 0, sizeof(event->to));
	for (int i = 0; i < 16; i++) {
		if (!is_ipv4) {
			event->from[i] = from6[i];
			event->to[i] = to6[i];
		} else if (i < 4) {
			event->from[i] = from4[i];
			event->to[i] = to4[i];
		}
	}
}

static __always_inline void begin(__u64 socket)
{
	struct begun begun = { .at_ns = bpf_ktime_get_ns(), .pid = bpf_get_current_pid_tgid() >> 32 };

	bpf_get_current_comm(begun.program, sizeof(begun.program));
	bpf_map_update_elem(&mesh_begun, &socket, &begun, BPF_ANY);
}

SEC("tracepoint/sock/inet_sock_set_state")
int mesh_watch_states(const char *context)
{
	struct state_record record;
	struct mesh_event *event;
	struct begun *begun;
	__u64 socket;

	MESH_TAKE(record, context);
	socket = record.socket;
	if (record.protocol != MESH_IPPROTO_TCP)
		return 0;
	if (record.after == BPF_TCP_SYN_SENT) {
		begin(socket);
		return 0;
	}
	if (record.before != BPF_TCP_SYN_SENT)
		return 0;
	begun = bpf_map_lookup_elem(&mesh_begun, &socket);
	if (!begun)
		return 0;
	event = bpf_ringbuf_reserve(&mesh_events, sizeof(*event), 0);
	if (event) {
		event->took_ns = bpf_ktime_get_ns() - begun->at_ns;
		event->pid = begun->pid;
		event->from_port = record.from_port;
		event->to_port = record.to_port;
		event->seen = record.after == BPF_TCP_ESTABLISHED ? MESH_CONNECTED : MESH_REFUSED;
		copy_addresses(event, record.family == MESH_AF_INET, record.from4, record.to4, record.from6, record.to6);
		__builtin_memcpy(event->program, begun->program, sizeof(event->program));
		bpf_ringbuf_submit(event, 0);
	}
	bpf_map_delete_elem(&mesh_begun, &socket);
	return 0;
}

SEC("tracepoint/tcp/tcp_retransmit_skb")
int mesh_watch_retransmits(const char *context)
{
	struct resent_record record;
	struct mesh_event *event;

	MESH_TAKE(record, context);
	event = bpf_ringbuf_reserve(&mesh_events, sizeof(*event), 0);
	if (!event)
		return 0;
	event->took_ns = 0;
	event->pid = 0; /* a timer's work, mostly: nobody's process */
	event->from_port = record.from_port;
	event->to_port = record.to_port;
	event->seen = MESH_RESENT;
	copy_addresses(event, record.family == MESH_AF_INET, record.from4, record.to4, record.from6, record.to6);
	__builtin_memset(event->program, 0, sizeof(event->program));
	bpf_ringbuf_submit(event, 0);
	return 0;
}
