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

int schema(void) { return MESH_SCHEMA; }
int outcomes(void) { return MESH_WHY_MAX; }

int sizes(int which)
{
	const size_t all[] = { sizeof(struct mesh_id), sizeof(struct mesh_workload), sizeof(struct mesh_own_key),
			       sizeof(struct mesh_port_key), sizeof(struct mesh_range_key),
			       sizeof(struct mesh_listener_key) };

	return (int)all[which];
}

int offsets(int which)
{
	const size_t all[] = { offsetof(struct mesh_workload, tcp_port), offsetof(struct mesh_workload, dns_port),
			       offsetof(struct mesh_workload, flags), offsetof(struct mesh_range_key, who),
			       offsetof(struct mesh_range_key, ip), offsetof(struct mesh_port_key, port) };

	return (int)all[which];
}
