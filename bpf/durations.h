/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Durations in buckets of powers of two (src/metrics/histogram.rs). */
#ifndef DURATIONS_H
#define DURATIONS_H

#include "shared.h"

/* Index of the bucket whose upper bound, 2^(10 + index) ns, is the first not below `ns`. */
static __always_inline __u64 duration_bucket(__u64 ns)
{
	__u64 v = ns ? (ns - 1) >> 10 : 0;
	__u64 bits = 0;

	if (v >> 32)
		return STALL_BUCKETS - 1;
	if (v >> 16) { bits += 16; v >>= 16; }
	if (v >> 8) { bits += 8; v >>= 8; }
	if (v >> 4) { bits += 4; v >>= 4; }
	if (v >> 2) { bits += 2; v >>= 2; }
	if (v >> 1) { bits += 1; v >>= 1; }
	bits += v;
	return bits < STALL_BUCKETS ? bits : STALL_BUCKETS - 1;
}

#endif
