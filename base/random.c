/* SPDX-License-Identifier: Apache-2.0 */
#include "base/random.h"

#include <errno.h>
#include <pthread.h>
#include <sodium.h>
#include <stdbool.h>
#include <sys/random.h>

#include "base/child.h"

#define CHUNK 256u /* getrandom(2) gives so many at once, or fails */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned char key[crypto_stream_chacha20_KEYBYTES]; /* guarded by lock */

static bool from_kernel(unsigned char *to, size_t length)
{
	while (length) {
		size_t n = min_of(length, (size_t)CHUNK);

		if (getrandom(to, n, 0) != (ssize_t)n) {
			if (errno == EINTR)
				continue;
			return false;
		}
		to += n;
		length -= n;
	}
	return true;
}

/*
 * Makes bytes from the key; the first ones are the next key. So bytes that were given out cannot be
 * computed afterwards.
 */
static void from_key(unsigned char *to, size_t length)
{
	static const unsigned char nonce[crypto_stream_chacha20_NONCEBYTES];
	unsigned char out[sizeof(key) + CHUNK];

	pthread_mutex_lock(&lock);
	while (length) {
		size_t n = min_of(length, (size_t)CHUNK);

		crypto_stream_chacha20(out, sizeof(out), nonce, key);
		memcpy(key, out, sizeof(key));
		memcpy(to, out + sizeof(key), n);
		to += n;
		length -= n;
	}
	pthread_mutex_unlock(&lock);
	sodium_memzero(out, sizeof(out));
}

static void key_in_child(void)
{
	pthread_mutex_init(&lock, NULL);
}

static void handle_forks(void)
{
	pthread_atfork(NULL, NULL, key_in_child);
}

int rb_random_begin(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	unsigned char fresh[sizeof(key)];

	pthread_once(&once, handle_forks);
	if (!from_kernel(fresh, sizeof(fresh)))
		return -errno;
	pthread_mutex_lock(&lock);
	memcpy(key, fresh, sizeof(key));
	pthread_mutex_unlock(&lock);
	sodium_memzero(fresh, sizeof(fresh));
	return 0;
}

void rb_random(void *buf, size_t length)
{
	if (!from_kernel(buf, length))
		from_key(buf, length);
}

uint64_t rb_random64(void)
{
	static _Thread_local struct {
		uint64_t word[32];
		unsigned left;
		uint32_t generation;
	} pool;

	/* A child has its parent's stock in memory, and must not use it. */
	if (pool.left == 0 || pool.generation != rb_generation()) {
		rb_random(pool.word, sizeof(pool.word));
		pool.left = array_size(pool.word);
		pool.generation = rb_generation();
	}
	uint64_t v = pool.word[--pool.left];

	pool.word[pool.left] = 0; /* a nonce is a capability: no second copy is kept */
	return v;
}
