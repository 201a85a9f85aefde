//! Registers and tables of an x86 processor, in our own types: no type of
//! KVM's interface leaves this crate, and all of these can be saved.

pub mod state;

use serde::{Deserialize, Serialize};

/// The answer of one CPUID leaf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// The leaf: EAX of the question.
    pub function: u32,
    /// The subleaf: ECX of the question. Judged only where `flags` says so.
    pub index: u32,
    /// `KVM_CPUID_FLAG_*`; bit 0 says that `index` matters.
    pub flags: u32,
    /// EAX of the answer.
    pub eax: u32,
    /// EBX of the answer.
    pub ebx: u32,
    /// ECX of the answer.
    pub ecx: u32,
    /// EDX of the answer.
    pub edx: u32,
}

/// The general-purpose registers, the instruction pointer and the flags.
#[expect(missing_docs, reason = "the fields are the registers' names")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part. The one-bit fields are 0 or 1, as
/// in the descriptor (Intel SDM vol. 3, "Segment Descriptors").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// First linear address.
    pub base: u64,
    /// Last offset, in bytes whatever `g` says.
    pub limit: u32,
    /// The visible part.
    pub selector: u16,
    /// The four type bits.
    pub type_: u8,
    /// Present.
    pub present: u8,
    /// Privilege level, 0 to 3.
    pub dpl: u8,
    /// Default operand size: 1 is 32 bits.
    pub db: u8,
    /// 1 for code and data, 0 for system segments.
    pub s: u8,
    /// 64-bit code.
    pub l: u8,
    /// The descriptor's limit counts pages.
    pub g: u8,
    /// For system software.
    pub avl: u8,
    /// The register holds no usable segment.
    pub unusable: u8,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Last byte, from `base`.
    pub limit: u16,
}

/// Segment, control and table registers.
#[expect(missing_docs, reason = "the fields are the registers' names")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// The external interrupt that is accepted but not yet delivered, as the
    /// one bit set; all zeros without one.
    pub interrupt_bitmap: [u64; 4],
}
