//! The parameters of a request, after the question mark.

use api_client::inspect::PathError;

/// What is wrong with them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// A name alone.
    #[error("Parameter \"{0}\" has no value")]
    NoValue(String),
    /// A name twice.
    #[error("Parameter \"{0}\" is given twice")]
    Twice(String),
    /// Another name.
    #[error("unknown parameter \"{name}\"; valid: {valid}")]
    Unknown {
        /// What came.
        name: String,
        /// What there is.
        valid: &'static str,
    },
    /// No number.
    #[error("{name}=\"{value}\" is not an unsigned 32-bit number")]
    Number {
        /// The parameter.
        name: String,
        /// What came.
        value: String,
    },
    /// Neither yes nor no.
    #[error("{name} is true or false, not \"{value}\"")]
    Flag {
        /// The parameter.
        name: String,
        /// What came.
        value: String,
    },
    /// No path.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// The parameters in the order in which they came, each at most once and with a
/// value.
///
/// # Errors
/// One without a value, or one twice.
pub fn parameters(text: &str) -> Result<Vec<(&str, &str)>, ParameterError> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| ParameterError::NoValue(pair.to_owned()))?;
        if found.iter().any(|(known, _)| *known == name) {
            return Err(ParameterError::Twice(name.to_owned()));
        }
        found.push((name, value));
    }
    Ok(found)
}
