// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: switches, the rare paths of the clock, and everything the
 * operator reads. The hot path is in exit_stats.h, the guest's view in
 * exit_stats_guest.c.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/debugfs.h>
#include <linux/kvm_host.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/seq_file.h>
#include <asm/tsc.h>

#include "exit_stats.h"
#include "exit_stats_table.h"

static_assert(KVM_EXIT_STATS_SLOTS == KVM_EXIT_STATS_NR_SLOTS);
static_assert(KVM_EXIT_STATS_VMX_REST == KVM_EXIT_STATS_VMX_NR_REASONS);
static_assert(KVM_EXIT_STATS_VMX_REST == KVM_EXIT_STATS_VMX_OTHER);
static_assert(KVM_EXIT_STATS_VMX_OTHER < KVM_EXIT_STATS_SLOTS);
static_assert(KVM_EXIT_STATS_SVM_LOW_END == KVM_EXIT_STATS_SVM_NR_LOW);
static_assert(KVM_EXIT_STATS_SVM_NPF == KVM_EXIT_STATS_SVM_HIGH);
static_assert(KVM_EXIT_STATS_SVM_NPF_END - KVM_EXIT_STATS_SVM_NPF ==
	      KVM_EXIT_STATS_SVM_NR_HIGH);
static_assert(KVM_EXIT_STATS_SVM_REST == KVM_EXIT_STATS_SVM_OTHER);
static_assert(KVM_EXIT_STATS_SVM_OTHER < KVM_EXIT_STATS_SLOTS);

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

/*
 * Switches
 */

DEFINE_STATIC_KEY_TRUE(kvm_exit_stats_key);
EXPORT_SYMBOL_GPL(kvm_exit_stats_key);

bool __read_mostly kvm_exit_stats_guest = true;

/* Whose exits these are: set as kvm-intel or kvm-amd loads. */
static enum kvm_exit_stats_isa __read_mostly active_isa;

/* Slots for which the loaded vendor module's dispatch table has a handler. */
static DECLARE_BITMAP(handled_slots, KVM_EXIT_STATS_SLOTS);

/*
 * What was accounted before the gap is worth nothing as a start: stop the clock
 * of every vCPU. Called while the key is off.
 */
static void stop_all_clocks(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm *kvm;
	unsigned long i;

	mutex_lock(&kvm_lock);
	list_for_each_entry(kvm, &vm_list, vm_list)
		kvm_for_each_vcpu(i, vcpu, kvm)
			set_bit(KVM_EXIT_STATS_F_START,
				&vcpu->arch.exit_stats.flags);
	mutex_unlock(&kvm_lock);
}

/* Parameter writes are serialized by the core. */
static int exit_stats_set(const char *val, const struct kernel_param *kp)
{
	bool on;
	int r;

	r = kstrtobool(val, &on);
	if (r || on == static_key_enabled(&kvm_exit_stats_key))
		return r;

	if (on) {
		stop_all_clocks();
		static_branch_enable(&kvm_exit_stats_key);
	} else {
		/*
		 * Changing the text interrupts every CPU and waits for it.
		 * Entry and exit run with interrupts off, so none of them is
		 * half done afterwards.
		 */
		static_branch_disable(&kvm_exit_stats_key);
	}
	return 0;
}

static int exit_stats_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%c\n",
			  static_key_enabled(&kvm_exit_stats_key) ? 'Y' : 'N');
}

static const struct kernel_param_ops exit_stats_ops = {
	.set = exit_stats_set,
	.get = exit_stats_get,
};

module_param_cb(exit_stats, &exit_stats_ops, NULL, 0644);
MODULE_PARM_DESC(exit_stats, "Account VM exits per reason (default: on)");

module_param_named(exit_stats_guest, kvm_exit_stats_guest, bool, 0644);
MODULE_PARM_DESC(exit_stats_guest,
		 "Answer the CPUID leaves 0x4FFFFFFB to 0x4FFFFFFF (default: on)");

static int exit_stats_handled_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%*pbl\n", KVM_EXIT_STATS_SLOTS, handled_slots);
}

static const struct kernel_param_ops exit_stats_handled_ops = {
	.get = exit_stats_handled_get,
};

module_param_cb(exit_stats_handled, &exit_stats_handled_ops, NULL, 0444);
MODULE_PARM_DESC(exit_stats_handled,
		 "Slots that the running dispatch table has a handler for");

enum kvm_exit_stats_isa kvm_exit_stats_isa(void)
{
	return READ_ONCE(active_isa);
}

/* Slot of a reason of the manual, or -ENOENT where the manual has none. */
static int slot_of_reason(u32 reason)
{
	switch (kvm_exit_stats_isa()) {
	case KVM_EXIT_STATS_ISA_VMX:
		if (reason < KVM_EXIT_STATS_VMX_NR_REASONS)
			return reason;
		break;
	case KVM_EXIT_STATS_ISA_SVM:
		if (reason < KVM_EXIT_STATS_SVM_NR_LOW)
			return reason;
		if (reason >= KVM_EXIT_STATS_SVM_HIGH &&
		    reason < KVM_EXIT_STATS_SVM_NPF_END)
			return reason - KVM_EXIT_STATS_SVM_HIGH +
			       KVM_EXIT_STATS_SVM_NR_LOW;
		break;
	default:
		break;
	}
	return -ENOENT;
}

/* What the table says of a slot; NULL for the slot of everything else. */
static const struct kvm_exit_stats_reason *reason_of_slot(u32 slot)
{
	switch (kvm_exit_stats_isa()) {
	case KVM_EXIT_STATS_ISA_VMX:
		if (slot >= KVM_EXIT_STATS_VMX_OTHER)
			return NULL;
		slot = array_index_nospec(slot, KVM_EXIT_STATS_VMX_OTHER);
		return &kvm_exit_stats_vmx_reasons[slot];
	case KVM_EXIT_STATS_ISA_SVM:
		if (slot >= KVM_EXIT_STATS_SVM_OTHER)
			return NULL;
		slot = array_index_nospec(slot, KVM_EXIT_STATS_SVM_OTHER);
		return &kvm_exit_stats_svm_reasons[slot];
	default:
		return NULL;
	}
}

/**
 * kvm_exit_stats_lookup() - judge a reason that a guest asks for
 * @reason: any 32-bit number
 *
 * Return: the reason's slot if it is defined and enabled, safe as an index even
 * under speculation; -ENOENT if the manual does not define it; -EOPNOTSUPP if
 * it does and KVM has no handler for it.
 */
int kvm_exit_stats_lookup(u32 reason)
{
	const struct kvm_exit_stats_reason *entry;
	int slot = slot_of_reason(reason);

	if (slot < 0)
		return slot;
	slot = array_index_nospec(slot, KVM_EXIT_STATS_SLOTS);

	entry = reason_of_slot(slot);
	if (!entry || entry->status == KVM_EXIT_STATS_UNDEFINED)
		return -ENOENT;
	if (entry->status == KVM_EXIT_STATS_NOT_ENABLED)
		return -EOPNOTSUPP;
	return slot;
}

/**
 * kvm_exit_stats_register() - tell which instruction set's exits will come
 * @isa: the instruction set of the vendor module
 * @handlers: its dispatch table, an array of function pointers
 * @nr: entries of @handlers
 *
 * Called as the vendor module loads, when no VM exists.
 */
void kvm_exit_stats_register(enum kvm_exit_stats_isa isa, const void *handlers,
			     size_t nr)
{
	const void *const *handler = handlers;
	size_t reason;
	int slot;

	WRITE_ONCE(active_isa, isa);
	bitmap_zero(handled_slots, KVM_EXIT_STATS_SLOTS);
	for (reason = 0; reason < nr; reason++) {
		slot = slot_of_reason(reason);
		if (handler[reason] && slot >= 0)
			__set_bit(slot, handled_slots);
		else if (handler[reason])
			pr_warn("exit_stats: reason %zu has a handler and no slot\n",
				reason);
	}
}
EXPORT_SYMBOL_GPL(kvm_exit_stats_register);

/*
 * Life of a vCPU. Its figures are zeroed with the structure they live in.
 */

void kvm_exit_stats_vcpu_init(struct kvm_vcpu *vcpu)
{
	set_bit(KVM_EXIT_STATS_F_START, &vcpu->arch.exit_stats.flags);
}

void kvm_exit_stats_vcpu_destroy(struct kvm_vcpu *vcpu)
{
	kvfree(vcpu->arch.exit_stats.latency);
}

/*
 * The clock
 */

static void record_latency(struct kvm_exit_stats_clock *clock, u64 ticks)
{
	/* Pairs with the release in latency_on(). */
	struct kvm_exit_stats_latency *latency = smp_load_acquire(&clock->latency);
	u32 bucket = min_t(u32, fls64(ticks), LATENCY_BUCKETS - 1);

	if (latency)
		kvm_exit_stats_add(&latency->buckets[clock->slot][bucket], 1);
}

/**
 * kvm_exit_stats_entry_slow() - close the open exit, or start the clock
 * @vcpu: the vCPU about to enter the guest
 * @now: host TSC
 *
 * Called with interrupts off.
 */
void kvm_exit_stats_entry_slow(struct kvm_vcpu *vcpu, u64 now)
{
	struct kvm_exit_stats_clock *clock = &vcpu->arch.exit_stats;
	u64 ticks = now - clock->last;

	if (test_and_clear_bit(KVM_EXIT_STATS_F_START, &clock->flags)) {
		clear_bit(KVM_EXIT_STATS_F_PARTIAL, &clock->flags);
		clock->handled = 0;
		return;
	}

	kvm_exit_stats_add(&vcpu->stat.exit_cycles_by_reason[clock->slot], ticks);
	if (!test_and_clear_bit(KVM_EXIT_STATS_F_PARTIAL, &clock->flags) &&
	    test_bit(KVM_EXIT_STATS_F_LATENCY, &clock->flags))
		record_latency(clock, clock->handled + ticks);
	clock->handled = 0;
}
EXPORT_SYMBOL_GPL(kvm_exit_stats_entry_slow);

/*
 * Ends the current place at one TSC reading. Preemption is off in between lest
 * the task move to a CPU whose TSC is behind the reading it is about to store.
 */
static void book(struct kvm_vcpu *vcpu, u64 *place, bool handling)
{
	struct kvm_exit_stats_clock *clock = &vcpu->arch.exit_stats;
	u64 now;

	preempt_disable();
	now = rdtsc();
	if (!test_bit(KVM_EXIT_STATS_F_START, &clock->flags)) {
		kvm_exit_stats_add(&place[clock->slot], now - clock->last);
		if (handling)
			clock->handled += now - clock->last;
	}
	clock->last = now;
	preempt_enable();
}

/**
 * kvm_exit_stats_no_entry() - count an exit that no VM entry preceded
 * @vcpu: the vCPU
 * @slot: the slot to count
 *
 * The time so far belongs to the exit before. Called with interrupts off.
 */
void kvm_exit_stats_no_entry(struct kvm_vcpu *vcpu, u64 slot)
{
	struct kvm_exit_stats_clock *clock = &vcpu->arch.exit_stats;
	u64 now = kvm_exit_stats_entry(vcpu);

	clock->last = now;
	kvm_exit_stats_count(vcpu, slot);
}
EXPORT_SYMBOL_GPL(kvm_exit_stats_no_entry);

void __kvm_exit_stats_run_begin(struct kvm_vcpu *vcpu)
{
	book(vcpu, vcpu->stat.exit_userspace_cycles_by_reason, false);
}

void __kvm_exit_stats_run_end(struct kvm_vcpu *vcpu)
{
	book(vcpu, vcpu->stat.exit_cycles_by_reason, true);
}

void __kvm_exit_stats_block(struct kvm_vcpu *vcpu)
{
	book(vcpu, vcpu->stat.exit_cycles_by_reason, true);
}

void __kvm_exit_stats_unblock(struct kvm_vcpu *vcpu)
{
	book(vcpu, vcpu->stat.exit_blocked_cycles_by_reason, false);
}

/*
 * Between two loads a vCPU stays on one CPU, whose TSC does not step back. So
 * this is the one place where a difference could turn negative: on a host with
 * unsynchronized TSCs the ticks in question are dropped.
 */
void __kvm_exit_stats_vcpu_load(struct kvm_vcpu *vcpu)
{
	struct kvm_exit_stats_clock *clock = &vcpu->arch.exit_stats;
	u64 now = rdtsc();

	if (unlikely(now < clock->last))
		clock->last = now;
}

/*
 * What the VMM may ask and set
 */

/* Stops recording. The memory stays until the vCPUs go: they may be using it. */
static void latency_off(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	lockdep_assert_held(&kvm->lock);

	WRITE_ONCE(kvm->arch.exit_stats.latency, false);
	kvm_for_each_vcpu(i, vcpu, kvm)
		clear_bit(KVM_EXIT_STATS_F_LATENCY, &vcpu->arch.exit_stats.flags);
}

/* A vCPU that is being made right now follows in kvm_exit_stats_vcpu_postcreate(). */
static int latency_on(struct kvm *kvm)
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
		/* Pairs with the acquire in record_latency(). */
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
	if (kvm->arch.exit_stats.latency && latency_on(kvm))
		pr_warn_ratelimited("exit_stats: no histograms for vCPU %d\n",
				    vcpu->vcpu_id);
	mutex_unlock(&kvm->lock);
}

/**
 * kvm_exit_stats_check_extension() - answer KVM_CHECK_EXTENSION
 * @kvm: the VM that is asked, NULL for /dev/kvm itself
 *
 * Return: the version, the instruction set and what is on.
 */
int kvm_exit_stats_check_extension(struct kvm *kvm)
{
	int r = KVM_EXIT_STATS_VERSION;

	r |= kvm_exit_stats_isa() << KVM_EXIT_STATS_CAP_ISA_SHIFT;
	if (static_key_enabled(&kvm_exit_stats_key))
		r |= KVM_EXIT_STATS_CAP_ACCOUNTING;
	if (kvm_exit_stats_leaves_on(kvm))
		r |= KVM_EXIT_STATS_CAP_LEAVES;
	if (kvm && READ_ONCE(kvm->arch.exit_stats.latency))
		r |= KVM_EXIT_STATS_CAP_LATENCY;
	return r;
}

/**
 * kvm_exit_stats_enable_cap() - set what is on for a VM
 * @kvm: the VM
 * @cap: args[0] holds the wanted KVM_EXIT_STATS_LEAVES, _LATENCY; the rest is 0
 *
 * Return: 0; -EINVAL for what this version does not know; -ENOMEM.
 */
int kvm_exit_stats_enable_cap(struct kvm *kvm, struct kvm_enable_cap *cap)
{
	int r = 0;

	if (cap->args[0] & ~(KVM_EXIT_STATS_LEAVES | KVM_EXIT_STATS_LATENCY) ||
	    cap->args[1] || cap->args[2] || cap->args[3])
		return -EINVAL;

	mutex_lock(&kvm->lock);
	if (cap->args[0] & KVM_EXIT_STATS_LATENCY)
		r = latency_on(kvm);
	else
		latency_off(kvm);
	if (!r)
		WRITE_ONCE(kvm->arch.exit_stats.no_leaves,
			   !(cap->args[0] & KVM_EXIT_STATS_LEAVES));
	mutex_unlock(&kvm->lock);
	return r;
}

/*
 * debugfs
 */

/**
 * kvm_exit_stats_debugfs_readonly() - may debugfs clear this statistic?
 * @name: a vCPU statistic's name
 *
 * debugfs would clear one element of an array, and the sums would no longer
 * agree. The same goes for KVM's own total, which the sum over reasons equals.
 *
 * Return: true if its file must be read-only.
 */
bool kvm_exit_stats_debugfs_readonly(const char *name)
{
	return !strcmp(name, "exits") || !strcmp(name, "guest_cycles") ||
	       !strcmp(name, "exits_by_reason") ||
	       !strcmp(name, "exit_cycles_by_reason") ||
	       !strcmp(name, "exit_blocked_cycles_by_reason") ||
	       !strcmp(name, "exit_userspace_cycles_by_reason");
}

struct exit_stats_row {
	u64 exits;
	u64 cycles;
	u64 blocked;
	u64 userspace;
};

static void add_row(struct exit_stats_row *sum, struct kvm *kvm, u32 slot)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		struct kvm_vcpu_stat *stat = &vcpu->stat;

		sum->exits += READ_ONCE(stat->exits_by_reason[slot]);
		sum->cycles += READ_ONCE(stat->exit_cycles_by_reason[slot]);
		sum->blocked +=
			READ_ONCE(stat->exit_blocked_cycles_by_reason[slot]);
		sum->userspace +=
			READ_ONCE(stat->exit_userspace_cycles_by_reason[slot]);
	}
}

static void show_row(struct seq_file *m, u32 slot, struct exit_stats_row *row)
{
	const struct kvm_exit_stats_reason *reason = reason_of_slot(slot);

	if (reason)
		seq_printf(m, "%#6x %-20s", reason->number,
			   reason->symbol ?: "(undefined)");
	else
		seq_printf(m, "%6s %-20s", "-", "OTHER");
	seq_printf(m, " %7s %14llu %18llu %18llu %18llu\n",
		   test_bit(slot, handled_slots) ? "yes" : "no", row->exits,
		   row->cycles, row->blocked, row->userspace);
}

static int exit_stats_show(struct seq_file *m, void *v)
{
	static const char * const isa_names[] = { "none", "VMX", "SVM" };
	struct exit_stats_row row, total = {};
	struct kvm *kvm = m->private;
	struct kvm_vcpu *vcpu;
	u64 exits = 0, guest = 0;
	unsigned long i;
	u32 slot;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		exits += READ_ONCE(vcpu->stat.exits);
		guest += READ_ONCE(vcpu->stat.guest_cycles);
	}

	seq_printf(m, "isa %s\nvcpus %d\ntsc_khz %u\naccounting %s\nexits %llu\nguest_cycles %llu\n\n",
		   isa_names[kvm_exit_stats_isa()],
		   atomic_read(&kvm->online_vcpus), tsc_khz,
		   static_key_enabled(&kvm_exit_stats_key) ? "on" : "off",
		   exits, guest);
	seq_printf(m, "%6s %-20s %7s %14s %18s %18s %18s\n", "reason", "name",
		   "handler", "exits", "cycles", "blocked_cycles",
		   "userspace_cycles");

	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++) {
		memset(&row, 0, sizeof(row));
		add_row(&row, kvm, slot);
		if (!row.exits && !row.cycles && !row.blocked && !row.userspace)
			continue;
		show_row(m, slot, &row);
		total.exits += row.exits;
		total.cycles += row.cycles;
		total.blocked += row.blocked;
		total.userspace += row.userspace;
	}
	seq_printf(m, "%6s %-20s %7s %14llu %18llu %18llu %18llu\n", "", "total",
		   "", total.exits, total.cycles, total.blocked, total.userspace);
	return 0;
}

/* One line a reason: number, name, then a pair bound:exits for each bucket used. */
static int latency_show(struct seq_file *m, void *v)
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
			/* Pairs with the release in latency_on(). */
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

		reason = reason_of_slot(slot);
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

static ssize_t latency_write(struct file *file, const char __user *buf,
			     size_t count, loff_t *ppos)
{
	struct kvm *kvm = ((struct seq_file *)file->private_data)->private;
	bool on;
	int r;

	r = kstrtobool_from_user(buf, count, &on);
	if (r)
		return r;

	mutex_lock(&kvm->lock);
	if (on)
		r = latency_on(kvm);
	else
		latency_off(kvm);
	mutex_unlock(&kvm->lock);
	return r ? r : count;
}

/* The file holds its VM, which may be going as the file is opened. */
static int open_vm_file(struct inode *inode, struct file *file,
			int (*show)(struct seq_file *m, void *v))
{
	struct kvm *kvm = inode->i_private;
	int r;

	if (!kvm_get_kvm_safe(kvm))
		return -ENOENT;

	r = single_open(file, show, kvm);
	if (r < 0)
		kvm_put_kvm(kvm);
	return r;
}

static int release_vm_file(struct inode *inode, struct file *file)
{
	struct kvm *kvm = inode->i_private;
	int r = single_release(inode, file);

	kvm_put_kvm(kvm);
	return r;
}

static int exit_stats_open(struct inode *inode, struct file *file)
{
	return open_vm_file(inode, file, exit_stats_show);
}

static int latency_open(struct inode *inode, struct file *file)
{
	return open_vm_file(inode, file, latency_show);
}

static const struct file_operations exit_stats_fops = {
	.owner		= THIS_MODULE,
	.open		= exit_stats_open,
	.read		= seq_read,
	.llseek		= seq_lseek,
	.release	= release_vm_file,
};

static const struct file_operations latency_fops = {
	.owner		= THIS_MODULE,
	.open		= latency_open,
	.read		= seq_read,
	.write		= latency_write,
	.llseek		= seq_lseek,
	.release	= release_vm_file,
};

void kvm_exit_stats_create_debugfs(struct kvm *kvm)
{
	debugfs_create_file("exit_stats", 0444, kvm->debugfs_dentry, kvm,
			    &exit_stats_fops);
	debugfs_create_file("exit_stats_latency", 0644, kvm->debugfs_dentry, kvm,
			    &latency_fops);
}
