//! A vCPU as an inspection shows it.
//!
//! The registers of a vCPU that is parked are read where it lies. One that runs
//! has to be interrupted: its own thread reads them between two instructions of
//! the guest, which costs the guest an exit.

use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::{Duration, Instant};

use api_client::inspect::{InspectNode, InspectValue};
use hypervisor::x86::{DescriptorTable, Registers, Segment, SpecialRegisters};
use hypervisor::{Vcpu, VcpuKick};

use super::control::Control;
use super::{VcpuHandle, VcpuRunState, VcpuThread};
use crate::inspect::{Inside, Question, Scope};

/// The question for a vCPU's registers.
pub(super) type RegistersQuestion = Question<hypervisor::Result<(Registers, SpecialRegisters)>>;

/// How often a vCPU that has not answered is looked at: it may be parked by now.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The way to look at a vCPU. It keeps nothing of the VM.
pub struct VcpuView {
    vcpu: Weak<Mutex<Box<dyn Vcpu>>>,
    kick: Weak<VcpuKick>,
    thread: Weak<VcpuThread>,
    control: Arc<Control>,
    registers: Arc<RegistersQuestion>,
}

impl VcpuHandle {
    /// A way to look at the vCPU.
    #[must_use]
    pub fn view(&self) -> VcpuView {
        VcpuView {
            vcpu: Arc::downgrade(&self.vcpu),
            kick: Arc::downgrade(&self.kick),
            thread: Arc::downgrade(&self.thread),
            control: Arc::clone(&self.control),
            registers: Arc::clone(&self.registers),
        }
    }
}

impl VcpuView {
    /// Fills `node`; `asleep` is what the kernel says of a vCPU that runs.
    pub fn inspect(
        &self,
        scope: &Scope<'_>,
        node: &mut InspectNode,
        inside: &Inside<'_>,
        asleep: Option<bool>,
    ) {
        let requested = self.control.requested();
        let state = self.control.state();
        node.set(
            "state",
            match (state, asleep) {
                (VcpuRunState::Running, Some(true)) => "asleep",
                (state, _) => name(state),
            },
        );
        if requested != state {
            node.set("requested_state", name(requested));
        }
        scope.add_on_request(node, "registers", |scope, node| {
            match self.registers(scope.deadline(), inside) {
                Some(Ok((general, special))) => show(node, &general, &special),
                Some(Err(error)) => node.lacks(error.to_string()),
                None => node.lacks("the vCPU did not come out of the guest in time"),
            }
        });
    }

    fn registers(
        &self,
        deadline: Instant,
        inside: &Inside<'_>,
    ) -> Option<hypervisor::Result<(Registers, SpecialRegisters)>> {
        let (vcpu, kick, thread) = (
            self.vcpu.upgrade()?,
            self.kick.upgrade()?,
            self.thread.upgrade()?,
        );
        loop {
            match vcpu.try_lock() {
                Ok(vcpu) => return Some(vcpu.registers()),
                Err(TryLockError::Poisoned(vcpu)) => return Some(vcpu.into_inner().registers()),
                Err(TryLockError::WouldBlock) => {}
            }
            // It is not taken back: the flag that the kick sets is the thread's to
            // clear, when it answers.
            if self.registers.ask() {
                kick.set_immediate_exit(true);
                thread.interrupt();
            }
            let soon = deadline.min(Instant::now() + LOOK_AGAIN);
            if let Some(answer) = self.registers.wait(soon, || inside.may_stay()) {
                return Some(answer);
            }
            if Instant::now() >= deadline || !inside.may_stay() {
                return None;
            }
        }
    }
}

fn name(state: VcpuRunState) -> &'static str {
    match state {
        VcpuRunState::Running => "running",
        VcpuRunState::Parked => "paused",
        VcpuRunState::Stopped => "stopped",
    }
}

fn show(node: &mut InspectNode, general: &Registers, special: &SpecialRegisters) {
    let Registers {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    } = *general;
    let SpecialRegisters {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        // On its way to the guest, and no register.
        interrupt_bitmap: _,
    } = *special;
    for (name, value) in [
        ("rax", rax),
        ("rbx", rbx),
        ("rcx", rcx),
        ("rdx", rdx),
        ("rsi", rsi),
        ("rdi", rdi),
        ("rsp", rsp),
        ("rbp", rbp),
        ("r8", r8),
        ("r9", r9),
        ("r10", r10),
        ("r11", r11),
        ("r12", r12),
        ("r13", r13),
        ("r14", r14),
        ("r15", r15),
        ("rip", rip),
        ("rflags", rflags),
        ("cr0", cr0),
        ("cr2", cr2),
        ("cr3", cr3),
        ("cr4", cr4),
        ("cr8", cr8),
        ("efer", efer),
        ("apic_base", apic_base),
    ] {
        node.set(name, InspectValue::hex(value));
    }
    for (name, segment) in [
        ("cs", cs),
        ("ds", ds),
        ("es", es),
        ("fs", fs),
        ("gs", gs),
        ("ss", ss),
        ("tr", tr),
        ("ldtr", ldt),
    ] {
        node.set(name, shown_segment(&segment));
    }
    for (name, DescriptorTable { base, limit }) in [("gdtr", gdt), ("idtr", idt)] {
        node.set(name, format!("base {base:#x} limit {limit:#x}"));
    }
}

fn shown_segment(segment: &Segment) -> String {
    let Segment {
        base,
        limit,
        selector,
        dpl,
        l,
        unusable,
        ..
    } = segment;
    if *unusable != 0 {
        return "unusable".to_owned();
    }
    let long = if *l != 0 { " long" } else { "" };
    format!("{selector:#x} base {base:#x} limit {limit:#x} dpl {dpl}{long}")
}
