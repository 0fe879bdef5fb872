/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs in iomonitor.bpf.c and the agent share: plain structs. The agent looks up the counters, struct
 * totals, by name; the others are mirrored field by field in src/ebpf/abi.rs, and a test compares the two through the
 * object's BTF. Only fixed-size integers, no padding.
 */
#ifndef SHARED_H
#define SHARED_H

#define COMM_LEN 16

/* Rows of a map of processes: how many one interval can tell apart, beside those that the CPUs hold. */
#define MAX_PROCS 5120
/* Rows of a map of cgroups, for what finds no place in one of processes. */
#define MAX_CGROUPS 1024
/* Rows that a CPU holds, a power of two. */
#define HELD 64
/* Rows of a map of files: how many one interval can tell apart. */
#define MAX_FILES 8192
/* Slots before them, twice: a power of two. */
#define FILE_SLOTS 2048
/* Bytes of the ring buffer of their paths, and slots for those whose path has been told: powers of two. */
#define FILE_NAMES (1 << 20)
#define TOLD_SLOTS 16384
/* A path is told again after 2^TOLD_SHIFT ns, 69 s. */
#define TOLD_SHIFT 36
/* Components of a path, and bytes of one with its NUL. */
#define PATH_DEPTH 8
#define NAME_BYTES 256
#define PATH_BYTES (PATH_DEPTH * NAME_BYTES)
/* Threads in direct or memcg reclaim at one time. */
#define MAX_STALLS 1024
/* Threads whose waiting reads can be timed at one time, a power of two; 24 bytes each. */
#define READ_SLOTS 16384
/* Threads whose sleeps can be timed at one time, a power of two; 16 bytes each. */
#define SLEEP_SLOTS 16384
/* Reads of io_uring under way at one time, a power of two. */
#define RETRY_SLOTS 4096

/* 1.024 us .. 17 s in powers of two, and one for what is longer (src/metrics/histogram.rs). */
#define STALL_BUCKETS 26
#define READ_BUCKETS STALL_BUCKETS
#define SLEEP_BUCKETS STALL_BUCKETS

enum advice {
	ADVICE_NORMAL,
	ADVICE_RANDOM,
	ADVICE_SEQUENTIAL,
	ADVICE_WILLNEED,
	ADVICE_DONTNEED,
	ADVICE_NOREUSE,
	ADVICE_INVALID,
	ADVICES,
};

enum fill_cause { FILL_READ, FILL_WRITE, FILL_FAULT, FILL_PREFETCH, FILL_OTHER, FILL_CAUSES };

enum eviction_cause { EVICT_RECLAIM, EVICT_FADVISE, EVICT_OTHER, EVICTION_CAUSES };

/* What a thread does that sleeps for I/O. */
enum io_op { IO_READ, IO_FAULT, IO_WRITE, IO_SYNC, IO_OTHER, IO_OPS };

/* What is counted for each process in each cgroup. */
enum activity {
	DID_FADVISE,
	DID_FADVISE_SUCCESS,
	DID_READ_PAGES,
	DID_READ_BYTES, /* unknown to the tracepoint */
	DID_WAITS,
	DID_WAIT_NS,
	DID_FILL, /* pages, by enum fill_cause */
	ACTIVITIES = DID_FILL + FILL_CAUSES,
};

enum reclaimer { RECLAIM_KSWAPD, RECLAIM_DIRECT, RECLAIM_MEMCG, RECLAIMERS };

/* SCOPE_PROOF: nobody's; a program only tells that it ran for the thread of a name. */
enum scope { SCOPE_HOST, SCOPE_CGROUP, SCOPE_COMM, SCOPE_PROOF };

/* Functions of the kernel that tell why a page is filled, when one of them is under way (src/monitor/causes.rs). */
#define FUNCTIONS 16

struct function {
	__u64 start;
	__u64 len; /* 0: the kernel has no such function, or does not tell where it is */
	__u64 cause; /* enum fill_cause */
};

/* Set by the agent before a program is loaded, and never changed: see `settings` in scope.h. */
struct settings {
	__u64 zero; /* a key of maps with one entry, which costs less than one on the stack */
	__u64 page_shift;
	__u64 regs_offset; /* of the saved registers in a task's stack; 0: not known */
	__u64 files; /* 1: there are rows of files */
	__u64 rows; /* 1: reads, fills and waits are counted in rows of processes and cgroups */
	__u64 functions_known; /* 0: none */
	struct function functions[FUNCTIONS];
};

/* What changes, or is found out, while programs are attached. */
struct state {
	__u64 scope; /* enum scope */
	__u64 proved; /* SCOPE_PROOF: how often a program ran for that thread */
	char prover[COMM_LEN]; /* and its name, NUL-padded */
	char comm[COMM_LEN]; /* SCOPE_COMM: NUL-padded */
	__u8 comm_mask[COMM_LEN]; /* and all bits of those bytes of a name that are compared: it and its NUL */
	__u64 vmemmap; /* address of the struct page of page frame 0; 0: not known */
	/* Found out by learn_stack() in reads.h; 0: not known. */
	__u64 regs_offset; /* of the saved registers in a task's stack */
	__u64 stack_size; /* of a task, in bytes */
	__u64 address; /* of this struct */
};

/* The counters: one per CPU; only ever grows. Nothing but __u64 and arrays of it (src/monitor/counters.rs). */
struct totals {
	__u64 fadvise_success[ADVICES];
	__u64 fadvise_failed[ADVICES];
	/* These three: what is in no row; the agent adds the rows. */
	__u64 read_pages;
	__u64 read_bytes; /* unknown to the tracepoint */
	__u64 fills[FILL_CAUSES]; /* pages */
	__u64 evictions[EVICTION_CAUSES]; /* pages */
	__u64 scanned[RECLAIMERS]; /* pages */
	__u64 reclaimed[RECLAIMERS]; /* pages, by scans */
	__u64 ended[RECLAIMERS]; /* pages reclaimed, as the ends of direct and memcg reclaim tell */
	__u64 kswapd_wakeups;
	__u64 stall_buckets[STALL_BUCKETS];
	__u64 stall_ns;
	/* What found no place in full maps of processes and cgroups, and in that of stalls. */
	__u64 overflow[ACTIVITIES];
	__u64 lost_stalls;
	/* Reads that waited by duration, and those that could not be timed. */
	__u64 wait_buckets[READ_BUCKETS];
	__u64 wait_ns;
	__u64 lost_reads;
	/* Sleeps for I/O by duration, a row of buckets for each enum io_op; and those that could not be timed. */
	__u64 sleep_buckets[IO_OPS * SLEEP_BUCKETS];
	__u64 sleep_ns[IO_OPS];
	__u64 lost_sleeps;
	/* What found no place in a full map of files. */
	__u64 no_file_fills[FILL_CAUSES];
	__u64 no_file_evictions[EVICTION_CAUSES];
	__u64 no_file_waits;
	__u64 no_file_wait_ns;
};

/*
 * Thread-group ids are reused, so the start time belongs to the key. Its unit is 2^START_SHIFT ns, about a
 * millisecond: a key of eight bytes is hashed and compared in half the time of one with nanoseconds.
 */
#define START_SHIFT 20

struct proc_key {
	__u32 tgid;
	__u32 start; /* since boot; the low bits, which repeat after 52 days */
};

/* A process in a cgroup: container runtimes move each process that they start. Of a map of cgroups: no process. */
struct row_key {
	__u64 proc; /* struct proc_key, as one number */
	__u64 cgroup; /* inode number of its directory; 0: not known */
};

/* What it did in the current interval, beside what CPUs hold. */
struct proc_row {
	__u64 did[ACTIVITIES];
	__u64 stalls; /* begins and ends of direct or memcg reclaim */
	__u64 comm[COMM_LEN / 8]; /* NUL-padded */
};

/*
 * A row that a CPU holds. Who reads it from its first to its last word has it whole if the two are equal: the last is
 * the first to change when another process takes the place, and the first the last.
 */
struct held_row {
	__u64 settled;
	__u64 since; /* when it started, or later by as many ns as it has called exec: its name can be another then */
	__u64 cgroup_nr; /* serial number of its cgroup: one load less than what is in the key */
	struct row_key key;
	__u64 comm[COMM_LEN / 8];
	__u64 did[ACTIVITIES];
	__u64 taken;
};

struct held_rows {
	struct held_row rows[HELD];
};

/* What happened to a file's pages in the current interval. */
struct file_row {
	__u64 ino;
	__u64 id; /* device << 32 | generation */
	__u64 fills[FILL_CAUSES];
	__u64 evictions[EVICTION_CAUSES];
	__u64 waits; /* reads that waited */
	__u64 wait_ns;
};

/* A row in its slot. */
struct file_slot {
	__u64 claims; /* by files that wanted it; the row is that of one which was alone */
	struct file_row row;
};

/* A file's path follows. */
struct file_name {
	__u64 ino;
	__u64 id; /* as in its row */
	__u32 mode;
	__u32 rdev; /* of a device */
	__u32 whole; /* 1: it begins at the root of the file system; 0: there is more of it */
	__u32 len; /* of what follows; 0: the kernel remembers no name of it */
};

struct file_path {
	struct file_name name;
	char names[PATH_BYTES + NAME_BYTES]; /* the file's own first, with a NUL behind each; not all of it is sent */
};

/* A thread in direct or memcg reclaim; keyed by its id (tgid << 32 | tid). */
struct stall {
	__u64 since_ns;
	struct proc_key proc;
	__u32 reclaimer; /* RECLAIM_DIRECT or RECLAIM_MEMCG */
	__u32 proactive; /* 1: not for an allocation of its own, and no stall */
};

/* The multi-batch read that a thread is in: see page_read() in iomonitor.bpf.c. */
struct read_cursor {
	__u64 tid;
	__u64 mapping;
	__u64 last_index;
	__u64 index;
	__u64 syscr;
};

/* A read of io_uring that goes on when its pages have come: see is_retry() in reads.h. */
struct retry {
	__u64 iocb;
	__u64 pos;
};

/* When a thread went to sleep for I/O: see sleep_begins() in sleeps.h. */
struct sleep {
	__u32 tid; /* 0: it did not */
	__u32 op; /* enum io_op */
	__u64 since_ns;
};

/* When a thread began to wait in a read: see wait_begins() in iomonitor.bpf.c. */
struct read_wait {
	__u64 tid; /* 0: it does not */
	__u64 syscr;
	__u64 since_ns;
};

#endif
