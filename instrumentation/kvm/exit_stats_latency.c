// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: histograms of handling time, for VMs that have them on.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kvm_host.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "exit_stats.h"
#include "exit_stats_internal.h"

/* Stops recording. The memory stays until the vCPUs go: they may be using it. */
void kvm_exit_stats_latency_off(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	lockdep_assert_held(&kvm_exit_stats_lock);

	WRITE_ONCE(kvm->arch.exit_stats.latency, false);
	kvm_for_each_vcpu(i, vcpu, kvm)
		clear_bit(KVM_EXIT_STATS_F_LATENCY, &vcpu->exit_clock.flags);
}

/* A vCPU that is being made right now follows in kvm_exit_stats_vcpu_postcreate(). */
int kvm_exit_stats_latency_on(struct kvm *kvm)
{
	struct kvm_exit_stats_latency *latency;
	struct kvm_exit_stats_clock *clock;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	lockdep_assert_held(&kvm_exit_stats_lock);

	kvm_for_each_vcpu(i, vcpu, kvm) {
		if (vcpu->exit_stats.latency)
			continue;
		latency = kvzalloc(sizeof(*latency), GFP_KERNEL_ACCOUNT);
		if (!latency)
			return -ENOMEM;
		/* Pairs with the acquire in record_latency(). */
		smp_store_release(&vcpu->exit_stats.latency, latency);
	}

	kvm_for_each_vcpu(i, vcpu, kvm) {
		clock = &vcpu->exit_clock;
		if (test_bit(KVM_EXIT_STATS_F_LATENCY, &clock->flags))
			continue;
		set_bit(KVM_EXIT_STATS_F_PARTIAL, &clock->flags);
		set_bit(KVM_EXIT_STATS_F_LATENCY, &clock->flags);
	}
	WRITE_ONCE(kvm->arch.exit_stats.latency, true);
	return 0;
}

/**
 * kvm_exit_stats_vcpu_postcreate() - a new vCPU joins its VM's others
 * @vcpu: the vCPU, visible to others by now
 *
 * May be called with kvm->lock held.
 */
void kvm_exit_stats_vcpu_postcreate(struct kvm_vcpu *vcpu)
{
	struct kvm_exit_stats_vm *vm = &vcpu->kvm->arch.exit_stats;

	mutex_lock(&kvm_exit_stats_lock);
	vcpu->exit_stats.next = vm->vcpus;
	/* Pairs with the acquire in first_vcpu(). */
	smp_store_release(&vm->vcpus, vcpu);
	if (vm->latency && kvm_exit_stats_latency_on(vcpu->kvm))
		pr_warn_ratelimited("exit_stats: no histograms for vCPU %d\n",
				    vcpu->vcpu_id);
	mutex_unlock(&kvm_exit_stats_lock);
}

void kvm_exit_stats_vcpu_destroy(struct kvm_vcpu *vcpu)
{
	kvfree(vcpu->exit_stats.latency);
}

/* One line a reason: number, name, then a pair bound:exits for each bucket used. */
static void show_line(struct seq_file *m, u32 slot, const u64 *buckets)
{
	const struct kvm_exit_stats_reason *reason = kvm_exit_stats_reason_of_slot(slot);
	u32 last = KVM_EXIT_STATS_LATENCY_BUCKETS - 1;
	u32 b;

	if (!memchr_inv(buckets, 0, sizeof(*buckets) * (last + 1)))
		return;
	if (reason)
		seq_printf(m, "%#x %s", reason->number,
			   reason->symbol ?: "(undefined)");
	else
		seq_puts(m, "- OTHER");
	for (b = 0; b < last; b++)
		if (buckets[b])
			seq_printf(m, " <%llu:%llu", 1ULL << b, buckets[b]);
	if (buckets[last])
		seq_printf(m, " more:%llu", buckets[last]);
	seq_putc(m, '\n');
}

int kvm_exit_stats_latency_show(struct seq_file *m, void *v)
{
	struct kvm_exit_stats_latency *latency, *sum;
	struct kvm *kvm = m->private;
	struct kvm_vcpu *vcpu;
	unsigned long i;
	u32 slot, b;

	sum = kvzalloc(sizeof(*sum), GFP_KERNEL_ACCOUNT);
	if (!sum)
		return -ENOMEM;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		/* Pairs with the release in kvm_exit_stats_latency_on(). */
		latency = smp_load_acquire(&vcpu->exit_stats.latency);
		if (!latency)
			continue;
		for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++)
			for (b = 0; b < KVM_EXIT_STATS_LATENCY_BUCKETS; b++)
				sum->buckets[slot][b] +=
					READ_ONCE(latency->buckets[slot][b]);
		cond_resched();
	}

	seq_printf(m, "latency %s\n",
		   READ_ONCE(kvm->arch.exit_stats.latency) ? "on" : "off");
	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++)
		show_line(m, slot, sum->buckets[slot]);
	kvfree(sum);
	return 0;
}
