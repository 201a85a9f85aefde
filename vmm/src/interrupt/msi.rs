//! Interrupts that are messages: numbers, each with a route that the guest's
//! driver decides and an event that raises it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::{IrqRoute, Vm};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::InterruptError;

/// Where a message goes and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address, which selects the processor.
    pub address: u64,
    /// Data, which selects the vector.
    pub data: u32,
}

/// Owns the VM's routing table. Shared by all devices that send messages; its
/// lock is taken last.
pub struct MsiRouter {
    vm: Arc<dyn Vm>,
    /// By interrupt number; one without a message is taken but not routed.
    messages: Mutex<BTreeMap<u32, Option<MsiMessage>>>,
}

impl MsiRouter {
    /// A table without a route.
    pub fn new(vm: Arc<dyn Vm>) -> Arc<Self> {
        Arc::new(Self {
            vm,
            messages: Mutex::new(BTreeMap::new()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Option<MsiMessage>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lowest free number.
    fn take(&self) -> u32 {
        let mut messages = self.lock();
        let mut number = 0;
        for &taken in messages.keys() {
            if taken != number {
                break;
            }
            number += 1;
        }
        messages.insert(number, None);
        number
    }

    fn route(&self, number: u32, message: MsiMessage) -> Result<(), InterruptError> {
        let mut messages = self.lock();
        if messages.insert(number, Some(message)) == Some(Some(message)) {
            return Ok(());
        }
        self.apply(&messages)
    }

    /// Frees a number. The kernel's table keeps its route until the next
    /// change; nothing raises it any more.
    fn release(&self, number: u32) {
        self.lock().remove(&number);
    }

    fn apply(&self, messages: &BTreeMap<u32, Option<MsiMessage>>) -> Result<(), InterruptError> {
        let routes: Vec<IrqRoute> = messages
            .iter()
            .filter_map(|(&gsi, message)| {
                message.map(|message| IrqRoute {
                    gsi,
                    address: routed_address(message.address),
                    data: message.data,
                })
            })
            .collect();
        self.vm
            .set_irq_routes(&routes)
            .map_err(InterruptError::Route)
    }
}

/// Where the hypervisor looks for a destination. Guests that know of it (see
/// `KVM_FEATURE_MSI_EXT_DEST_ID`) put its bits 8 to 14 into bits 5 to 11 of the
/// address, since a device's message has 32 bits of address; KVM takes them from
/// bit 40 on.
fn routed_address(address: u64) -> u64 {
    address | (address >> 5 & 0x7f) << 40
}

/// One interrupt of a device. Raising it goes from the device's thread through
/// the kernel to the guest. While it is not connected, it is remembered
/// instead: that is what masking means.
pub struct MsiVector {
    router: Arc<MsiRouter>,
    number: u32,
    event: EventFd,
    connected: Mutex<bool>,
}

impl MsiVector {
    /// A vector that is not connected yet.
    pub fn new(router: &Arc<MsiRouter>) -> Result<Self, InterruptError> {
        let number = router.take();
        let vector = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(|event| Self {
            router: Arc::clone(router),
            number,
            event,
            connected: Mutex::new(false),
        });
        vector.map_err(|source| {
            router.release(number);
            InterruptError::Event(number, source)
        })
    }

    /// Raises the interrupt, or remembers it.
    pub fn raise(&self) {
        if let Err(error) = self.event.write(1) {
            // The counter is full: it is raised already.
            log::debug!("interrupt {}: {error}", self.number);
        }
    }

    /// Sends `message` from now on, and at once if the interrupt was raised
    /// meanwhile.
    pub fn connect(&self, message: MsiMessage) -> Result<(), InterruptError> {
        self.router.route(self.number, message)?;
        let mut connected = self.lock();
        if *connected {
            return Ok(());
        }
        let waiting = self.event.read().is_ok();
        self.router
            .vm
            .register_irqfd(&self.event, self.number)
            .map_err(|source| InterruptError::Connect(self.number, source))?;
        *connected = true;
        if waiting {
            self.raise();
        }
        Ok(())
    }

    /// Remembers from now on.
    pub fn disconnect(&self) -> Result<(), InterruptError> {
        let mut connected = self.lock();
        if *connected {
            self.router
                .vm
                .unregister_irqfd(&self.event, self.number)
                .map_err(|source| InterruptError::Connect(self.number, source))?;
            *connected = false;
        }
        Ok(())
    }

    /// Whether it was raised while not connected.
    pub fn is_pending(&self) -> bool {
        let connected = self.lock();
        let pending = !*connected && self.event.read().is_ok();
        if pending {
            self.raise();
        }
        pending
    }

    /// Returns when what was raised has reached the guest's local APICs. The
    /// kernel may take it there later than the event is signalled; it waits for
    /// that when an event is disconnected (Linux, virt/kvm/eventfd.c,
    /// `irqfd_shutdown`).
    ///
    /// # Errors
    /// The hypervisor does not connect the event again.
    pub fn flush(&self) -> Result<(), InterruptError> {
        let connected = self.lock();
        if !*connected {
            return Ok(());
        }
        let vm = &self.router.vm;
        vm.unregister_irqfd(&self.event, self.number)
            .and_then(|()| vm.register_irqfd(&self.event, self.number))
            .map_err(|source| InterruptError::Connect(self.number, source))
    }

    /// Forgets what was raised while not connected.
    pub fn forget(&self) {
        if !*self.lock() {
            // Nothing to read: nothing to forget.
            let _ = self.event.read();
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MsiVector {
    fn drop(&mut self) {
        if let Err(error) = self.disconnect() {
            log::warn!("interrupt {}: {error}", self.number);
        }
        self.router.release(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::testing::{Call, RecordingVm};

    fn message(data: u32) -> MsiMessage {
        MsiMessage {
            address: 0xfee0_0000,
            data,
        }
    }

    #[test]
    fn numbers_are_dense_and_are_used_again() {
        let router = MsiRouter::new(RecordingVm::new());
        let new = || MsiVector::new(&router).unwrap();
        let (first, second, third) = (new(), new(), new());
        assert_eq!((first.number, second.number, third.number), (0, 1, 2));
        drop(second);
        assert_eq!(new().number, 1);
    }

    #[test]
    fn an_interrupt_raised_while_masked_comes_when_it_is_unmasked() {
        let vm = RecordingVm::new();
        let router = MsiRouter::new(vm.clone());
        let vector = MsiVector::new(&router).unwrap();
        assert!(!vector.is_pending());
        vector.raise();
        assert!(vector.is_pending() && vector.is_pending());
        vector.connect(message(0x21)).unwrap();
        assert!(!vector.is_pending());
        // Signalled again for the kernel to take.
        assert_eq!(vector.event.read().unwrap(), 1);
        vector.disconnect().unwrap();
        assert!(!vector.is_pending());
        assert_eq!(
            vm.calls(),
            [
                Call::Routes(vec![(0, message(0x21))]),
                Call::Connect(0),
                Call::Disconnect(0)
            ]
        );
    }

    #[test]
    fn the_table_is_written_only_when_it_changes() {
        let vm = RecordingVm::new();
        let router = MsiRouter::new(vm.clone());
        let vector = MsiVector::new(&router).unwrap();
        for data in [1, 1, 2] {
            vector.connect(message(data)).unwrap();
        }
        let routes = vm
            .calls()
            .into_iter()
            .filter(|call| matches!(call, Call::Routes(_)))
            .count();
        assert_eq!(routes, 2);
    }
}
