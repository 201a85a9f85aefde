// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: histograms of handling time, for VMs that have them on.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/kvm_host.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "exit_stats.h"
#include "exit_stats_internal.h"

/* Bucket 0 holds 0 ticks, bucket k the 2^(k-1) to 2^k - 1, the last the rest. */
#define LATENCY_BUCKETS	40

/**
 * struct kvm_exit_stats_latency - handling times of one vCPU's exits
 * @buckets: exits by slot and by the logarithm of their ticks in the kernel
 *
 * Written by the vCPU's task, read by the debugfs file.
 */
struct kvm_exit_stats_latency {
	u64 buckets[KVM_EXIT_STATS_SLOTS][LATENCY_BUCKETS];
};

void kvm_exit_stats_record_latency(struct kvm_exit_stats_clock *clock, u64 ticks)
{
	/* Pairs with the release in kvm_exit_stats_latency_on(). */
	struct kvm_exit_stats_latency *latency = smp_load_acquire(&clock->latency);
	u32 bucket = min_t(u32, fls64(ticks), LATENCY_BUCKETS - 1);

	if (latency)
		kvm_exit_stats_add(&latency->buckets[clock->slot][bucket], 1);
}

/* Stops recording. The memory stays until the vCPUs go: they may be using it. */
void kvm_exit_stats_latency_off(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	lockdep_assert_held(&kvm->lock);

	WRITE_ONCE(kvm->arch.exit_stats.latency, false);
	kvm_for_each_vcpu(i, vcpu, kvm)
		clear_bit(KVM_EXIT_STATS_F_LATENCY, &vcpu->arch.exit_stats.flags);
}

/* A vCPU that is being made right now follows in kvm_exit_stats_vcpu_postcreate(). */
int kvm_exit_stats_latency_on(struct kvm *kvm)
{
	struct kvm_exit_stats_latency *latency;
	struct kvm_exit_stats_clock *clock;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	lockdep_assert_held(&kvm->lock);

	kvm_for_each_vcpu(i, vcpu, kvm) {
		clock = &vcpu->arch.exit_stats;
		if (clock->latency)
			continue;
		latency = kvzalloc(sizeof(*latency), GFP_KERNEL_ACCOUNT);
		if (!latency)
			return -ENOMEM;
		/* Pairs with the acquire in kvm_exit_stats_record_latency(). */
		smp_store_release(&clock->latency, latency);
	}

	kvm_for_each_vcpu(i, vcpu, kvm) {
		clock = &vcpu->arch.exit_stats;
		if (test_bit(KVM_EXIT_STATS_F_LATENCY, &clock->flags))
			continue;
		set_bit(KVM_EXIT_STATS_F_PARTIAL, &clock->flags);
		set_bit(KVM_EXIT_STATS_F_LATENCY, &clock->flags);
	}
	WRITE_ONCE(kvm->arch.exit_stats.latency, true);
	return 0;
}

/**
 * kvm_exit_stats_vcpu_postcreate() - a new vCPU joins what its VM has switched on
 * @vcpu: the vCPU, visible to others by now
 */
void kvm_exit_stats_vcpu_postcreate(struct kvm_vcpu *vcpu)
{
	struct kvm *kvm = vcpu->kvm;

	mutex_lock(&kvm->lock);
	if (kvm->arch.exit_stats.latency && kvm_exit_stats_latency_on(kvm))
		pr_warn_ratelimited("exit_stats: no histograms for vCPU %d\n",
				    vcpu->vcpu_id);
	mutex_unlock(&kvm->lock);
}

void kvm_exit_stats_vcpu_destroy(struct kvm_vcpu *vcpu)
{
	kvfree(vcpu->arch.exit_stats.latency);
}

/* One line a reason: number, name, then a pair bound:exits for each bucket used. */
int kvm_exit_stats_latency_show(struct seq_file *m, void *v)
{
	const struct kvm_exit_stats_reason *reason;
	struct kvm_exit_stats_latency *latency;
	struct kvm *kvm = m->private;
	struct kvm_vcpu *vcpu;
	u64 sum[LATENCY_BUCKETS];
	unsigned long i;
	u32 slot, b;
	bool any;

	seq_printf(m, "latency %s\n",
		   READ_ONCE(kvm->arch.exit_stats.latency) ? "on" : "off");
	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++) {
		memset(sum, 0, sizeof(sum));
		any = false;
		kvm_for_each_vcpu(i, vcpu, kvm) {
			/* Pairs with the release in kvm_exit_stats_latency_on(). */
			latency = smp_load_acquire(&vcpu->arch.exit_stats.latency);
			if (!latency)
				continue;
			for (b = 0; b < LATENCY_BUCKETS; b++) {
				sum[b] += READ_ONCE(latency->buckets[slot][b]);
				any |= sum[b];
			}
		}
		if (!any)
			continue;

		reason = kvm_exit_stats_reason_of_slot(slot);
		if (reason)
			seq_printf(m, "%#x %s", reason->number,
				   reason->symbol ?: "(undefined)");
		else
			seq_puts(m, "- OTHER");
		for (b = 0; b < LATENCY_BUCKETS - 1; b++)
			if (sum[b])
				seq_printf(m, " <%llu:%llu", 1ULL << b, sum[b]);
		if (sum[b])
			seq_printf(m, " more:%llu", sum[b]);
		seq_putc(m, '\n');
	}
	return 0;
}
