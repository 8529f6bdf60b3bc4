/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where captured connections wanted to go, from the SYN until the client's socket closes: the tunnel asks it once, the client as
 * often as it likes who its peer is. Part of capture.bpf.c.
 *
 * In an array, at the place that the tuple's hash says: connect() waits for it, and an entry in an LRU table costs several times that.
 * There (`mesh_underway`) is what found its place held by another connection, and what a client that closed in order left to the
 * tunnel, which may never ask. So nobody is refused for want of a place. The longest unused of too many goes: its client then sees the
 * meeting point, and a tunnel that has not asked yet refuses.
 */
#ifndef MESH_FILED_H
#define MESH_FILED_H

#include "sockets.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MESH_MOST_CONNECTIONS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct mesh_tuple);
	__type(value, struct mesh_destination);
} mesh_underway SEC(".maps");

/* `socket`: the low half of the client's cookie, for another one may have the same tuple before this one's end is heard of. */
struct mesh_place {
	struct bpf_spin_lock lock;
	__u32 socket;
	struct mesh_tuple tuple; /* netns 0: free */
	struct mesh_destination asked;
	__u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MESH_PLACES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct mesh_place);
} mesh_places SEC(".maps");

static __always_inline struct mesh_place *place_for(const struct mesh_tuple *t)
{
	__u32 place = mesh_place_number(t);

	return bpf_map_lookup_elem(&mesh_places, &place);
}

static __always_inline int holds(const struct mesh_place *place, const struct mesh_tuple *t)
{
	const struct mesh_tuple *held = &place->tuple;

	return held->netns == t->netns && held->from_port == t->from_port && held->to_port == t->to_port &&
	       mesh_same(&held->from, &t->from) && mesh_same(&held->to, &t->to);
}

/*
 * Before whatever is still underway of the tuple: that is found only when this one is no longer here, and goes with it unless the
 * tunnel took this one. 0: it could not be.
 */
static __always_inline int file(const struct mesh_tuple *t, const struct mesh_destination *asked, __u32 socket)
{
	struct mesh_place *place = place_for(t);
	int ours;

	if (!place)
		return 0;
	bpf_spin_lock(&place->lock);
	ours = !place->tuple.netns || holds(place, t);
	if (ours) {
		place->socket = socket;
		place->tuple = *t;
		place->asked = *asked;
	}
	bpf_spin_unlock(&place->lock);
	return ours || !bpf_map_update_elem(&mesh_underway, t, asked, BPF_ANY);
}

static __always_inline void unfile(const struct mesh_tuple *t)
{
	struct mesh_place *place = place_for(t);

	if (!place)
		return;
	bpf_spin_lock(&place->lock);
	if (holds(place, t))
		place->tuple.netns = 0;
	bpf_spin_unlock(&place->lock);
	bpf_map_delete_elem(&mesh_underway, t);
}

/* `takes`: the tunnel, which has asked from then on. 0: nothing is filed at its place. */
static __always_inline int read_filed(const struct mesh_tuple *t, struct mesh_destination *asked, int takes)
{
	struct mesh_place *place = place_for(t);
	int found;

	if (!place)
		return 0;
	bpf_spin_lock(&place->lock);
	found = holds(place, t);
	if (found)
		*asked = place->asked;
	if (found && takes && place->asked.state == MESH_CLIENT_GONE)
		place->tuple.netns = 0;
	else if (found && takes)
		place->asked.state = MESH_TAKEN;
	bpf_spin_unlock(&place->lock);
	return found;
}

/*
 * The client left in order, and the tunnel has not asked. Written underway before it goes from here, so that the tunnel finds one of the
 * two; if it did meanwhile, or the tuple is another's by now, what was written goes.
 */
static __always_inline void leave(struct mesh_place *place, const struct mesh_tuple *t, struct mesh_destination *asked, __u32 socket)
{
	int ours, taken = 0, left;

	asked->state = MESH_CLIENT_GONE;
	left = !bpf_map_update_elem(&mesh_underway, t, asked, BPF_ANY);
	bpf_spin_lock(&place->lock);
	ours = holds(place, t) && place->socket == socket;
	if (ours) {
		taken = place->asked.state == MESH_TAKEN;
		if (left || taken)
			place->tuple.netns = 0;
		else
			place->asked.state = MESH_CLIENT_GONE;
	}
	bpf_spin_unlock(&place->lock);
	if (left && (taken || !ours))
		bpf_map_delete_elem(&mesh_underway, t);
}

/* Of what has no place. Here it is not known whose socket it is. */
static __always_inline void end_underway(const struct mesh_tuple *t, int orderly)
{
	struct mesh_destination *filed = bpf_map_lookup_elem(&mesh_underway, t);

	if (filed && filed->state == MESH_FILED && orderly)
		filed->state = MESH_CLIENT_GONE;
	else if (filed)
		bpf_map_delete_elem(&mesh_underway, t);
}

/*
 * The client's socket has closed. A tunnel that has not accepted yet may ask still, unless the connection was broken off, by whichever
 * end: then nothing is found, neither of this connection nor of one that a version without places left underway.
 */
static __always_inline void end_filed(const struct mesh_tuple *t, __u32 socket, int orderly)
{
	struct mesh_place *place = place_for(t);
	struct mesh_destination asked = {};
	int found, ours, left = 0;

	if (!place)
		return;
	bpf_spin_lock(&place->lock);
	found = holds(place, t);
	ours = found && place->socket == socket;
	if (ours) {
		left = orderly && place->asked.state == MESH_FILED;
		asked = place->asked;
		if (!left)
			place->tuple.netns = 0;
	}
	bpf_spin_unlock(&place->lock);
	if (left)
		leave(place, t, &asked, socket);
	else if (ours && !orderly)
		bpf_map_delete_elem(&mesh_underway, t);
	else if (!found)
		end_underway(t, orderly);
}

#endif
