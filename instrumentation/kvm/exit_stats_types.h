/* SPDX-License-Identifier: GPL-2.0 */
/*
 * VM-exit accounting: what lives inside KVM's own structures.
 *
 * asm/kvm_host.h includes this, so it may name nothing that is defined there.
 *
 * One line of KVM is not in its modules: xfer_to_guest_mode_handle_work(), in the
 * kernel's image, writes vcpu->run and vcpu->stat.signal_exits, where they were
 * when that image was built. So nothing of ours may move them: it takes the place
 * of as many bytes, which go to the end, or is itself behind. What is in
 * kvm_vcpu_stat has a descriptor: QEMU takes the file to hold nothing else.
 */
#ifndef __KVM_EXIT_STATS_TYPES_H
#define __KVM_EXIT_STATS_TYPES_H

#include <linux/kvm.h>
#include <linux/types.h>

/* Slots of each array; exit_stats_reasons.c ties it to the table. */
#define KVM_EXIT_STATS_SLOTS	172

/*
 * Our modules and the distribution's disagree about KVM's structures. Where the
 * kernel has symbol versions they tell; everywhere, a symbol that both vendor
 * modules need has another name in ours, so that a mix does not load, whichever
 * of the modules is ours.
 */
#define kvm_emulate_cpuid	kvm_emulate_cpuid_exit_stats

struct kvm_exit_stats_latency;
struct kvm_vcpu;

/**
 * struct kvm_exit_stats_clock - where a vCPU's time goes right now
 * @uncounted: of KVM's own exits, those that passed while accounting was off
 * @handled: ticks of the open exit that are booked already; the histograms
 *	need them
 * @flags: KVM_EXIT_STATS_F_*; zero on the hot path. Atomic bit operations only.
 * @last: host TSC when the vCPU last changed its place
 * @slot: slot of the last exit, which pays for all time until the next one
 * @asleep: depth of kvm_exit_stats_block(): a halt polls first, then blocks
 * @preempted_at: host TSC when the CPU was taken from the vCPU inside KVM_RUN;
 *	0 where it was not
 *
 * As large as what was in its place. What each exit needs, @flags to @slot, is in
 * the cache line where the guest's registers begin, which each exit writes.
 * Written by the vCPU's task alone, but for @flags.
 */
struct kvm_exit_stats_clock {
	u64 uncounted;
	u64 handled;
	unsigned long flags;
	u64 last;
	u32 slot;
	u32 asleep;
	u64 preempted_at;
};

/**
 * struct kvm_exit_stats_rest - what the rare paths of a vCPU remember
 * @latency: histograms, NULL until they are first switched on for the VM
 * @in_run: the vCPU is inside KVM_RUN
 * @next: the vCPU of the VM that was made before this one
 * @leaf: the CPUID leaf answered last
 *
 * Written by the vCPU's task alone, but for @next, which never changes, and the
 * one store that publishes @latency.
 */
struct kvm_exit_stats_rest {
	struct kvm_exit_stats_latency *latency;
	bool in_run;
	struct kvm_vcpu *next;
	struct kvm_cpuid_entry2 leaf;
};

/**
 * struct kvm_exit_stats_vm - switches and vCPUs of a VM
 * @no_leaves: the VMM turned the CPUID leaves off for this VM
 * @latency: the VMM turned the latency histograms on for this VM
 * @vcpus: the VM's vCPUs, linked by @next of each: KVM's own list is a tree, and
 *	walking it costs several times what reading a figure does
 *
 * The switches are written under kvm_exit_stats_lock, all is read anywhere. vCPUs
 * go only when their VM does.
 */
struct kvm_exit_stats_vm {
	struct kvm_vcpu *vcpus;
	bool no_leaves;
	bool latency;
};

#endif /* __KVM_EXIT_STATS_TYPES_H */
