//! One request: fill the buffers of a chain.

use std::io::{self, Read, Write};

use crate::virtio::Chain;

/// One request gets no more than this, however large its buffers are; the
/// driver asks again for the rest.
const MAX_BYTES: usize = 64 << 10;
const STEP: usize = 256;

/// Why a request gets nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The driver gave no memory of its own to write to.
    #[error("A request without a buffer to fill")]
    NoBuffer,
    /// The buffers do not lie in guest memory.
    #[error("A request with misplaced buffers: {0}")]
    Buffers(virtio_queue::Error),
    /// The host's source has nothing yet.
    #[error("The source has no random bytes at the moment")]
    NotReady,
    /// The host's source failed.
    #[error("Cannot read random bytes")]
    Source(#[source] io::Error),
}

/// Fills the chain's buffers from `source`; says with how many bytes.
pub(super) fn fill(chain: &Chain, source: &mut impl Read) -> Result<u32, RequestError> {
    let mut writer = chain
        .clone()
        .writer(chain.memory())
        .map_err(RequestError::Buffers)?;
    let wanted = writer.available_bytes().min(MAX_BYTES);
    if wanted == 0 {
        return Err(RequestError::NoBuffer);
    }
    let mut written = 0;
    let mut bytes = [0; STEP];
    while written < wanted {
        let step = STEP.min(wanted - written);
        let count = match source.read(&mut bytes[..step]) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) if written > 0 => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(RequestError::NotReady);
            }
            Err(error) => return Err(RequestError::Source(error)),
        };
        if count == 0 {
            break;
        }
        writer
            .write_all(&bytes[..count])
            .map_err(RequestError::Source)?;
        written += count;
    }
    Ok(written as u32)
}
