/* SPDX-License-Identifier: Apache-2.0 */
/* Kinds of messages, for counters: the frame's types and the protocol's in one numbering. */
#include <assert.h>

#include "core/wire/internal.h"

static_assert(RW_NR_TYPES <= RW_KIND_PROTO && RW_KIND_PROTO + RP_MSG_NR_TYPES <= RW_NR_KINDS,
	      "every kind has a number of its own");

const char *rw_kind_name(unsigned kind)
{
	static const char *const names[RP_MSG_NR_TYPES] = {
		[RP_MSG_FORK_REQUEST] = "fork-request",
		[RP_MSG_FORK_ACK] = "fork-ack",
		[RP_MSG_CHILD_ACCEPT] = "child-accept",
		[RP_MSG_DELETE] = "delete",
		[RP_MSG_FETCH] = "fetch",
		[RP_MSG_FETCH_REPLY] = "fetch-reply",
		[RP_MSG_CREATED] = "created",
		[RP_MSG_PARENT_REQUEST] = "parent-request",
		[RP_MSG_PARENT_ACK] = "parent-ack",
	};

	if (kind > RW_KIND_PROTO && kind - RW_KIND_PROTO < RP_MSG_NR_TYPES)
		return names[kind - RW_KIND_PROTO];
	return kind && kind < RW_NR_TYPES && kind != RW_PROTO ? rw_type_name(kind) : "";
}
