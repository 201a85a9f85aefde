# A hypervisor in a few lines, with a guest of its own, on a CPU with SVM: what
# the inner guest does is listed here, and who is to see it.
#
# Neither of the two has interrupts. The hypervisor has paging, for KVM lets
# nobody without it run a guest, and keeps count of the exits that it gets.

	.include "prologue.inc"
	.code32
	.globl	_start
_start:	jmp	begin

	.balign	16
	.ascii	"@params\0"
# How often the inner guest executes each.
n_cpuid_mine:	.long	0	# CPUID, and the hypervisor asks for it
n_cpuid_host:	.long	0	# CPUID, and it does not
n_rdtsc:	.long	0	# RDTSC: it asks for it, its host would not
n_out:		.long	0	# OUT to a port: it does not ask for it
# The leaf and subleaf that both CPUIDs ask.
leaf:		.long	0
subleaf:	.long	0

	# What the hypervisor answers: nobody else would.
	.set	ANSWER, 0x600dcafe

	.set	VMCB, 0x310000
	.set	HOST_SAVE, 0x311000
	.set	INNER_STACK, 0x320000
	.set	PAGE_DIRECTORY, 0x330000
	.set	LARGE_PAGE, 0x83	# present, writable, 4 MiB

	.set	EFER, 0xc0000080
	.set	SVME, 0x1000
	.set	VM_HSAVE_PA, 0xc0010117

	# Fields of the VMCB.
	.set	INTERCEPTS_1, VMCB + 0x00c
	.set	INTERCEPTS_2, VMCB + 0x010
	.set	ASID, VMCB + 0x058
	.set	EXIT_CODE, VMCB + 0x070
	.set	STATE, VMCB + 0x400
	.set	ES, STATE + 0x000
	.set	CS, STATE + 0x010
	.set	SS, STATE + 0x020
	.set	DS, STATE + 0x030
	.set	STATE_EFER, STATE + 0x0d0
	.set	STATE_CR0, STATE + 0x158
	.set	STATE_DR7, STATE + 0x160
	.set	STATE_DR6, STATE + 0x168
	.set	STATE_RFLAGS, STATE + 0x170
	.set	STATE_RIP, STATE + 0x178
	.set	STATE_RSP, STATE + 0x1d8
	.set	STATE_RAX, STATE + 0x1f8

	.set	INTERCEPT_RDTSC, 1 << 14
	.set	INTERCEPT_CPUID, 1 << 18
	.set	INTERCEPT_HLT, 1 << 24
	.set	INTERCEPT_VMRUN, 1 << 0
	.set	INTERCEPT_VMMCALL, 1 << 1

	.set	EXIT_RDTSC, 0x6e
	.set	EXIT_CPUID, 0x72
	.set	EXIT_HLT, 0x78
	.set	EXIT_VMMCALL, 0x81

	.balign	16
	constants
	.balign	4
# The report: two readings of counts, then three answers to the leaf.
report:
vmruns:		.long	0	# by the hypervisor
seen_cpuid:	.long	0	# exits that it got
seen_rdtsc:	.long	0
seen_hlt:	.long	0
seen_vmmcall:	.long	0
seen_others:	.long	0
last_other:	.long	0
		.long	0
by_hypervisor:	.long	0, 0, 0, 0	# to the inner guest
by_host:	.long	0, 0, 0, 0	# to the inner guest
own:		.long	0, 0, 0, 0	# to the hypervisor, at the end
report_end:

	.macro	segment at, selector, attributes
	movl	$(\selector | \attributes << 16), \at
	movl	$0xffffffff, \at + 4
	.endm

	.macro	ask to
	movl	leaf, %eax
	movl	subleaf, %ecx
	movl	$0xdeadbeef, %ebx
	movl	$0xfeedf00d, %edx
	cpuid
	movl	%eax, \to
	movl	%ebx, \to + 4
	movl	%ecx, \to + 8
	movl	%edx, \to + 12
	.endm

begin:	movl	$RESULTS, %esp
	movl	$EFER, %ecx
	rdmsr
	orl	$SVME, %eax
	wrmsr
	movl	%eax, STATE_EFER
	movl	$VM_HSAVE_PA, %ecx
	movl	$HOST_SAVE, %eax
	xorl	%edx, %edx
	wrmsr

	# Memory is where it was before.
	movl	$LARGE_PAGE, %eax
	movl	$PAGE_DIRECTORY, %edi
	movl	$16, %ecx
1:	stosl
	addl	$0x400000, %eax
	decl	%ecx
	jnz	1b
	movl	$PAGE_DIRECTORY, %eax
	movl	%eax, %cr3
	movl	$0x10, %eax
	movl	%eax, %cr4
	movl	%cr0, %eax
	movl	%eax, STATE_CR0
	orl	$0x80000000, %eax
	movl	%eax, %cr0

	movl	$(INTERCEPT_CPUID | INTERCEPT_RDTSC | INTERCEPT_HLT), INTERCEPTS_1
	movl	$(INTERCEPT_VMRUN | INTERCEPT_VMMCALL), INTERCEPTS_2
	movl	$1, ASID
	segment	CS, CODE_SELECTOR, 0xc9b
	segment	SS, DATA_SELECTOR, 0xc93
	segment	DS, DATA_SELECTOR, 0xc93
	segment	ES, DATA_SELECTOR, 0xc93
	movl	$0x400, STATE_DR7
	movl	$0xffff0ff0, STATE_DR6
	movl	$2, STATE_RFLAGS
	movl	$inner, STATE_RIP
	movl	$INNER_STACK, STATE_RSP

	# The general registers but EAX and ESP are common to both.
enter:	movl	$VMCB, %eax
	incl	vmruns
	vmrun	%eax
	movl	EXIT_CODE, %eax
	cmpl	$EXIT_CPUID, %eax
	je	on_cpuid
	cmpl	$EXIT_RDTSC, %eax
	je	on_rdtsc
	cmpl	$EXIT_VMMCALL, %eax
	je	on_vmmcall
	cmpl	$EXIT_HLT, %eax
	je	on_hlt
	incl	seen_others
	movl	%eax, last_other
	jmp	finish

on_cpuid:
	incl	seen_cpuid
	addl	$2, STATE_RIP
	movl	$ANSWER, STATE_RAX
	movl	$ANSWER, %ebx
	movl	$ANSWER, %ecx
	movl	$ANSWER, %edx
	jmp	enter
on_rdtsc:
	incl	seen_rdtsc
	addl	$2, STATE_RIP
	jmp	enter
	# The inner guest asks that its CPUID be left to the host.
on_vmmcall:
	incl	seen_vmmcall
	addl	$3, STATE_RIP
	andl	$~INTERCEPT_CPUID, INTERCEPTS_1
	jmp	enter
on_hlt:	incl	seen_hlt
finish:	ask	own
	send_report $report, $(report_end - report)
	halt_for_good

inner:	repeat	n_cpuid_mine
	ask	by_hypervisor
	until_done
	repeat	n_rdtsc
	rdtsc
	until_done
	vmmcall
	repeat	n_cpuid_host
	ask	by_host
	until_done
	repeat	n_out
	outb	%al, $0x80
	until_done
1:	hlt
	jmp	1b
