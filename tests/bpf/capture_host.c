/* bpf/capture.h for pytest: the same functions, with a name that the dynamic linker can find. */
#include <stddef.h>

#include "../../bpf/capture.h"

int outbound(const struct mesh_workload *who, __u32 protocol, const struct mesh_address *to, __u16 port, int own, int left)
{
	return mesh_outbound(who, protocol, to, port, own, left);
}

int refused(int why) { return mesh_is_refused((enum mesh_why)why); }

int inbound(const struct mesh_workload *who, __u32 protocol, const struct mesh_address *from, const struct mesh_address *to,
	    __u16 port)
{
	return mesh_inbound(who, protocol, from, to, port);
}

int probe(const struct mesh_workload *who, const struct mesh_address *from) { return mesh_is_probe(who, from); }
int may_bind(__u32 protocol, __u16 port) { return mesh_may_bind(protocol, port); }
int side(const struct mesh_address *to) { return (int)mesh_side(to); }
__u32 connection_mark(__u32 mark) { return mesh_connection_mark(mark); }
int has_connection_mark(__u32 mark) { return mesh_has_connection_mark(mark); }

__u32 direct_mark(__u32 mark) { return mesh_direct_mark(mark); }
int has_direct_mark(__u32 mark) { return mesh_has_direct_mark(mark); }
__u64 sent(__u64 acknowledged, __u32 from) { return mesh_sent(acknowledged, from); }
__u64 received(__u64 bytes, __u32 from) { return mesh_received(bytes, from); }
int orderly(__u32 from) { return mesh_is_orderly(from); }
int met_at(__u16 port) { return mesh_is_met_at(port); }
int is_direct_ticket(__u64 now) { return mesh_is_direct_ticket(mesh_direct_ticket(now)); }

int good(__u64 epoch, __u64 until_ns, __u64 now_epoch, __u64 seen_ns, __u64 now)
{
	const struct mesh_pass pass = { .epoch = epoch, .until_ns = until_ns };
	const struct mesh_issuer issuer = { .seen_ns = seen_ns, .epoch = now_epoch };

	return mesh_is_good(&pass, &issuer, now);
}

__u32 place_number(const struct mesh_tuple *t) { return mesh_place_number(t); }
int schema(void) { return MESH_SCHEMA; }
int outcomes(void) { return MESH_WHY_MAX; }

int sizes(int which)
{
	const size_t all[] = { sizeof(struct mesh_id), sizeof(struct mesh_workload), sizeof(struct mesh_own_key),
			       sizeof(struct mesh_port_key), sizeof(struct mesh_range_key),
			       sizeof(struct mesh_listener_key), sizeof(struct mesh_pass_key),
			       sizeof(struct mesh_pass), sizeof(struct mesh_issuer),
			       sizeof(struct mesh_direct_key), sizeof(struct mesh_direct) };

	return (int)all[which];
}

int offsets(int which)
{
	const size_t all[] = { offsetof(struct mesh_workload, tcp_port), offsetof(struct mesh_workload, dns_port),
			       offsetof(struct mesh_workload, flags), offsetof(struct mesh_range_key, who),
			       offsetof(struct mesh_range_key, ip), offsetof(struct mesh_port_key, port),
			       offsetof(struct mesh_pass, to), offsetof(struct mesh_pass, port_be),
			       offsetof(struct mesh_direct, pass), offsetof(struct mesh_direct, state) };

	return (int)all[which];
}
