/* SPDX-License-Identifier: GPL-2.0 */
/*
 * VM-exit accounting: counts and times every VM exit, per reason and vCPU.
 *
 * A vCPU is always in one of five places: in the guest, in the kernel on behalf
 * of its last exit, asleep in the kernel, out in user space, or preempted: the
 * scheduler took its CPU away inside KVM_RUN. Each change of place reads the TSC
 * once and books the ticks since the last change to the place that is left, so
 * the five add up to the vCPU's life from its first VM entry on.
 *
 * The figures are members of struct kvm_vcpu_stat, whose bytes the binary
 * statistics file publishes as they are. Their only writer is the task
 * inside KVM_RUN, which holds vcpu->mutex. Readers take no lock: each figure is
 * one aligned u64 that only grows, and nothing resets it while its vCPU lives.
 *
 *   exits_by_reason			exits, per slot
 *   exit_cycles_by_reason		host TSC ticks in KVM on behalf of those exits
 *   exit_blocked_cycles_by_reason	ticks asleep in KVM after such an exit
 *   exit_userspace_cycles_by_reason	ticks out in user space after such an exit
 *   exit_preempted_cycles_by_reason	ticks preempted after such an exit
 *   guest_cycles			ticks in the guest
 *   exit_cycles			the sum of exit_cycles_by_reason
 *   exit_tsc_backward			loads on a CPU whose TSC was behind
 */
#ifndef __KVM_X86_EXIT_STATS_H
#define __KVM_X86_EXIT_STATS_H

#include <linux/jump_label.h>
#include <linux/kvm_host.h>
#include <asm/msr.h>

#include "exit_stats_types.h"

/* KVM_CHECK_EXTENSION and KVM_ENABLE_CAP; "EXST", far from KVM's own numbers */
#define KVM_CAP_EXIT_STATS		0x45585354

/* Of the capability; version 2 added the preempted cycles and the vCPU attribute. */
#define KVM_EXIT_STATS_VERSION		2
/* Of the CPUID leaves. */
#define KVM_EXIT_STATS_LEAVES_VERSION	1

/* KVM_{HAS,GET,SET}_DEVICE_ATTR on a vCPU: group, and its one attribute. */
#define KVM_VCPU_EXIT_STATS		0x45585354
#define KVM_VCPU_EXIT_STATS_COUNTERS	0

/* Bits of KVM_CHECK_EXTENSION's answer: 7:0 version, 15:8 instruction set. */
#define KVM_EXIT_STATS_CAP_ISA_SHIFT	8
#define KVM_EXIT_STATS_CAP_ACCOUNTING	BIT(16)
#define KVM_EXIT_STATS_CAP_LEAVES	BIT(17)
#define KVM_EXIT_STATS_CAP_LATENCY	BIT(18)

/* Bits of KVM_ENABLE_CAP's args[0]. */
#define KVM_EXIT_STATS_LEAVES		BIT_ULL(0)
#define KVM_EXIT_STATS_LATENCY		BIT_ULL(1)

enum kvm_exit_stats_isa {
	KVM_EXIT_STATS_ISA_NONE,
	KVM_EXIT_STATS_ISA_VMX,
	KVM_EXIT_STATS_ISA_SVM,
};

/* The shape of the slots, without the tables; exit_stats_reasons.c ties it to them. */
#define KVM_EXIT_STATS_VMX_REST		86
#define KVM_EXIT_STATS_SVM_LOW_END	0xa7
#define KVM_EXIT_STATS_SVM_NPF		0x400
#define KVM_EXIT_STATS_SVM_NPF_END	0x404
#define KVM_EXIT_STATS_SVM_REST		171

/* The clock is stopped and starts at the next VM entry. */
#define KVM_EXIT_STATS_F_START		0
/* Histograms are on. */
#define KVM_EXIT_STATS_F_LATENCY	1
/* Histograms were just switched on: the open exit was seen only in part. */
#define KVM_EXIT_STATS_F_PARTIAL	2

/* Leaves: totals of exits and cycles, the same of one reason, what this is. */
#define KVM_EXIT_STATS_LEAF_INFO		0x4ffffffb
#define KVM_EXIT_STATS_LEAF_REASON_CYCLES	0x4ffffffc
#define KVM_EXIT_STATS_LEAF_REASON_EXITS	0x4ffffffd
#define KVM_EXIT_STATS_LEAF_TOTAL_CYCLES	0x4ffffffe
#define KVM_EXIT_STATS_LEAF_TOTAL_EXITS		0x4fffffff

/**
 * struct kvm_exit_stats_counters - a vCPU's counters, as the attribute has them
 * @size: of this structure, in bytes
 * @isa: enum kvm_exit_stats_isa
 * @slots: elements of each array
 * @exits: KVM's own count
 * @guest_cycles: as the statistic of that name, like the arrays
 * @exits_by_reason: the sum is at most @exits
 * @exit_cycles_by_reason: host TSC ticks, like those below
 * @exit_blocked_cycles_by_reason: see above
 * @exit_userspace_cycles_by_reason: see above
 * @exit_preempted_cycles_by_reason: see above
 */
struct kvm_exit_stats_counters {
	__u32 size;
	__u16 isa;
	__u16 slots;
	__u64 exits;
	__u64 guest_cycles;
	__u64 exits_by_reason[KVM_EXIT_STATS_SLOTS];
	__u64 exit_cycles_by_reason[KVM_EXIT_STATS_SLOTS];
	__u64 exit_blocked_cycles_by_reason[KVM_EXIT_STATS_SLOTS];
	__u64 exit_userspace_cycles_by_reason[KVM_EXIT_STATS_SLOTS];
	__u64 exit_preempted_cycles_by_reason[KVM_EXIT_STATS_SLOTS];
};

DECLARE_STATIC_KEY_TRUE(kvm_exit_stats_key);
extern bool kvm_exit_stats_guest;

void kvm_exit_stats_entry_slow(struct kvm_vcpu *vcpu, u64 ticks);
void kvm_exit_stats_no_entry(struct kvm_vcpu *vcpu, u64 slot);
void __kvm_exit_stats_run_begin(struct kvm_vcpu *vcpu);
void __kvm_exit_stats_run_end(struct kvm_vcpu *vcpu);
void __kvm_exit_stats_block(struct kvm_vcpu *vcpu);
void __kvm_exit_stats_unblock(struct kvm_vcpu *vcpu);
void __kvm_exit_stats_vcpu_load(struct kvm_vcpu *vcpu);
void __kvm_exit_stats_vcpu_put(struct kvm_vcpu *vcpu);

void kvm_exit_stats_register(enum kvm_exit_stats_isa isa, const void *handlers,
			     size_t nr);
void kvm_exit_stats_vcpu_init(struct kvm_vcpu *vcpu);
void kvm_exit_stats_vcpu_postcreate(struct kvm_vcpu *vcpu);
void kvm_exit_stats_vcpu_destroy(struct kvm_vcpu *vcpu);
int kvm_exit_stats_vcpu_attr(struct kvm_vcpu *vcpu, unsigned int ioctl,
			     struct kvm_device_attr *attr);
int kvm_exit_stats_check_extension(struct kvm *kvm);
int kvm_exit_stats_enable_cap(struct kvm *kvm, struct kvm_enable_cap *cap);
void kvm_exit_stats_create_debugfs(struct kvm *kvm);
bool kvm_exit_stats_debugfs_readonly(const char *name);
struct kvm_cpuid_entry2 *kvm_exit_stats_cpuid(struct kvm_vcpu *vcpu, u32 leaf,
					      u32 index);

/*
 * Adds to a figure. One instruction: a reader on another CPU sees the figure
 * before or after, with nothing lost or torn, because there is one writer.
 * Readers use READ_ONCE().
 */
static __always_inline void kvm_exit_stats_add(u64 *figure, u64 value)
{
	asm volatile("addq %1, %0" : "+m" (*figure) : "er" (value) : "cc");
}

/*
 * Ends the kernel's share of the last exit; called with interrupts off. Another
 * task may set a flag meanwhile: this entry sees it or the next one does.
 */
static __always_inline void kvm_exit_stats_entry(struct kvm_vcpu *vcpu)
{
	struct kvm_exit_stats_clock *clock = &vcpu->exit_clock;
	u64 ticks = rdtsc() - clock->last;

	if (unlikely(clock->flags)) {
		kvm_exit_stats_entry_slow(vcpu, ticks);
		return;
	}
	/* Moved on by the difference: one register, and one instruction less. */
	kvm_exit_stats_add(&clock->last, ticks);
	kvm_exit_stats_add(&vcpu->stat.exit_cycles_by_reason[clock->slot], ticks);
	kvm_exit_stats_add(&vcpu->stat.exit_cycles, ticks);
}

/* Ends the guest's turn. */
static __always_inline void kvm_exit_stats_exit(struct kvm_vcpu *vcpu)
{
	struct kvm_exit_stats_clock *clock = &vcpu->exit_clock;
	u64 ticks = rdtsc() - clock->last;

	kvm_exit_stats_add(&vcpu->stat.guest_cycles, ticks);
	kvm_exit_stats_add(&clock->last, ticks);
}

/*
 * Runs the statement that enters the guest, with the clock read on both sides.
 * One branch decides for both: a turn that began untimed ends untimed, however
 * the key changes meanwhile. Used in noinstr functions, so that what surrounds
 * the world switch there, such as an NMI's handler, is no guest time.
 */
#define kvm_exit_stats_enter_guest(vcpu, ...)				\
do {									\
	struct kvm_vcpu *__vcpu = (vcpu);				\
									\
	if (static_branch_likely(&kvm_exit_stats_key)) {		\
		kvm_exit_stats_entry(__vcpu);				\
		__VA_ARGS__;						\
		kvm_exit_stats_exit(__vcpu);				\
	} else {							\
		__VA_ARGS__;						\
		__vcpu->exit_clock.last = rdtsc();			\
	}								\
} while (0)

/*
 * The host TSC at the exit that vcpu_run() just returned: KVM takes it in place of
 * a reading of its own, so it is there with accounting off too.
 */
static __always_inline u64 kvm_exit_stats_exit_tsc(struct kvm_vcpu *vcpu)
{
	return vcpu->exit_clock.last;
}

/*
 * Counts the exit that vcpu_run() is about to return. Exactly one call for each
 * return, because KVM's own counter is raised once for each.
 */
static __always_inline void kvm_exit_stats_count(struct kvm_vcpu *vcpu, u32 slot)
{
	vcpu->exit_clock.slot = slot;
	kvm_exit_stats_add(&vcpu->stat.exits_by_reason[slot], 1);
}

static __always_inline void __kvm_exit_stats_count_vmx(struct kvm_vcpu *vcpu,
						       u32 reason)
{
	if (likely(reason < KVM_EXIT_STATS_VMX_REST))
		kvm_exit_stats_count(vcpu, reason);
	else
		kvm_exit_stats_count(vcpu, KVM_EXIT_STATS_VMX_REST);
}

/*
 * @reason: bits 15:0 of the VMCS field or of KVM's stand-in for it. A macro, like
 * the next one, so that nothing is read when it is off.
 */
#define kvm_exit_stats_count_vmx(vcpu, reason)				\
do {									\
	if (static_branch_likely(&kvm_exit_stats_key))			\
		__kvm_exit_stats_count_vmx(vcpu, reason);		\
} while (0)

/* KVM made up an exit without entering the guest: reason 33, to emulate. */
static __always_inline void kvm_exit_stats_count_vmx_emulation(struct kvm_vcpu *vcpu)
{
	if (static_branch_likely(&kvm_exit_stats_key))
		kvm_exit_stats_no_entry(vcpu, KVM_EXIT_STATS_VMX_REST);
	else
		vcpu->exit_clock.last = rdtsc();
}

/* KVM gave up before it entered the guest. */
static inline void kvm_exit_stats_count_svm_no_entry(struct kvm_vcpu *vcpu)
{
	if (static_branch_likely(&kvm_exit_stats_key))
		kvm_exit_stats_no_entry(vcpu, KVM_EXIT_STATS_SVM_REST);
	else
		vcpu->exit_clock.last = rdtsc();
}

static __always_inline void __kvm_exit_stats_count_svm(struct kvm_vcpu *vcpu,
						       u32 code)
{
	if (likely(code < KVM_EXIT_STATS_SVM_LOW_END)) {
		kvm_exit_stats_count(vcpu, code);
		return;
	}
	code -= KVM_EXIT_STATS_SVM_NPF;
	if (code < KVM_EXIT_STATS_SVM_NPF_END - KVM_EXIT_STATS_SVM_NPF)
		code += KVM_EXIT_STATS_SVM_LOW_END;
	else
		code = KVM_EXIT_STATS_SVM_REST;
	/* Else gcc joins the ways here, and all pay for the address. */
	OPTIMIZER_HIDE_VAR(code);
	kvm_exit_stats_count(vcpu, code);
}

/* @code: low half of the VMCB's exit code. */
#define kvm_exit_stats_count_svm(vcpu, code)				\
do {									\
	if (static_branch_likely(&kvm_exit_stats_key))			\
		__kvm_exit_stats_count_svm(vcpu, code);			\
} while (0)

static inline bool kvm_exit_stats_leaves_on(struct kvm *kvm)
{
	return static_key_enabled(&kvm_exit_stats_key) &&
	       READ_ONCE(kvm_exit_stats_guest) &&
	       (!kvm || !READ_ONCE(kvm->arch.exit_stats.no_leaves));
}

/* KVM_RUN came in from user space. */
static inline void kvm_exit_stats_run_begin(struct kvm_vcpu *vcpu)
{
	if (static_branch_likely(&kvm_exit_stats_key))
		__kvm_exit_stats_run_begin(vcpu);
}

/* KVM_RUN is about to return to user space. */
static inline void kvm_exit_stats_run_end(struct kvm_vcpu *vcpu)
{
	if (static_branch_likely(&kvm_exit_stats_key))
		__kvm_exit_stats_run_end(vcpu);
}

/*
 * The vCPU is about to sleep or to poll in place of sleeping. May be nested: the
 * outermost pair counts.
 */
static inline void kvm_exit_stats_block(struct kvm_vcpu *vcpu)
{
	if (static_branch_likely(&kvm_exit_stats_key))
		__kvm_exit_stats_block(vcpu);
}

/* It woke. */
static inline void kvm_exit_stats_unblock(struct kvm_vcpu *vcpu)
{
	if (static_branch_likely(&kvm_exit_stats_key))
		__kvm_exit_stats_unblock(vcpu);
}

/* The vCPU's task got a CPU, maybe another one. */
static inline void kvm_exit_stats_vcpu_load(struct kvm_vcpu *vcpu)
{
	if (static_branch_likely(&kvm_exit_stats_key))
		__kvm_exit_stats_vcpu_load(vcpu);
}

/* It gives its CPU up, or the scheduler takes it; after last_host_tsc is read. */
static inline void kvm_exit_stats_vcpu_put(struct kvm_vcpu *vcpu)
{
	if (static_branch_likely(&kvm_exit_stats_key))
		__kvm_exit_stats_vcpu_put(vcpu);
}

/*
 * One array in kvm_vcpu_stats_desc[]. A bucket a slot: for the counts a histogram
 * to the letter, for the times the same shape with a sum of ticks in each bucket.
 */
#define KVM_EXIT_STATS_DESC(name, unit)					\
	STATS_DESC_LINEAR_HIST(VCPU, name, unit, KVM_STATS_BASE_POW10, 0,	\
			       KVM_EXIT_STATS_SLOTS, 1)

#endif /* __KVM_X86_EXIT_STATS_H */
