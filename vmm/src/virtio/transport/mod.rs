//! How a guest reaches virtio devices. There is one way, PCI.

pub mod pci;
