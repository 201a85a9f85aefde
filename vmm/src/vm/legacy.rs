//! The devices of a machine that are not on the PCI bus: I/O APIC, serial port,
//! and registers behind ports.

use std::sync::Arc;

use hypervisor::Vm;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::builder::BuildError;
use super::consoles::Consoles;
use super::device_tree::SaveError;
use crate::bus::BusError;
use crate::chardev::CharBackend;
use crate::devices::serial::{InputError, Serial, SerialInput, SerialState};
use crate::devices::{
    Cmos, DebugConsole, I8042, IoApic, IoApicState, Pin, PmTimer, PowerRegisters, ResetControl,
};
use crate::event::EventSink;
use crate::interrupt::MsiRouter;
use crate::memory::layout::{
    CMOS_PORTS, I8042_PORTS, IOAPIC_LENGTH, IOAPIC_START, PM_TIMER_PORTS, POWER_PORTS,
    RESET_CONTROL_PORT, SERIAL_PORTS, SYSTEM_CONTROL_PORT,
};
use crate::memory::{IOAPIC_SLOT, ReadOnlyWindow};
use crate::state::StateError;
use crate::vcpu::Buses;

/// The devices. Those without a state are with the buses only.
pub(super) struct LegacyDevices {
    pub(super) ioapic: Arc<IoApic>,
    serial: Option<SerialPort>,
    cmos: Option<Arc<Cmos>>,
    pm_timer: Option<Arc<PmTimer>>,
    system_control: Arc<ResetControl>,
    pub(super) reset_control: Arc<ResetControl>,
}

/// The serial port, and what its input takes.
struct SerialPort {
    device: Arc<Serial>,
    end: CharBackend,
    /// The event that the port signals when it wants more; none if nobody types.
    drained: Option<Arc<EventFd>>,
}

/// The devices as they are saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyState {
    ioapic: IoApicState,
    serial: Option<SerialState>,
    /// Typed, and the serial port had no room for it.
    typed: Vec<u8>,
    /// The index port of the clock.
    cmos: Option<u8>,
    /// The count of the power management timer.
    pm_timer: Option<u32>,
    system_control: u8,
    reset_control: u8,
}

impl LegacyDevices {
    /// Makes the devices and puts them on the buses. A machine that is a PC has
    /// all that firmware looks for.
    pub(super) fn new(
        vm: &Arc<dyn Vm>,
        router: &Arc<MsiRouter>,
        buses: &Buses,
        is_pc: bool,
        debug_port: Option<u16>,
        consoles: &Consoles,
        events: &EventSink,
    ) -> Result<Self, BuildError> {
        let ioapic = add_ioapic(vm, router, buses)?;
        let legacy = Self {
            serial: match &consoles.serial {
                Some(end) => Some(SerialPort::new(&ioapic, end)?),
                None => None,
            },
            ioapic,
            cmos: is_pc.then(|| Arc::new(Cmos::new())),
            pm_timer: is_pc.then(|| Arc::new(PmTimer::new())),
            system_control: Arc::new(ResetControl::system_control_a(events.clone())),
            reset_control: Arc::new(ResetControl::new(events.clone())),
        };
        legacy.add_ports(buses, debug_port, consoles, events)?;
        Ok(legacy)
    }

    /// Puts what is behind ports there. The reset control register of a PC comes
    /// with the ports of its PCI bus.
    fn add_ports(
        &self,
        buses: &Buses,
        debug_port: Option<u16>,
        consoles: &Consoles,
        events: &EventSink,
    ) -> Result<(), BusError> {
        let place = |name: &str, (base, length): (u16, u16), device| {
            buses.pio.insert(name, base.into(), length.into(), device)
        };
        place("i8042", I8042_PORTS, Arc::new(I8042::new(events.clone())))?;
        place(
            "power",
            POWER_PORTS,
            Arc::new(PowerRegisters::new(events.clone())),
        )?;
        let system_control = Arc::clone(&self.system_control);
        place("system_control", SYSTEM_CONTROL_PORT, system_control)?;
        if let Some(cmos) = &self.cmos {
            place("cmos", CMOS_PORTS, Arc::clone(cmos) as _)?;
        }
        match &self.pm_timer {
            Some(timer) => place("pm_timer", PM_TIMER_PORTS, Arc::clone(timer) as _)?,
            None => {
                let reset_control = Arc::clone(&self.reset_control);
                place("reset_control", RESET_CONTROL_PORT, reset_control)?;
            }
        }
        if let Some(port) = &self.serial {
            place("serial", SERIAL_PORTS, Arc::clone(&port.device) as _)?;
        }
        if let (Some(port), Some(end)) = (debug_port, &consoles.debug) {
            let device = Arc::new(DebugConsole::new(end.clone()));
            place("debug_console", (port, 1), device)?;
        }
        Ok(())
    }

    /// Has what is typed reach the serial port, `typed` first. Whoever carries it
    /// comes back, if there is anything to carry.
    pub(super) fn start_input(
        &self,
        typed: Vec<u8>,
        events: &EventSink,
    ) -> Result<Option<SerialInput>, InputError> {
        let Some(port) = &self.serial else {
            return Ok(None);
        };
        let Some(drained) = port.drained.clone() else {
            return Ok(None);
        };
        let (device, end) = (Arc::clone(&port.device), port.end.clone());
        SerialInput::start(device, end, drained, typed, events.clone()).map(Some)
    }

    /// The devices as they are, while nothing changes them.
    pub(super) fn save(&self, input: Option<&SerialInput>) -> Result<LegacyState, SaveError> {
        let Self {
            ioapic,
            serial,
            cmos,
            pm_timer,
            system_control,
            reset_control,
        } = self;
        Ok(LegacyState {
            ioapic: ioapic
                .save()
                .map_err(|source| SaveError::Interrupts("the I/O APIC".to_owned(), source))?,
            serial: serial.as_ref().map(|port| port.device.save()),
            typed: input.map_or_else(Vec::new, |input| input.pending().to_vec()),
            cmos: cmos.as_ref().map(|cmos| cmos.index()),
            pm_timer: pm_timer.as_ref().map(|timer| timer.count()),
            system_control: system_control.value(),
            reset_control: reset_control.value(),
        })
    }

    /// Makes the devices what was saved; says what was typed by then.
    pub(super) fn restore(&self, state: &LegacyState) -> Result<Vec<u8>, StateError> {
        let LegacyState {
            ioapic,
            serial,
            typed,
            cmos,
            pm_timer,
            system_control,
            reset_control,
        } = state;
        self.ioapic.restore(ioapic)?;
        if let (Some(port), Some(state)) = (&self.serial, serial) {
            port.device.restore(state)?;
        }
        if let (Some(device), Some(index)) = (&self.cmos, cmos) {
            device.set_index(*index);
        }
        if let (Some(device), Some(count)) = (&self.pm_timer, pm_timer) {
            device.set_count(*count);
        }
        self.system_control.set_value(*system_control);
        self.reset_control.set_value(*reset_control);
        Ok(typed.clone())
    }
}

impl SerialPort {
    fn new(ioapic: &IoApic, end: &CharBackend) -> Result<Self, InputError> {
        let drained = end
            .has_input()
            .then(|| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .transpose()
            .map_err(InputError::Prepare)?
            .map(Arc::new);
        let line = ioapic.line(Pin::Serial);
        Ok(Self {
            device: Serial::new(line, end.clone(), drained.clone()),
            end: end.clone(),
            drained,
        })
    }
}

/// The I/O APIC, whose registers the guest reads without an exit.
fn add_ioapic(
    vm: &Arc<dyn Vm>,
    router: &Arc<MsiRouter>,
    buses: &Buses,
) -> Result<Arc<IoApic>, BuildError> {
    let start = u64::from(IOAPIC_START);
    let window = ReadOnlyWindow::map(Arc::clone(vm), IOAPIC_SLOT, start, &[0; 4096], 1)?;
    let ioapic = IoApic::new(router, Some(window))?;
    buses
        .mmio
        .insert("ioapic", start, IOAPIC_LENGTH, ioapic.clone())?;
    Ok(ioapic)
}
