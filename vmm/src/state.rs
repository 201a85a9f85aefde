//! Saved states: what a part of the machine is at a moment, as plain data.
//!
//! Each part has a state type of its own beside it, apart from what it is while
//! it runs. Saving and restoring take both types apart field by field, so that
//! a new field does not compile until somebody has decided about it. A state
//! may come from a file: whoever restores it checks it.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a part cannot be what was saved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// The part is another one, or the state makes no sense.
    #[error("The saved state of {part} does not fit: {why}")]
    Unfit {
        /// The part.
        part: String,
        /// What does not fit.
        why: String,
    },
    /// The machine has the part and the saved machine had not.
    #[error("There is no saved state of {0}")]
    Missing(String),
    /// The saved machine had the part and this one has not.
    #[error("There is a saved state of {0}, which this machine does not have")]
    Unknown(String),
}

impl StateError {
    /// The state of `part` does not fit, for this reason.
    pub fn unfit(part: &str, why: &dyn fmt::Display) -> Self {
        StateError::Unfit {
            part: part.to_owned(),
            why: why.to_string(),
        }
    }
}

/// The state of a device. Only the device's own folder knows what is in it.
#[must_use]
pub fn device_state(state: &impl Serialize) -> Value {
    // Fails for maps with keys that are no text only, which no device has.
    serde_json::to_value(state).unwrap_or_default()
}

/// The same, read by the device `id`.
///
/// # Errors
/// It is the state of another kind of device.
pub fn from_device_state<T: DeserializeOwned>(id: &str, state: &Value) -> Result<T, StateError> {
    T::deserialize(state).map_err(|error| StateError::unfit(id, &error))
}
