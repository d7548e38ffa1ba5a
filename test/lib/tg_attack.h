/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attacks on worker 1 over shared memory, as often as they can. The attackers are strangers, each
 * with a connection, and the foe of tg_foe.h, over its session.
 */
#ifndef TG_ATTACK_H
#define TG_ATTACK_H

#include "tg_foe.h"

#define TG_STRANGER_OPEN 400 /* connections that a stranger keeps */

/* Does something with a stranger's connection; returns true if that is to stay open. */
typedef bool (*tg_act_fn)(struct foe *f, int sock);
bool tg_act_leave(struct foe *f, int sock);
bool tg_act_stay_silent(struct foe *f, int sock);
bool tg_act_trickle(struct foe *f, int sock);
bool tg_act_send_garbage(struct foe *f, int sock);
bool tg_act_say_hello(struct foe *f, int sock); /* a correct form without the key */
bool tg_act_hand_over_pipe(struct foe *f, int sock);

/* Connects to a shm listener, without waiting: -1 if its queue is full. */
int tg_stranger_dial(const struct rv_addr *to);
/* Connects to worker 1 and acts, once. Returns true if a connection was made. */
bool tg_stranger(struct foe *f, tg_act_fn act);

/* Sends packets of a member; 0 or -errno. */
typedef int (*tg_send_fn)(struct foe *f, uint32_t i);
int tg_send_region(struct foe *f, uint32_t i);
int tg_send_wake(struct foe *f, uint32_t i);
int tg_send_again(struct foe *f, uint32_t i);

/* Makes a memory file of the foe's. */
int tg_memory(unsigned flags, int seals, off_t size);

#endif
