/* SPDX-License-Identifier: Apache-2.0 */
/* The state of group/ in a context. */
#ifndef RC_GROUP_STATE_H
#define RC_GROUP_STATE_H

#include <stdint.h>

#include "core/group/group.h"

/* The keys of this worker in its group. */
struct rc_group_state {
	uint64_t incarnation;
	struct rc_key key;
	struct rc_identity identity;
};

#endif
