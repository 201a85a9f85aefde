/* SPDX-License-Identifier: GPL-2.0 */
/*
 * VM-exit accounting: what its own files tell each other. KVM's files include
 * exit_stats.h alone.
 */
#ifndef __KVM_X86_EXIT_STATS_INTERNAL_H
#define __KVM_X86_EXIT_STATS_INTERNAL_H

#include <linux/kvm_host.h>
#include <linux/mutex.h>

#include "exit_stats.h"

struct seq_file;

/* How a reason is judged: see struct kvm_exit_stats_reason. */
#define KVM_EXIT_STATS_UNDEFINED	0
#define KVM_EXIT_STATS_NOT_ENABLED	1
#define KVM_EXIT_STATS_ENABLED		2

/**
 * struct kvm_exit_stats_reason - what is known of the reason that a slot counts
 * @symbol: name in the style of the uapi headers, NULL where the manual has a gap
 * @number: number in the manual
 * @status: KVM_EXIT_STATS_UNDEFINED, _NOT_ENABLED or _ENABLED
 *
 * The generated exit_stats_table.h has one for each slot.
 */
struct kvm_exit_stats_reason {
	const char *symbol;
	u32 number;
	u8 status;
};

/* Bucket 0 holds 0 ticks, bucket k the 2^(k-1) to 2^k - 1, the last the rest. */
#define KVM_EXIT_STATS_LATENCY_BUCKETS	40

/**
 * struct kvm_exit_stats_latency - handling times of one vCPU's exits
 * @buckets: exits by slot and by the logarithm of their ticks in the kernel
 *
 * Written by the vCPU's task, read by the debugfs file.
 */
struct kvm_exit_stats_latency {
	u64 buckets[KVM_EXIT_STATS_SLOTS][KVM_EXIT_STATS_LATENCY_BUCKETS];
};

/* Serializes what is switched in a VM. */
extern struct mutex kvm_exit_stats_lock;

/* exit_stats_reasons.c: what numbers and slots mean */
enum kvm_exit_stats_isa kvm_exit_stats_isa(void);
int kvm_exit_stats_lookup(u32 reason);
const struct kvm_exit_stats_reason *kvm_exit_stats_reason_of_slot(u32 slot);
bool kvm_exit_stats_is_handled(u32 slot);

/* exit_stats_latency.c: histograms; switched under kvm_exit_stats_lock */
int kvm_exit_stats_latency_on(struct kvm *kvm);
void kvm_exit_stats_latency_off(struct kvm *kvm);
int kvm_exit_stats_latency_show(struct seq_file *m, void *v);

#endif /* __KVM_X86_EXIT_STATS_INTERNAL_H */
