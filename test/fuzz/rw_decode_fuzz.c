/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer target of the wire parser. No input may crash it, and an accepted input must be its
 * content's one encoding.
 *
 *   clang -g -O1 -D_GNU_SOURCE -DRREF_CHECKED -Iinclude -I. -fsanitize=fuzzer,address,undefined \
 *       test/fuzz/rw_decode_fuzz.c core/wire/decode.c core/wire/encode.c base/assert.c \
 *       -o build/rw_decode_fuzz
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/wire/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t again[8192];
	struct rw_message *m;
	uint8_t *fixed;
	int rc;

	if (size > sizeof(again))
		return 0;
	/* The blob has exactly this length, on the heap: a read past either end is seen. */
	fixed = malloc(size ? size : 1);
	m = malloc(sizeof(*m));
	if (!fixed || !m)
		abort();
	memcpy(fixed, data, size);
	/* The length is right in most inputs. Else the fuzzer
	 * would learn nothing but that field. */
	if (size >= RW_FRAME_BYTES && !(fixed[1] & 0x80)) {
		fixed[4] = (uint8_t)size;
		fixed[5] = (uint8_t)(size >> 8);
		fixed[6] = fixed[7] = 0;
	}
	memset(m, 0xa5, sizeof(*m));
	rc = rw_decode(fixed, size, 64, m);
	if (!rc && (rw_encode(m, again, sizeof(again)) != (int)size || memcmp(again, fixed, size)))
		abort();
	free(m);
	free(fixed);
	return 0;
}
