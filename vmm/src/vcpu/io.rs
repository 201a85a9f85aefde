//! Where a vCPU's I/O goes, and the record of it.

use std::sync::Arc;

use hypervisor::{VmOps, rdtsc};
use instrumentation::user_exit::{Access, UserExitKind, UserExitRecorder};

use super::Buses;

/// One per vCPU; used by its thread alone.
pub(super) struct VcpuIo {
    buses: Buses,
    recorder: Arc<UserExitRecorder>,
}

impl VcpuIo {
    pub(super) fn new(buses: Buses, recorder: Arc<UserExitRecorder>) -> Self {
        Self { buses, recorder }
    }

    fn record(&self, kind: UserExitKind, width: usize, access: impl FnOnce() -> Access) {
        let start = rdtsc();
        let access = access();
        let ticks = rdtsc().saturating_sub(start);
        self.recorder.record(kind, access, width as u8, ticks);
    }
}

impl VmOps for VcpuIo {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.record(UserExitKind::IoIn, data.len(), || {
            self.buses.pio.read(port.into(), data)
        });
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        self.record(UserExitKind::IoOut, data.len(), || {
            self.buses.pio.write(port.into(), data)
        });
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.record(UserExitKind::MmioRead, data.len(), || {
            self.buses.mmio.read(address, data)
        });
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.record(UserExitKind::MmioWrite, data.len(), || {
            self.buses.mmio.write(address, data)
        });
    }
}
