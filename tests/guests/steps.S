# Carries out a list of steps, which the lab writes: what a driver does to a
# virtio device, in an order and with values that no driver would choose.

	.include "prologue.inc"
	.code32
	.globl	_start
_start:	jmp	begin

	.set	PCI_CONFIG, 0xe8000000
	.set	PCI_DEVICE, 0x8000		# from one device to the next
	.set	PCI_COMMAND, 0x04
	.set	PCI_BAR0, 0x10
	.set	MEMORY_AND_MASTER, 0x6
	.set	RELATIVE, 0x10
	.set	STEP, 12
	.set	STEPS, 3000

	.balign	16
	.ascii	"@params\0"
# Each is what to do, where, and a value; nothing to do ends the list.
steps:	.fill	STEPS * STEP, 1, 0
	.long	0, 0, 0

	.balign	4
# In the order of the lab's `Step`.
kinds:	.long	done, find, write8, write16, write32, add16, say

# EBX: the BAR of the device that was found.
begin:	movl	$steps, %esi
next:	movl	(%esi), %eax
	movl	4(%esi), %edi
	movl	8(%esi), %ecx
	addl	$STEP, %esi
	testl	$RELATIVE, %eax
	jz	1f
	addl	%ebx, %edi
	andl	$~RELATIVE, %eax
1:	jmp	*kinds(, %eax, 4)

# The device whose vendor and device are the value; there is one.
find:	movl	$PCI_CONFIG, %edx
1:	cmpl	%ecx, (%edx)
	je	2f
	addl	$PCI_DEVICE, %edx
	jmp	1b
2:	movl	PCI_BAR0(%edx), %ebx
	andl	$~0xf, %ebx
	movw	$MEMORY_AND_MASTER, PCI_COMMAND(%edx)
	jmp	next
write8:	movb	%cl, (%edi)
	jmp	next
write16:
	movw	%cx, (%edi)
	jmp	next
write32:
	movl	%ecx, (%edi)
	jmp	next
add16:	addw	%cx, (%edi)
	jmp	next
say:	movb	%cl, %al
	movw	$SERIAL, %dx
	outb	%al, %dx
	jmp	next
done:	halt_for_good
