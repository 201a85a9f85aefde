//! Packet headers (virtio 1.3, 5.10.6).

/// Length of a header.
pub(super) const HEADER_LENGTH: usize = 44;
/// The host's context identifier.
pub(super) const HOST_CID: u64 = 2;
/// A packet of a stream; there are no others.
pub(super) const STREAM: u16 = 1;
/// More data than this in one packet is refused.
pub(super) const MAX_DATA: usize = 64 << 10;

/// The sender of a shutdown receives no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a shutdown sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Open a connection.
    Request,
    /// It is open.
    Response,
    /// It is gone.
    Reset,
    /// One or both directions end.
    Shutdown,
    /// Data.
    Data,
    /// How much the sender takes.
    CreditUpdate,
    /// How much does the receiver take?
    CreditRequest,
}

const NUMBERS: [(u16, Operation); 7] = [
    (1, Operation::Request),
    (2, Operation::Response),
    (3, Operation::Reset),
    (4, Operation::Shutdown),
    (5, Operation::Data),
    (6, Operation::CreditUpdate),
    (7, Operation::CreditRequest),
];

impl Operation {
    /// None for a number without a meaning.
    pub(super) fn from_number(number: u16) -> Option<Self> {
        NUMBERS
            .iter()
            .find_map(|&(known, operation)| (known == number).then_some(operation))
    }

    pub(super) fn number(self) -> u16 {
        NUMBERS
            .iter()
            .find_map(|&(number, operation)| (operation == self).then_some(number))
            .unwrap_or_default()
    }
}

/// A header. Nothing in it is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) target_cid: u64,
    pub(super) source_port: u32,
    pub(super) target_port: u32,
    /// Bytes of data that follow.
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) operation: u16,
    pub(super) flags: u32,
    /// Bytes that the sender can buffer.
    pub(super) buffer: u32,
    /// Bytes that the sender has passed on so far.
    pub(super) forwarded: u32,
}

impl Header {
    /// Reads a header.
    pub(super) fn from_bytes(bytes: &[u8; HEADER_LENGTH]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            source_cid: u64::from_le_bytes(take(&mut rest)),
            target_cid: u64::from_le_bytes(take(&mut rest)),
            source_port: u32::from_le_bytes(take(&mut rest)),
            target_port: u32::from_le_bytes(take(&mut rest)),
            length: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            operation: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buffer: u32::from_le_bytes(take(&mut rest)),
            forwarded: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Writes a header.
    pub(super) fn to_bytes(self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.target_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.target_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buffer.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.forwarded.to_le_bytes());
        bytes
    }
}

/// The next `N` bytes; zeroes behind the end.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((chunk, tail)) => {
            *rest = tail;
            *chunk
        }
        None => [0; N],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_lie_where_the_standard_puts_them() {
        let bytes: [u8; HEADER_LENGTH] = std::array::from_fn(|at| at as u8);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.source_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.target_port, 0x1716_1514);
        assert_eq!(header.length, 0x1b1a_1918);
        assert_eq!((header.kind, header.operation), (0x1d1c, 0x1f1e));
        assert_eq!(header.forwarded, 0x2b2a_2928);
    }

    #[test]
    fn operations_have_the_numbers_of_the_standard() {
        for number in 0..10 {
            let operation = Operation::from_number(number);
            assert_eq!(operation.is_some(), (1..8).contains(&number));
            assert_eq!(operation.map_or(number, Operation::number), number);
        }
    }

    proptest! {
        #[test]
        fn headers_survive_the_way_there_and_back(bytes in any::<[[u8; 4]; 11]>()) {
            let bytes: [u8; HEADER_LENGTH] = bytes.concat().try_into().unwrap();
            prop_assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
        }
    }
}
