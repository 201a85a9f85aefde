# Raises exits of as many kinds as a guest can without an operating system, on
# every vCPU at once, and ends with one vCPU that reads all counts.
#
# APIC ids are the numbers of the vCPUs, from 0. Every vCPU has a page: its
# counters at the bottom, its stack from the top.

	.include "prologue.inc"
	.code32
	.globl	_start
_start:	jmp	begin

	.balign	16
	.ascii	"@params\0"
vcpus:	.long	1
rounds:	.long	1
svm:	.long	0
# Numbers of reasons that are read at the end: below the first, and from 0x400 on.
low:	.long	0
high:	.long	0
n_cpuid:	.long	0
n_in:	.long	0
n_out:	.long	0
n_strings:	.long	0
n_mmio:	.long	0
n_apic:	.long	0
n_rdmsr:	.long	0
n_wrmsr:	.long	0
n_deadline:	.long	0
n_cr:	.long	0
n_dr:	.long	0
n_xsetbv:	.long	0
n_wbinvd:	.long	0
n_invd:	.long	0
n_hypercall:	.long	0
n_ud:	.long	0
n_step:	.long	0
n_rdpmc:	.long	0
n_hlt:	.long	0
n_ipi:	.long	0
n_nmi:	.long	0
n_pages:	.long	0
# Ticks of the timer from setting it to its interrupt.
timer:	.long	0

	.set	IDT, 0x210000
	.set	PAGES, 0x300000		# one for each vCPU
	.set	FRESH, 0x1000000	# memory that nobody touched yet
	.set	TRAMPOLINE, 0x8000
	# Counters in a vCPU's page.
	.set	IRQS, 0
	.set	TICKS, 4
	.set	NMIS, 8

	.set	IPI_VECTOR, 0x40
	.set	TIMER_VECTOR, 0x41
	.set	APIC_BASE, 0x1b
	.set	X2APIC_ID, 0x802
	.set	X2APIC_EOI, 0x80b
	.set	X2APIC_SVR, 0x80f
	.set	X2APIC_ICR, 0x830
	.set	X2APIC_TIMER, 0x832
	.set	X2APIC_COUNT, 0x838
	.set	X2APIC_DIVIDE, 0x83e
	.set	TSC_DEADLINE, 0x6e0

	.balign	8
gdt:	.quad	0
	.quad	0x00cf9a000000ffff
	.quad	0x00cf92000000ffff
gdt_end:
gdtr:	.word	gdt_end - gdt - 1
	.long	gdt
idtr:	.word	256 * 8 - 1
	.long	IDT
	constants
stray:	.ascii	"an interrupt that nobody expects"
stray_end:
	.balign	4
here:	.long	1
done:	.long	0
halted:	.long	0

	.macro	wrmsr_low msr, value
	movl	$\msr, %ecx
	xorl	%edx, %edx
	movl	\value, %eax
	wrmsr
	.endm

	# EAX: the page of this vCPU, from its stack.
	.macro	own_page
	leal	-4(%esp), %eax
	andl	$~0xfff, %eax
	.endm

	.macro	gate vector, handler
	movl	$\handler, %eax
	movl	$(IDT + \vector * 8), %edi
	call	set_gate
	.endm

set_gate:
	movw	%ax, (%edi)
	movw	$CODE_SELECTOR, 2(%edi)
	movw	$0x8e00, 4(%edi)
	shrl	$16, %eax
	movw	%ax, 6(%edi)
	ret

# Handlers. A fault goes on where EDI says.
on_fault_with_code:
	addl	$4, %esp
on_fault:
	movl	%edi, (%esp)
	iret
on_step:
	andl	$~0x100, 8(%esp)
	iret
on_nmi:	pushl	%eax
	own_page
	incl	NMIS(%eax)
	popl	%eax
	iret
on_timer:
	pushl	%eax
	own_page
	incl	TICKS(%eax)
	jmp	end_of_interrupt
on_ipi:	pushl	%eax
	own_page
	incl	IRQS(%eax)
end_of_interrupt:
	pushl	%ecx
	pushl	%edx
	wrmsr_low X2APIC_EOI, $0
	popl	%edx
	popl	%ecx
	popl	%eax
	iret
on_stray:
	movl	$stray, %esi
	movl	$(stray_end - stray), %ecx
	send
	halt_for_good

# Where the other vCPUs start, copied below 1 MiB.
	.code16
trampoline:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	lgdtl	TRAMPOLINE + trampoline_gdtr - trampoline
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$CODE_SELECTOR, $other_begins
trampoline_gdtr:
	.word	gdt_end - gdt - 1
	.long	gdt
trampoline_end:
	.code32

other_begins:
	movw	$DATA_SELECTOR, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	# They start with caches off, and CR0 refuses NW without CD.
	movl	%cr0, %eax
	andl	$0x9fffffff, %eax
	movl	%eax, %cr0
	movl	$set_up_other, %ebx
	jmp	set_up
set_up_other:
	lock incl here
	jmp	work

begin:	lgdt	gdtr
	ljmp	$CODE_SELECTOR, $1f
1:	movw	$DATA_SELECTOR, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	# The APIC as memory, while it still is.
	repeat	n_apic
	movl	0xfee00020, %eax
	until_done
	# All vectors first, then those that are expected.
	movl	$(PAGES + 0x1000), %esp
	movl	$IDT, %edi
1:	movl	$on_stray, %eax
	call	set_gate
	addl	$8, %edi
	cmpl	$(IDT + 256 * 8), %edi
	jb	1b
	gate	1, on_step
	gate	2, on_nmi
	gate	6, on_fault
	gate	13, on_fault_with_code
	gate	IPI_VECTOR, on_ipi
	gate	TIMER_VECTOR, on_timer
	movl	$trampoline, %esi
	movl	$TRAMPOLINE, %edi
	movl	$(trampoline_end - trampoline), %ecx
	rep movsb
	movl	$1f, %ebx
	jmp	set_up
1:	cmpl	$1, vcpus
	je	work
	wrmsr_low X2APIC_ICR, $0xc4500		# INIT to all others
	wrmsr_low X2APIC_ICR, $0xc4608		# start at 0x8000
1:	pause
	movl	here, %eax
	cmpl	vcpus, %eax
	jne	1b
	jmp	work

# Registers of a vCPU, then on to where EBX says.
set_up:	lidt	idtr
	movl	$APIC_BASE, %ecx
	rdmsr
	orl	$0xc00, %eax
	wrmsr
	movl	$X2APIC_ID, %ecx
	rdmsr
	incl	%eax
	shll	$12, %eax
	leal	PAGES(%eax), %esp
	wrmsr_low X2APIC_SVR, $0x1ff
	wrmsr_low X2APIC_DIVIDE, $0xb
	wrmsr_low X2APIC_TIMER, $TIMER_VECTOR
	movl	%cr4, %eax
	orl	$0x40000, %eax			# OSXSAVE
	movl	%eax, %cr4
	jmp	*%ebx

# Everybody waits for everybody, else an IPI could meet a vCPU without an IDT.
work:	movl	here, %eax
	pause
	cmpl	vcpus, %eax
	jne	work
	own_page
	movl	%eax, %edi
	subl	$PAGES, %edi
	shrl	$12, %edi
	movl	n_pages, %eax
	mull	%edi
	shll	$12, %eax
	leal	FRESH(%eax), %edi
	repeat	n_pages
	movl	%ebp, (%edi)
	addl	$0x1000, %edi
	until_done
	movl	rounds, %esi

round:	repeat	n_cpuid
	xorl	%eax, %eax
	xorl	%ecx, %ecx
	cpuid
	until_done
	movw	$0x80, %dx
	repeat	n_in
	inb	%dx, %al
	until_done
	repeat	n_out
	outb	%al, %dx
	until_done
	repeat	n_strings
	pushl	%esi
	movl	$gdt, %esi
	movl	$4, %ecx
	rep outsb
	popl	%esi
	until_done
	repeat	n_mmio
	movl	0xfec00010, %eax
	until_done
	repeat	n_rdmsr
	movl	$0x17, %ecx
	rdmsr
	until_done
	repeat	n_wrmsr
	wrmsr_low 0x79, $0
	until_done
	repeat	n_cr
	movl	%cr0, %eax
	xorl	$0x40000000, %eax
	movl	%eax, %cr0
	xorl	$0x40000000, %eax
	movl	%eax, %cr0
	until_done
	# KVM lets the registers go after the first access, until the next exit.
	repeat	n_dr
	movl	$0x400, %eax
	movl	%eax, %dr7
	xorl	%eax, %eax
	cpuid
	until_done
	repeat	n_xsetbv
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	movl	$1, %eax
	xsetbv
	until_done
	repeat	n_wbinvd
	wbinvd
	until_done
	repeat	n_invd
	invd
	until_done
	repeat	n_hypercall
	movl	$0xffff, %eax
	cmpl	$0, svm
	jne	1f
	vmcall
	jmp	2f
1:	vmmcall
2:
	until_done
	repeat	n_ud
	movl	$1f, %edi
	ud2
1:
	until_done
	repeat	n_step
	pushfl
	orl	$0x100, (%esp)
	popfl
	nop
	until_done
	repeat	n_rdpmc
	movl	$1f, %edi
	xorl	%ecx, %ecx
	rdpmc
1:
	until_done
	repeat	n_nmi
	own_page
	movl	%eax, %ebx
	movl	NMIS(%ebx), %edi
	movl	%ebx, %edx
	subl	$PAGES, %edx
	shrl	$12, %edx
	movl	$X2APIC_ICR, %ecx
	movl	$0x4400, %eax
	wrmsr
1:	pause
	cmpl	NMIS(%ebx), %edi
	je	1b
	until_done

	# From here on with interrupts, as the others send them.
	repeat	n_hlt
	own_page
	movl	%eax, %ebx
	movl	TICKS(%ebx), %edi
	wrmsr_low X2APIC_COUNT, timer
1:	sti
	hlt
	cli
	cmpl	TICKS(%ebx), %edi
	je	1b
	until_done
	sti
	repeat	n_ipi
	own_page
	addl	$0x1000, %eax
	movl	%eax, %edx
	subl	$PAGES, %edx
	shrl	$12, %edx
	cmpl	vcpus, %edx
	jb	1f
	xorl	%edx, %edx
	movl	$PAGES, %eax
1:	movl	%eax, %ebx
	movl	IRQS(%ebx), %edi
	movl	$X2APIC_ICR, %ecx
	movl	$(0x4000 + IPI_VECTOR), %eax
	wrmsr
1:	pause
	cmpl	IRQS(%ebx), %edi
	je	1b
	until_done
	# The timer's other mode, whose writes KVM may serve on its fast path.
	movl	$1, %eax
	cpuid
	testl	$0x1000000, %ecx
	jz	no_deadline
	wrmsr_low X2APIC_TIMER, $(0x40000 + TIMER_VECTOR)
	repeat	n_deadline
	own_page
	movl	%eax, %ebx
	movl	TICKS(%ebx), %edi
	rdtsc
	addl	timer, %eax
	adcl	$0, %edx
	movl	$TSC_DEADLINE, %ecx
	wrmsr
1:	pause
	cmpl	TICKS(%ebx), %edi
	je	1b
	until_done
	wrmsr_low X2APIC_TIMER, $TIMER_VECTOR
no_deadline:
	cli
	decl	%esi
	jnz	round

	# Nobody stops while another waits for it.
	lock incl done
	sti
1:	pause
	movl	done, %eax
	cmpl	vcpus, %eax
	jne	1b
	cli
	own_page
	cmpl	$PAGES, %eax
	je	read
	lock incl halted
	halt_for_good

read:	movl	vcpus, %edx
	decl	%edx
1:	pause
	cmpl	halted, %edx
	jne	1b
	movl	$RESULTS, %edi
	xorl	%esi, %esi
1:	movl	$0x4ffffffd, %eax
	movl	%esi, %ecx
	cpuid
	movl	%eax, (%edi)
	movl	%ebx, 4(%edi)
	movl	%ecx, 8(%edi)
	movl	%edx, 12(%edi)
	addl	$16, %edi
	incl	%esi
	cmpl	low, %esi
	jb	1b
	cmpl	$0x400, %esi
	jae	2f
	movl	$0x400, %esi
2:	movl	%esi, %eax
	subl	$0x400, %eax
	cmpl	high, %eax
	jb	1b
	subl	$RESULTS, %edi
	send_report $RESULTS, %edi
	halt_for_good
