# Says that it is there, then resets the machine in the way that the params name.

	.include "prologue.inc"
	.code32
	.globl	_start
_start:	jmp	begin

	.balign	16
	.ascii	"@params\0"
way:	.long	0

	.set	BASE, 0x100000		# of the 16-bit segment, and of this guest
	.set	REAL_SELECTOR, 0x18
	.set	APIC_ICR_LOW, 0xfee00300
	.set	APIC_ICR_HIGH, 0xfee00310
	.set	APIC_BASE, 0x1b
	.set	X2APIC_ENABLED, 1 << 10
	.set	X2APIC_ICR, 0x830
	.set	ICR_INIT, 0x4500

	.balign	8
gdt:	.quad	0
	.quad	0x00cf9a000000ffff
	.quad	0x00cf92000000ffff
	.quad	0x00009a100000ffff	# 16 bits, at BASE
gdt_end:
gdtr:	.word	gdt_end - gdt - 1
	.long	gdt
no_idt:	.word	0
	.long	0
# In the order of the lab's `ResetWay`.
ways:	.long	acpi, i8042, cf9_hard, cf9_full, port_92, triple_fault, bios_jump, bios_entry
	.long	flat_jump, init, init_x2apic

begin:	lgdt	gdtr
	ljmp	$CODE_SELECTOR, $1f
1:	movw	$DATA_SELECTOR, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$RESULTS, %esp
	movw	$SERIAL, %dx
	movb	$'R', %al
	outb	%al, %dx
	movl	way, %eax
	jmp	*ways(, %eax, 4)

# FADT: the reset register and its value.
acpi:	movw	$0x602, %dx
	movb	$1, %al
	outb	%al, %dx
	halt_for_good

# The keyboard controller pulses the processor's reset line.
i8042:	movb	$0xfe, %al
	outb	%al, $0x64
	halt_for_good

# The reset control register: first the kind of reset, then the reset.
cf9_hard:
	movw	$0xcf9, %dx
	movb	$0x02, %al
	outb	%al, %dx
	movb	$0x06, %al
	outb	%al, %dx
	halt_for_good

cf9_full:
	movw	$0xcf9, %dx
	movb	$0x0e, %al
	outb	%al, %dx
	halt_for_good

# System control port A.
port_92:
	inb	$0x92, %al
	orb	$1, %al
	outb	%al, $0x92
	halt_for_good

triple_fault:
	lidt	no_idt
	int3

bios_jump:
	ljmp	$REAL_SELECTOR, $(to_ffff_0000 - BASE)
bios_entry:
	ljmp	$REAL_SELECTOR, $(to_f000_fff0 - BASE)

	# Where a processor begins, without leaving protected mode.
flat_jump:
	movl	$0xfffffff0, %eax
	jmp	*%eax

	# The boot processor begins there after an INIT.
init:	movl	$0, APIC_ICR_HIGH
	movl	$ICR_INIT, APIC_ICR_LOW
	halt_for_good
init_x2apic:
	movl	$APIC_BASE, %ecx
	rdmsr
	orl	$X2APIC_ENABLED, %eax
	wrmsr
	movl	$X2APIC_ICR, %ecx
	xorl	%edx, %edx
	movl	$ICR_INIT, %eax
	wrmsr
	halt_for_good

	.code16
	.macro	real_mode
	movl	%cr0, %eax
	andb	$0xfe, %al
	movl	%eax, %cr0
	.endm
to_ffff_0000:
	real_mode
	ljmp	$0xffff, $0x0000
to_f000_fff0:
	real_mode
	ljmp	$0xf000, $0xfff0
