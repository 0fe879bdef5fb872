// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What the kernel does with a database's files: fadvise calls, pages read through the page cache, pages
 * filled and evicted by cause, reclaim. Here are the entry points: which event, which subject.
 *
 * Each subject's logic stands once, in a header of its own, as functions of plain values; an entry point, one
 * for each way of attaching, only fetches those values.
 */
#include "evictions.h"
#include "fadvise.h"
#include "fills.h"
#include "reads.h"
#include "reclaim.h"
#include "sleeps.h"
#include "waits.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* ---- entry points: exits of functions (fexit) ---- */

#ifndef NO_BTF
/* ksys_fadvise64_64(fd, offset, len, advice) */
SEC("fexit/ksys_fadvise64_64")
int fexit_fadvise(__u64 *ctx)
{
	settings_t *set = scoped();

	return set ? fadvise_returned(set, ctx[3], (int)ctx[4]) : 0;
}

/* The system call's own function, which has the other inlined on some kernels: (regs). */
SEC("fexit/__x64_sys_fadvise64")
int fexit_fadvise_call(__u64 *ctx)
{
	settings_t *set = scoped();

	return set ? fadvise_returned(set, advice_asked(), (int)ctx[1]) : 0;
}

/* Whether a read that has returned so much of this file is one that counts. */
static __always_inline bool is_counted(struct file *file, long bytes)
{
	return bytes > 0 && (file->f_inode->i_mode & S_IFMT) == S_IFREG;
}

/*
 * filemap_read(iocb, iter, already_read), before 5.12 generic_file_buffered_read: returns the bytes copied and
 * those already read, and has moved iocb->ki_pos to the end.
 */
static __always_inline int filemap_read_returned(__u64 *ctx, bool timed)
{
	struct kiocb *iocb = (struct kiocb *)ctx[0];
	long bytes = (long)ctx[3] - (long)ctx[2];
	struct read_wait *wait;
	settings_t *set;

	barrier_var(bytes); /* one register, not two: each that a program uses is saved and restored */
	set = scoped();
	if (!set)
		return 0;
	if (timed && (wait = own_wait()))
		read_ends(set, wait, is_counted(iocb->ki_filp, bytes), iocb->ki_filp);
	return is_counted(iocb->ki_filp, bytes) ? bytes_read(set, iocb->ki_pos - bytes, bytes) : 0;
}

/* filemap_splice_read(in, ppos, pipe, len, flags), 6.5+: sendfile and splice; *ppos is at the end. */
static __always_inline int splice_read_returned(__u64 *ctx, bool timed)
{
	settings_t *set = scoped();
	struct read_wait *wait;
	struct file *in;
	__u64 pos = 0;
	long bytes;

	if (!set)
		return 0;
	in = (struct file *)ctx[0];
	bytes = (long)ctx[5];
	if (timed && (wait = own_wait()))
		read_ends(set, wait, is_counted(in, bytes), in);
	if (!is_counted(in, bytes))
		return 0;
	bpf_probe_read_kernel(&pos, sizeof(pos), (void *)ctx[1]);
	return bytes_read(set, pos - bytes, bytes);
}

SEC("fexit/filemap_read")
int fexit_read(__u64 *ctx)
{
	return filemap_read_returned(ctx, false);
}

SEC("fexit/filemap_splice_read")
int fexit_splice(__u64 *ctx)
{
	return splice_read_returned(ctx, false);
}

/* ---- entry points: the same reads, those that wait timed (fentry and fexit); the exits count them too ---- */

SEC("fentry/io_schedule")
int fentry_wait(__u64 *ctx)
{
	return wait_begins();
}

SEC("fentry/io_schedule_timeout")
int fentry_wait_timeout(__u64 *ctx)
{
	return wait_begins();
}

/* Their common beginning: (in, ppos, pipe, len, flags). */
SEC("fentry/filemap_splice_read")
int fentry_splice(__u64 *ctx)
{
	return copying_read_begins((struct file *)ctx[0]);
}

/* Before 6.5. */
SEC("fentry/generic_file_splice_read")
int fentry_splice_iter(__u64 *ctx)
{
	return copying_read_begins((struct file *)ctx[0]);
}

SEC("fexit/filemap_read")
int fexit_read_timed(__u64 *ctx)
{
	return filemap_read_returned(ctx, true);
}

SEC("fexit/filemap_splice_read")
int fexit_splice_timed(__u64 *ctx)
{
	return splice_read_returned(ctx, true);
}

/* ---- entry points: both ends of what sleeps for I/O (fentry and fexit) ---- */

SEC("fentry/io_schedule")
int fentry_sleep(__u64 *ctx)
{
	return sleep_begins(ctx, false);
}

SEC("fentry/io_schedule_timeout")
int fentry_sleep_timeout(__u64 *ctx)
{
	return sleep_begins(ctx, true);
}

SEC("fexit/io_schedule")
int fexit_sleep(__u64 *ctx)
{
	return sleep_ends();
}

SEC("fexit/io_schedule_timeout")
int fexit_sleep_timeout(__u64 *ctx)
{
	return sleep_ends();
}

#endif

/* ---- entry points: kprobes ---- */

SEC("kretprobe/ksys_fadvise64_64")
int kret_fadvise(struct pt_regs *ctx)
{
	settings_t *set = scoped();

	return set ? fadvise_returned(set, advice_asked(), (int)KPROBE_RET(ctx)) : 0;
}

/* One end of the function only, the entry: a probe at both costs twice as much and carries state by thread. */
static __always_inline int read_called(settings_t *set, struct pt_regs *ctx)
{
	struct kiocb *iocb = (struct kiocb *)KPROBE_ARG0(ctx);
	struct iov_iter *iter = (struct iov_iter *)KPROBE_ARG1(ctx);

	if (is_retry(iocb, LOAD(iocb, kiocb, ki_pos), LOAD(iocb, kiocb, ki_flags)))
		return 0;
	return bytes_asked(set, LOAD(iocb, kiocb, ki_filp), LOAD(iocb, kiocb, ki_pos), LOAD(iter, iov_iter, count));
}

SEC("kprobe/filemap_read")
int kprobe_read(struct pt_regs *ctx)
{
	settings_t *set = scoped();

	return set ? read_called(set, ctx) : 0;
}

/* Before 4.18 the function above is a part of this one, which direct reads go through as well. */
SEC("kprobe/generic_file_read_iter")
int kprobe_read_iter(struct pt_regs *ctx)
{
	struct kiocb *iocb = (struct kiocb *)KPROBE_ARG0(ctx);
	settings_t *set = scoped();

	return set && !(BPF_CORE_READ(iocb, ki_filp, f_flags) & O_DIRECT) ? read_called(set, ctx) : 0;
}

SEC("kprobe/filemap_splice_read")
int kprobe_splice(struct pt_regs *ctx)
{
	settings_t *set = scoped();
	__u64 pos = 0;

	if (!set)
		return 0;
	bpf_probe_read_kernel(&pos, sizeof(pos), (void *)KPROBE_ARG1(ctx));
	return bytes_asked(set, (struct file *)KPROBE_ARG0(ctx), pos, KPROBE_ARG3(ctx));
}

SEC("kprobe/io_schedule")
int kprobe_sleep(struct pt_regs *ctx)
{
	return sleep_begins(ctx, false);
}

SEC("kprobe/io_schedule_timeout")
int kprobe_sleep_timeout(struct pt_regs *ctx)
{
	return sleep_begins(ctx, true);
}

SEC("kretprobe/io_schedule")
int kret_sleep(struct pt_regs *ctx)
{
	return sleep_ends();
}

SEC("kretprobe/io_schedule_timeout")
int kret_sleep_timeout(struct pt_regs *ctx)
{
	return sleep_ends();
}

/* ---- entry points: tracepoints ---- */

struct sys_exit_args {
	__u64 common;
	__u64 nr;
	long ret;
};

/* Any tracepoint of a system call slows all of them, which is why the other ways come first. */
SEC("tracepoint/syscalls/sys_exit_fadvise64")
int tp_fadvise(struct sys_exit_args *ctx)
{
	settings_t *set = scoped();

	return set ? fadvise_returned(set, advice_asked(), ctx->ret) : 0;
}

/* A tracepoint hands over a folio as the number of its first page; the pages' descriptions are one array. */
static __always_inline void *page_at(__u64 pfn)
{
	struct state *st = the_state();

	return st ? (void *)(st->vmemmap + pfn * bpf_core_type_size(struct page)) : 0;
}

/* Before 6.1 the order is not told, and hardly any folio has one. */
static __always_inline __u64 pages_in(struct trace_event_raw_mm_filemap_op_page_cache *ctx)
{
	unsigned char order = 0;

#ifdef NO_BTF
	/* A size of 0 is no access to what is not there, which a size is never. */
	if (bpf_core_type_size(struct place_of_order))
		bpf_probe_read_kernel(&order, sizeof(order), (void *)ctx + bpf_core_type_size(struct place_of_order));
#else
	if (bpf_core_field_exists(ctx->order))
		order = ctx->order;
#endif
	return 1ULL << (order & 63);
}

static __always_inline int filled(struct trace_event_raw_mm_filemap_op_page_cache *ctx, bool stack)
{
	settings_t *set = scoped();

	return set ? pages_added(ctx, set, folio_inode(page_at(ctx->pfn)), pages_in(ctx), stack) : 0;
}

SEC("tracepoint/filemap/mm_filemap_add_to_page_cache")
int tp_fill(struct trace_event_raw_mm_filemap_op_page_cache *ctx)
{
	return filled(ctx, true);
}

/* Before 4.18, which has no bpf_get_stack(). */
SEC("tracepoint/filemap/mm_filemap_add_to_page_cache")
int tp_fill_stackless(struct trace_event_raw_mm_filemap_op_page_cache *ctx)
{
	return filled(ctx, false);
}

SEC("tracepoint/filemap/mm_filemap_delete_from_page_cache")
int tp_evict(struct trace_event_raw_mm_filemap_op_page_cache *ctx)
{
	return pages_removed(folio_inode(page_at(ctx->pfn)), pages_in(ctx));
}

SEC("tracepoint/vmscan/mm_vmscan_lru_shrink_inactive")
int tp_scan(struct trace_event_raw_mm_vmscan_lru_shrink_inactive *ctx)
{
	return inactive_scanned(ctx->nr_scanned, ctx->nr_reclaimed);
}

SEC("tracepoint/vmscan/mm_vmscan_direct_reclaim_begin")
int tp_direct_in(void *ctx)
{
	return reclaim_begins(RECLAIM_DIRECT);
}

SEC("tracepoint/vmscan/mm_vmscan_direct_reclaim_end")
int tp_direct_out(struct trace_event_raw_mm_vmscan_direct_reclaim_end_template *ctx)
{
	return reclaim_ends(ctx->nr_reclaimed);
}

SEC("tracepoint/vmscan/mm_vmscan_memcg_reclaim_begin")
int tp_memcg_in(void *ctx)
{
	return reclaim_begins(RECLAIM_MEMCG);
}

SEC("tracepoint/vmscan/mm_vmscan_memcg_reclaim_end")
int tp_memcg_out(struct trace_event_raw_mm_vmscan_direct_reclaim_end_template *ctx)
{
	return reclaim_ends(ctx->nr_reclaimed);
}

SEC("tracepoint/vmscan/mm_vmscan_kswapd_wake")
int tp_kswapd(void *ctx)
{
	return kswapd_woke();
}

/* ---- entry points: raw tracepoints ---- */

#ifndef NO_BTF
SEC("raw_tracepoint/mm_filemap_get_pages")
int raw_read(struct bpf_raw_tracepoint_args *ctx)
{
	return page_read(ctx, ctx->args[0], ctx->args[1], ctx->args[2]);
}

SEC("raw_tracepoint/mm_filemap_add_to_page_cache")
int raw_fill(struct bpf_raw_tracepoint_args *ctx)
{
	settings_t *set = scoped();
	void *folio = (void *)ctx->args[0];

	return set ? pages_added(ctx, set, folio_inode(folio), folio_pages(folio), true) : 0;
}

SEC("raw_tracepoint/mm_filemap_delete_from_page_cache")
int raw_evict(struct bpf_raw_tracepoint_args *ctx)
{
	void *folio = (void *)ctx->args[0];

	return pages_removed(folio_inode(folio), folio_pages(folio));
}

SEC("raw_tracepoint/mm_vmscan_lru_shrink_inactive")
int raw_scan(struct bpf_raw_tracepoint_args *ctx)
{
	return inactive_scanned(ctx->args[1], ctx->args[2]);
}

SEC("raw_tracepoint/mm_vmscan_direct_reclaim_begin")
int raw_direct_in(struct bpf_raw_tracepoint_args *ctx)
{
	return reclaim_begins(RECLAIM_DIRECT);
}

SEC("raw_tracepoint/mm_vmscan_direct_reclaim_end")
int raw_direct_out(struct bpf_raw_tracepoint_args *ctx)
{
	return reclaim_ends(ctx->args[0]);
}

SEC("raw_tracepoint/mm_vmscan_memcg_reclaim_begin")
int raw_memcg_in(struct bpf_raw_tracepoint_args *ctx)
{
	return reclaim_begins(RECLAIM_MEMCG);
}

SEC("raw_tracepoint/mm_vmscan_memcg_reclaim_end")
int raw_memcg_out(struct bpf_raw_tracepoint_args *ctx)
{
	return reclaim_ends(ctx->args[0]);
}

SEC("raw_tracepoint/mm_vmscan_kswapd_wake")
int raw_kswapd(struct bpf_raw_tracepoint_args *ctx)
{
	return kswapd_woke();
}
#endif
