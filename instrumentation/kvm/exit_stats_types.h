/* SPDX-License-Identifier: GPL-2.0 */
/*
 * VM-exit accounting: what lives inside KVM's own structures.
 *
 * asm/kvm_host.h includes this, so it may name nothing that is defined there.
 */
#ifndef __KVM_EXIT_STATS_TYPES_H
#define __KVM_EXIT_STATS_TYPES_H

#include <linux/kvm.h>
#include <linux/types.h>

/* Slots of each array; exit_stats_reasons.c ties it to the table. */
#define KVM_EXIT_STATS_SLOTS	172

struct kvm_exit_stats_latency;

/**
 * struct kvm_exit_stats_clock - what the accounting of one vCPU remembers
 * @flags: KVM_EXIT_STATS_F_*; zero on the hot path. Atomic bit operations only.
 * @last: host TSC when the vCPU last changed between guest, kernel, sleep and
 *	user space
 * @handled: ticks of the open exit that are booked already; the histograms
 *	need them
 * @latency: histograms, NULL until they are first switched on for the VM
 * @slot: slot of the last exit, which pays for all time until the next one
 * @leaf: the CPUID leaf answered last
 *
 * Written by the vCPU's task alone, but for @flags and the one store that
 * publishes @latency.
 */
struct kvm_exit_stats_clock {
	unsigned long flags;
	u64 last;
	u64 handled;
	struct kvm_exit_stats_latency *latency;
	u32 slot;
	struct kvm_cpuid_entry2 leaf;
};

/**
 * struct kvm_exit_stats_vm - per-VM switches
 * @no_leaves: the VMM turned the CPUID leaves off for this VM
 * @latency: the VMM turned the latency histograms on for this VM
 *
 * Written under kvm->lock, read anywhere.
 */
struct kvm_exit_stats_vm {
	bool no_leaves;
	bool latency;
};

#endif /* __KVM_EXIT_STATS_TYPES_H */
