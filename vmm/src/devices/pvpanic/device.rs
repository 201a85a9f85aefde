//! The function and its one register.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bus::BusDevice;
use crate::event::{EventSink, MachineEvent};
use crate::interrupt::InterruptError;
use crate::log_limit::LogLimit;
use crate::pci::{
    BarPlacer, CONFIG_SIZE, ConfigSpace, Identity, PciAddress, PciContext, PciFunction, PciUnit,
};
use crate::state::{StateError, device_state, from_device_state};

const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0011,
    revision: 1,
    // A system peripheral of no kind in particular.
    class: [0x08, 0x80, 0x00],
    subsystem: (0x1b36, 0x0011),
};

/// Bytes of the BAR: the smallest that PCI knows.
const BAR_SIZE: u32 = 16;

/// Bits of the register, and what they are called in the event monitor.
const EVENTS: [(u8, &str); 2] = [(1 << 0, "panic"), (1 << 1, "crash_loaded")];

struct State {
    config: ConfigSpace,
    placer: BarPlacer,
}

/// The device as it is saved.
#[derive(Serialize, Deserialize)]
struct PvpanicState {
    config: Vec<u8>,
}

/// The device. What the guest tells leaves at once, so the registers of the function
/// are all its state.
pub struct Pvpanic {
    /// Itself, for the bus.
    me: Weak<Self>,
    id: String,
    address: PciAddress,
    events: EventSink,
    /// A guest may tell of a panic as often as it can write.
    limit: LogLimit,
    state: Mutex<State>,
}

impl Pvpanic {
    /// A device called `id`.
    #[must_use]
    pub fn new(id: &str, address: PciAddress, context: &PciContext) -> Arc<Self> {
        let mut config = ConfigSpace::new(&IDENTITY);
        config.add_bar(0, BAR_SIZE, BarPlacer::first_address(address));
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            id: id.to_owned(),
            address,
            events: context.events.clone(),
            limit: LogLimit::new(id),
            state: Mutex::new(State {
                config,
                placer: BarPlacer::new(id, &context.mmio, BAR_SIZE.into()),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the register where the guest wants it.
    fn place(&self, state: &mut State, wanted: Option<u64>) {
        let me: Weak<dyn BusDevice> = Weak::<Self>::clone(&self.me);
        state.placer.place(wanted, &me);
    }
}

impl PciFunction for Pvpanic {
    fn id(&self) -> &str {
        &self.id
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut state = self.state();
        state.config.write(offset, data);
        let wanted = state.config.bar(0);
        self.place(&mut state, wanted);
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        *self.state().config.bytes()
    }

    fn detach(&self) {
        self.place(&mut self.state(), None);
    }
}

impl PciUnit for Pvpanic {
    fn bar(&self) -> (u64, u64) {
        let placed = self.state().placer.at();
        let first = u64::from(BarPlacer::first_address(self.address));
        (placed.unwrap_or(first), BAR_SIZE.into())
    }

    fn save(&self) -> Result<Value, InterruptError> {
        let state = self.state();
        let State { config, placer: _ } = &*state;
        Ok(device_state(&PvpanicState {
            config: config.bytes().to_vec(),
        }))
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let PvpanicState { config } = from_device_state(&self.id, state)?;
        let mut state = self.state();
        state
            .config
            .restore(&config)
            .map_err(|error| StateError::unfit(&self.id, &error))?;
        let wanted = state.config.bar(0);
        self.place(&mut state, wanted);
        Ok(())
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = EVENTS.iter().fold(0, |all, (bit, _)| all | bit);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, Some(told)) = (offset, data.first()) else {
            return;
        };
        for (bit, name) in EVENTS {
            if told & bit != 0 && self.limit.allows().is_some() {
                self.events.send(MachineEvent::GuestPanic(name));
            }
        }
    }
}
