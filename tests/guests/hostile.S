# Asks each accounting leaf with subleaves that no honest guest would use, and
# judges every answer itself: 16 MB of answers would take too long to send.
#
# Subleaves: all below `dense`, then each power of two with its neighbours, then
# a fixed sequence of random numbers; each of them for all five leaves, until
# `queries` were asked.

	.include "prologue.inc"
	.code32
	.globl	_start
_start:	jmp	begin

	.balign	16
	.ascii	"@params\0"
queries:	.long	0
dense:	.long	0
signature:	.long	0
# What the table says of each number below 0x408; above, nothing is defined.
	.set	JUDGED, 0x408
status:	.fill	JUDGED, 1, 0
	.set	UNDEFINED, 0
	.set	NOT_ENABLED, 1
	.set	ENABLED, 2

	.set	LEAF_INFO, 0x4ffffffb
	.set	LEAF_REASON_CYCLES, 0x4ffffffc
	.set	LEAF_REASON_EXITS, 0x4ffffffd
	.set	LEAF_TOTAL_CYCLES, 0x4ffffffe
	.set	LEAF_TOTAL_EXITS, 0x4fffffff
# A count of cycles that this guest cannot reach: 2^40.
	.set	HIGH_CYCLES, 0x100

	.balign	4
leaf:	.long	LEAF_INFO
khz:	.long	0
random:	.long	0x2545f491
regs:	.long	0, 0, 0, 0
# The report: queries, failures, leaf and subleaf of the first one, its answer.
report:	.long	0, 0, 0, 0, 0, 0, 0, 0

	constants

begin:	movl	$RESULTS, %esp
	xorl	%esi, %esi		# subleaves so far

next_subleaf:
	movl	%esi, %edi
	cmpl	dense, %esi
	jb	ask
	movl	%esi, %eax
	subl	dense, %eax
	cmpl	$96, %eax
	jae	take_random
	xorl	%edx, %edx
	movl	$3, %ecx
	divl	%ecx			# eax: which bit, edx: which neighbour
	movl	%eax, %ecx
	movl	$1, %edi
	shll	%cl, %edi
	leal	-1(%edi, %edx), %edi
	jmp	ask
take_random:
	movl	random, %edi
	movl	%edi, %eax
	shll	$13, %eax
	xorl	%eax, %edi
	movl	%edi, %eax
	shrl	$17, %eax
	xorl	%eax, %edi
	movl	%edi, %eax
	shll	$5, %eax
	xorl	%eax, %edi
	movl	%edi, random

ask:	movl	leaf, %eax
	movl	%edi, %ecx
	movl	$0xdeadbeef, %ebx
	movl	$0xfeedf00d, %edx
	cpuid
	movl	%eax, regs
	movl	%ebx, regs + 4
	movl	%ecx, regs + 8
	movl	%edx, regs + 12
	incl	report

	movl	leaf, %ebp
	cmpl	$LEAF_INFO, %ebp
	je	judge_info
	cmpl	$LEAF_TOTAL_EXITS, %ebp
	je	judge_exits
	cmpl	$LEAF_TOTAL_CYCLES, %ebp
	je	judge_cycles
	cmpl	$JUDGED, %edi
	jae	judge_undefined
	cmpb	$NOT_ENABLED, status(%edi)
	jb	judge_undefined
	je	judge_zero
	cmpl	$LEAF_REASON_EXITS, %ebp
	je	judge_exits

judge_cycles:
	orl	%edx, %eax
	jnz	bad
	cmpl	$HIGH_CYCLES, %ebx
	jae	bad
	jmp	good
judge_exits:
	orl	%ecx, %ebx
	orl	%edx, %ebx
	jnz	bad
	# No reason has more exits than this guest can have caused.
	cmpl	$0x1000000, %eax
	jae	bad
	jmp	good
judge_undefined:
	notl	%edx
judge_zero:
	orl	%ebx, %eax
	orl	%ecx, %eax
	orl	%edx, %eax
	jnz	bad
	jmp	good
judge_info:
	cmpl	$0, khz
	jne	1f
	movl	%edx, khz
1:	cmpl	$1, %eax
	jne	bad
	cmpl	signature, %ebx
	jne	bad
	cmpl	$1, %ecx
	jne	bad
	cmpl	khz, %edx
	je	good

bad:	incl	report + 4
	cmpl	$1, report + 4
	jne	good
	movl	%ebp, report + 8
	movl	%edi, report + 12
	.irp	at, 0, 4, 8, 12
	movl	regs + \at, %eax
	movl	%eax, report + 16 + \at
	.endr

good:	movl	report, %eax
	cmpl	queries, %eax
	jae	done
	movl	leaf, %eax
	incl	%eax
	movl	%eax, leaf
	cmpl	$LEAF_TOTAL_EXITS, %eax
	jbe	ask
	movl	$LEAF_INFO, leaf
	incl	%esi
	jmp	next_subleaf

done:	send_report $report, $32
	halt_for_good
