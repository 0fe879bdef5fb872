/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rows of files: the pages of each that came into the page cache and left it, and how long reads of it waited. */
#ifndef FILES_H
#define FILES_H

#include "scope.h"

/* Not with NO_BTF: that would have to find out where the fields of a dentry lie. */
#ifndef NO_BTF
/*
 * A file's row is in its slot, which is found without a helper call, or if another file has that, in a hash. Both are by
 * a number made of device, inode and generation. A row says whose it is: of two files with the same number, which
 * hardly exist, the second has none, and counts as overflow.
 *
 * The programs write to one half of the slots, and to the hash behind `files`; each tick the agent has them write to the
 * others (the kernel waits for running programs when a map of maps changes), then empties these at leisure.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * FILE_SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE); /* a look at each by a system call keeps programs from running meanwhile */
	__type(key, __u32);
	__type(value, struct file_slot);
} file_slots SEC(".maps");

/* The first slot of the half that is in use. */
volatile __u64 file_half SEC(".data.file_half");

struct file_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FILES);
	__type(key, __u64);
	__type(value, struct file_row);
} files_a SEC(".maps"), files_b SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct file_map);
} files SEC(".maps") = { .values = { &files_a } };

/* Paths of files, struct file_path; read each tick. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, FILE_NAMES);
} file_names SEC(".maps");

/* Whose path has been told, by the file's number modulo TOLD_SLOTS: that number, its name and when, mixed. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TOLD_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} files_told SEC(".maps");

/* Where a path is put together. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct file_path);
} file_path SEC(".maps");

/* An odd number without a pattern, to spread others. */
#define GOLDEN 0x9e3779b97f4a7c15

static __always_inline bool counts_files(void)
{
	/* The ring buffer is from 5.8: where there is none, the maps are not there either. */
	return KERNEL_HAS(ringbuf_output) && the_settings()->files;
}

/* The first of the file's names: it has several if it is linked, and none if none is remembered. */
static __always_inline struct dentry *dentry_of(struct inode *inode)
{
	void *first = BPF_CORE_READ(inode, i_dentry.first);

	if (!first)
		return 0;
	if (bpf_core_field_exists(struct dentry, d_u.d_alias))
		return first - bpf_core_field_offset(struct dentry, d_u.d_alias);
	return first - bpf_core_field_offset(struct dentry___flat, d_alias);
}

/*
 * Tells the path of a file, from its own name up to the root of its file system, as far as there is room. No lock is
 * held, and all is read as it is: a name that is being changed can be any bytes, of a length that is checked. False if
 * it has to be tried again.
 */
static __noinline bool tell_path(struct inode *inode, __u64 ino, __u64 id, struct dentry *dentry)
{
	struct file_path *told;
	struct dentry *parent;
	__u64 end = 0;
	__u32 zero = 0, len;
	long got;
	int i;

	told = bpf_map_lookup_elem(&file_path, &zero);
	if (!told)
		return false;
	told->name.ino = ino;
	told->name.id = id;
	told->name.mode = BPF_CORE_READ(inode, i_mode);
	told->name.rdev = BPF_CORE_READ(inode, i_rdev);
	told->name.whole = 0;
	for (i = 0; i < PATH_DEPTH && dentry; i++) {
		parent = BPF_CORE_READ(dentry, d_parent);
		if (parent == dentry) {
			told->name.whole = 1;
			break;
		}
		barrier_var(end);
		end &= PATH_BYTES - 1;
		got = bpf_probe_read_kernel_str(told->names + end, NAME_BYTES, BPF_CORE_READ(dentry, d_name.name));
		len = BPF_CORE_READ(dentry, d_name.len);
		if (got <= 0 || got != (long)len + 1)
			return false;
		end += got;
		dentry = parent;
	}
	barrier_var(end);
	if (end > PATH_BYTES)
		return false;
	told->name.len = end;
	return !bpf_ringbuf_output(&file_names, told, sizeof(told->name) + end, BPF_RB_NO_WAKEUP);
}

/*
 * Tells the path of a file that is new in this interval, unless that was done lately: after a minute it is told again,
 * since one of its folders may have another name.
 */
static __always_inline void tell(struct inode *inode, __u64 ino, __u64 id, __u64 number)
{
	struct dentry *dentry = dentry_of(inode);
	__u32 slot = number & (TOLD_SLOTS - 1);
	__u64 *told = bpf_map_lookup_elem(&files_told, &slot);
	__u64 tag = number ^ (bpf_ktime_get_ns() >> TOLD_SHIFT) * GOLDEN;

	if (!told)
		return;
	if (dentry)
		tag ^= ((__u64)BPF_CORE_READ(dentry, d_name.hash) << 32) ^ (__u64)BPF_CORE_READ(dentry, d_parent);
	if (*told != tag && tell_path(inode, ino, id, dentry))
		*told = tag;
}

static __always_inline bool is_row_of(const struct file_row *row, __u64 ino, __u64 id)
{
	return row->ino == ino && row->id == id;
}

/* The row of a file that is not in its slot: a new one there, or one of the hash; null if that is full. */
static __noinline struct file_row *other_row(struct inode *inode, struct file_slot *slot, __u64 ino, __u64 id,
					     __u64 number)
{
	struct file_row *row;
	struct file_row fresh;
	__u32 zero = 0;
	void *map;

	if (!slot->claims) {
		/* Who finds only its own claim has it. Of two at the same moment none may, and both have rows of the hash. */
		ADD(slot->claims, 1);
		if (*(volatile __u64 *)&slot->claims == 1) {
			slot->row.id = id;
			slot->row.ino = ino;
			tell(inode, ino, id, number);
			return &slot->row;
		}
	}
	map = bpf_map_lookup_elem(&files, &zero);
	if (!map)
		return 0;
	row = bpf_map_lookup_elem(map, &number);
	if (!row) {
		__builtin_memset(&fresh, 0, sizeof(fresh));
		fresh.ino = ino;
		fresh.id = id;
		/* Another task may be first, and the map may be full. */
		if (!bpf_map_update_elem(map, &number, &fresh, BPF_NOEXIST))
			tell(inode, ino, id, number);
		row = bpf_map_lookup_elem(map, &number);
	}
	return row && is_row_of(row, ino, id) ? row : 0;
}

/* The file's row of this interval; null if there is no room for one. */
static __always_inline struct file_row *file_row(struct inode *inode)
{
	struct super_block *sb = LOAD(inode, inode, i_sb);
	__u64 ino = LOAD(inode, inode, i_ino);
	__u64 id = (__u64)LOAD(sb, super_block, s_dev) << 32 | LOAD(inode, inode, i_generation);
	/* Generations are random, or count from 0, or are 0, as the file system has it. */
	__u64 number = (ino ^ id << 32) + (id >> 32) * GOLDEN;
	__u32 at = (number & (FILE_SLOTS - 1)) + file_half;
	struct file_slot *slot = bpf_map_lookup_elem(&file_slots, &at);

	if (!slot)
		return 0;
	if (__builtin_expect(is_row_of(&slot->row, ino, id), true))
		return &slot->row;
	return other_row(inode, slot, ino, id, number);
}

static __always_inline void file_filled(struct inode *inode, __u64 cause, __u64 pages)
{
	struct file_row *row;
	struct totals *t;

	if (!counts_files() || cause >= FILL_CAUSES)
		return;
	row = file_row(inode);
	if (row) {
		ADD(row->fills[cause], pages);
		return;
	}
	t = cpu_totals();
	if (t)
		ADD(t->no_file_fills[cause], pages);
}

static __always_inline void file_evicted(struct inode *inode, __u64 cause, __u64 pages)
{
	struct file_row *row;
	struct totals *t;

	if (!counts_files() || cause >= EVICTION_CAUSES)
		return;
	row = file_row(inode);
	if (row) {
		ADD(row->evictions[cause], pages);
		return;
	}
	t = cpu_totals();
	if (t)
		ADD(t->no_file_evictions[cause], pages);
}

/* A read of it has waited. */
static __always_inline void file_waited(struct inode *inode, __u64 ns)
{
	struct file_row *row;
	struct totals *t;

	if (!counts_files())
		return;
	row = file_row(inode);
	if (row) {
		ADD(row->waits, 1);
		ADD(row->wait_ns, ns);
		return;
	}
	t = cpu_totals();
	if (t) {
		ADD(t->no_file_waits, 1);
		ADD(t->no_file_wait_ns, ns);
	}
}
#else
static __always_inline void file_filled(struct inode *inode, __u64 cause, __u64 pages) {}
static __always_inline void file_evicted(struct inode *inode, __u64 cause, __u64 pages) {}
#endif

#endif
