# Runs where a VMX host without unrestricted guest has to emulate every instruction:
# in real mode with a code segment that is not where its selector says.
#
# There it executes CPUID and IN of a byte so many times, asks what the params say,
# and goes back to protected mode, where it asks the same again and reports both.

	.include "prologue.inc"
	.code32
	.globl	_start
_start:	jmp	begin

	.balign	16
	.ascii	"@params\0"
times:	.long	0
# Questions below, each a leaf and a subleaf.
n_questions:	.long	0
	.set	MAX_QUESTIONS, 8
questions:	.fill	2 * MAX_QUESTIONS, 4, 0

	.set	BASE, 0x100000		# of the 16-bit segment, and of this guest
	.set	REAL_SELECTOR, 0x18

	.balign	8
gdt:	.quad	0
	.quad	0x00cf9a000000ffff
	.quad	0x00cf92000000ffff
	.quad	0x00009a100000ffff	# 16 bits, at BASE
gdt_end:
gdtr:	.word	gdt_end - gdt - 1
	.long	gdt
	constants

	# Asks all, with the answers to EDI. ESI counts.
	.macro	ask_all
	xorl	%esi, %esi
91:	movl	questions(, %esi, 8), %eax
	movl	questions + 4(, %esi, 8), %ecx
	movl	$0xdeadbeef, %ebx
	movl	$0xfeedf00d, %edx
	cpuid
	movl	%eax, (%edi)
	movl	%ebx, 4(%edi)
	movl	%ecx, 8(%edi)
	movl	%edx, 12(%edi)
	addl	$16, %edi
	incl	%esi
	# With a register, so that 16-bit code takes the whole address.
	xorl	%eax, %eax
	cmpl	n_questions(%eax), %esi
	jb	91b
	.endm

begin:	lgdt	gdtr
	ljmp	$CODE_SELECTOR, $1f
1:	movw	$DATA_SELECTOR, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$RESULTS, %esp
	movl	$RESULTS, %edi
	movl	times, %ebp
	ljmp	$REAL_SELECTOR, $(real - BASE)

	.code16
real:	movl	%cr0, %eax
	andb	$0xfe, %al
	movl	%eax, %cr0
	# From here on by KVM's emulator: CS still begins at BASE.
1:	xorl	%eax, %eax
	xorl	%ecx, %ecx
	cpuid
	movw	$0x80, %dx
	inb	%dx, %al
	decl	%ebp
	jnz	1b
	ask_all
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$CODE_SELECTOR, $back

	.code32
back:	ask_all
	subl	$RESULTS, %edi
	send_report $RESULTS, %edi
	halt_for_good
