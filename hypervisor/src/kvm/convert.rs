//! Between our types and those of KVM's interface. Every struct is taken apart
//! whole, so that a new field on either side does not compile until somebody
//! decides about it.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, kvm_cpuid_entry2, kvm_debugregs,
    kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};

use crate::x86::state::{
    DebugRegisters, ExceptionEvent, InterruptEvent, NmiEvent, RunState, SmiEvent, VcpuEvents,
};
use crate::x86::{CpuidEntry, DescriptorTable, Registers, Segment, SpecialRegisters};

/// Converts both ways between structs whose fields have the same names.
macro_rules! same_fields {
    ($ours:ident, $kvm:ident, { $($field:ident),* $(,)? } $(, fill { $($rest:ident),* })?) => {
        impl From<$kvm> for $ours {
            fn from($kvm { $($field,)* $($($rest: _,)*)? }: $kvm) -> Self {
                Self { $($field: $field.into(),)* }
            }
        }
        impl From<$ours> for $kvm {
            fn from($ours { $($field,)* }: $ours) -> Self {
                Self {
                    $($field: $field.into(),)*
                    $($($rest: Default::default(),)*)?
                }
            }
        }
    };
}

same_fields!(CpuidEntry, kvm_cpuid_entry2,
    { function, index, flags, eax, ebx, ecx, edx }, fill { padding });
same_fields!(Registers, kvm_regs,
    { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags });
same_fields!(Segment, kvm_segment,
    { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable }, fill { padding });
same_fields!(DescriptorTable, kvm_dtable, { base, limit }, fill { padding });
same_fields!(SpecialRegisters, kvm_sregs,
    { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base,
      interrupt_bitmap });

impl From<kvm_mp_state> for RunState {
    fn from(kvm_mp_state { mp_state }: kvm_mp_state) -> Self {
        match mp_state {
            KVM_MP_STATE_RUNNABLE => RunState::Runnable,
            KVM_MP_STATE_UNINITIALIZED => RunState::Uninitialized,
            KVM_MP_STATE_INIT_RECEIVED => RunState::InitReceived,
            KVM_MP_STATE_HALTED => RunState::Halted,
            KVM_MP_STATE_SIPI_RECEIVED => RunState::SipiReceived,
            other => RunState::Other(other),
        }
    }
}

impl From<RunState> for kvm_mp_state {
    fn from(state: RunState) -> Self {
        let mp_state = match state {
            RunState::Runnable => KVM_MP_STATE_RUNNABLE,
            RunState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
            RunState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
            RunState::Halted => KVM_MP_STATE_HALTED,
            RunState::SipiReceived => KVM_MP_STATE_SIPI_RECEIVED,
            RunState::Other(number) => number,
        };
        kvm_mp_state { mp_state }
    }
}

impl From<kvm_debugregs> for DebugRegisters {
    fn from(
        kvm_debugregs {
            db: addresses,
            dr6,
            dr7,
            flags: _,
            reserved: _,
        }: kvm_debugregs,
    ) -> Self {
        Self {
            addresses,
            dr6,
            dr7,
        }
    }
}

impl From<DebugRegisters> for kvm_debugregs {
    fn from(
        DebugRegisters {
            addresses: db,
            dr6,
            dr7,
        }: DebugRegisters,
    ) -> Self {
        Self {
            db,
            dr6,
            dr7,
            ..Default::default()
        }
    }
}

impl From<kvm_vcpu_events> for VcpuEvents {
    fn from(
        kvm_vcpu_events {
            exception,
            interrupt,
            nmi,
            sipi_vector,
            flags,
            smi,
            triple_fault,
            reserved: _,
            exception_has_payload,
            exception_payload,
        }: kvm_vcpu_events,
    ) -> Self {
        Self {
            exception: ExceptionEvent {
                injected: exception.injected != 0,
                pending: exception.pending != 0,
                vector: exception.nr,
                error_code: (exception.has_error_code != 0).then_some(exception.error_code),
                payload: (exception_has_payload != 0).then_some(exception_payload),
            },
            interrupt: InterruptEvent {
                injected: interrupt.injected != 0,
                vector: interrupt.nr,
                soft: interrupt.soft != 0,
                shadow: interrupt.shadow,
            },
            nmi: NmiEvent {
                injected: nmi.injected != 0,
                pending: nmi.pending,
                masked: nmi.masked != 0,
            },
            sipi_vector,
            flags,
            smi: SmiEvent {
                in_smm: smi.smm != 0,
                pending: smi.pending != 0,
                inside_nmi: smi.smm_inside_nmi != 0,
                latched_init: smi.latched_init != 0,
            },
            triple_fault_pending: triple_fault.pending != 0,
        }
    }
}

impl From<VcpuEvents> for kvm_vcpu_events {
    fn from(
        VcpuEvents {
            exception,
            interrupt,
            nmi,
            sipi_vector,
            flags,
            smi,
            triple_fault_pending,
        }: VcpuEvents,
    ) -> Self {
        let mut events = Self {
            sipi_vector,
            flags,
            exception_has_payload: exception.payload.is_some().into(),
            exception_payload: exception.payload.unwrap_or(0),
            ..Default::default()
        };
        events.exception.injected = exception.injected.into();
        events.exception.pending = exception.pending.into();
        events.exception.nr = exception.vector;
        events.exception.has_error_code = exception.error_code.is_some().into();
        events.exception.error_code = exception.error_code.unwrap_or(0);
        events.interrupt.injected = interrupt.injected.into();
        events.interrupt.nr = interrupt.vector;
        events.interrupt.soft = interrupt.soft.into();
        events.interrupt.shadow = interrupt.shadow;
        events.nmi.injected = nmi.injected.into();
        events.nmi.pending = nmi.pending;
        events.nmi.masked = nmi.masked.into();
        events.smi.smm = smi.in_smm.into();
        events.smi.pending = smi.pending.into();
        events.smi.smm_inside_nmi = smi.inside_nmi.into();
        events.smi.latched_init = smi.latched_init.into();
        events.triple_fault.pending = triple_fault_pending.into();
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pattern that no two fields share, so that a swap is seen.
    fn events() -> kvm_vcpu_events {
        let mut events = kvm_vcpu_events {
            sipi_vector: 0x9a,
            flags: 0x1f,
            exception_has_payload: 1,
            exception_payload: 0x1234_5678_9abc_def0,
            ..Default::default()
        };
        events.exception.injected = 1;
        events.exception.nr = 14;
        events.exception.has_error_code = 1;
        events.exception.error_code = 0xfeed;
        events.interrupt.nr = 0x31;
        events.interrupt.soft = 1;
        events.interrupt.shadow = 2;
        events.nmi.pending = 2;
        events.nmi.masked = 1;
        events.smi.smm = 1;
        events.smi.latched_init = 1;
        events.triple_fault.pending = 1;
        events
    }

    #[test]
    fn events_survive_the_way_there_and_back() {
        let there = VcpuEvents::from(events());
        assert_eq!(kvm_vcpu_events::from(there), events());
        assert_eq!(there.exception.error_code, Some(0xfeed));
        assert!(!there.exception.pending && there.nmi.masked && !there.nmi.injected);
    }

    #[test]
    fn every_run_state_survives_the_way_there_and_back() {
        for mp_state in 0..16 {
            let state = kvm_mp_state { mp_state };
            assert_eq!(kvm_mp_state::from(RunState::from(state)), state);
        }
        assert_eq!(
            RunState::from(kvm_mp_state { mp_state: 3 }),
            RunState::Halted
        );
    }

    #[test]
    fn a_leaf_keeps_each_register_in_its_place() {
        let leaf = CpuidEntry {
            function: 1,
            index: 2,
            flags: 3,
            eax: 4,
            ebx: 5,
            ecx: 6,
            edx: 7,
        };
        let kvm = kvm_cpuid_entry2::from(leaf);
        assert_eq!((kvm.function, kvm.index, kvm.eax, kvm.edx), (1, 2, 4, 7));
        assert_eq!(CpuidEntry::from(kvm), leaf);
    }
}
