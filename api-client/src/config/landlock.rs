//! What the VMM may reach in the file system.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A path that the VMM may use when Landlock confines it.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LandlockConfig {
    /// File or directory.
    pub path: PathBuf,
    /// `r`, `w` or `rw`.
    pub access: String,
}
