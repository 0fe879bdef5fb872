/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the programs in peek.bpf.c and the agent (src/ebpf/abi.rs) share. */
#ifndef PEEK_H
#define PEEK_H

/* A question and its answer. */
struct peek {
	char name[16]; /* of the thread that asks */
	__u64 address; /* of the memory asked for */
	__u64 answered; /* 1: what follows is the answer */
	__u64 thread; /* its ids, tgid << 32 | tid */
	__u64 task; /* address of its task_struct */
	__u64 memory[32];
};

#endif
