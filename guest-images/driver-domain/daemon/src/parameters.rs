//! What the configuration says of a device: lines of `key=value`, as `hypervisor/config` writes them.

use std::fmt;

/// Why the parameters are not a device's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ParameterError {
    /// A line without `=`.
    Line(String),
    /// A key that has to be there is not.
    Missing(&'static str),
    /// A value that is not one of the key's.
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it should have been.
        wanted: &'static str,
    },
}

impl fmt::Display for ParameterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "parameter {line:?} is not key=value"),
            Self::Missing(key) => write!(f, "parameter {key} is missing"),
            Self::Value { key, value, wanted } => write!(f, "parameter {key}: {value:?} is not {wanted}"),
        }
    }
}

impl std::error::Error for ParameterError {}

/// The parameters of a device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parameters {
    pairs: Vec<(String, String)>,
}

impl Parameters {
    /// Reads the lines. Keys that nobody asks for are left alone.
    ///
    /// # Errors
    /// [`ParameterError::Line`].
    pub fn parse(text: &str) -> Result<Self, ParameterError> {
        let pair = |line: &str| match line.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(ParameterError::Line(line.to_owned())),
        };
        let lines = text.lines().filter(|line| !line.is_empty());
        Ok(Self { pairs: lines.map(pair).collect::<Result<_, _>>()? })
    }

    /// A value that need not be there.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A value that has to be there.
    ///
    /// # Errors
    /// [`ParameterError::Missing`].
    pub fn text(&self, key: &'static str) -> Result<&str, ParameterError> {
        self.get(key).ok_or(ParameterError::Missing(key))
    }

    /// `true` or `false`, which is `default` where it is missing.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn flag(&self, key: &'static str, default: bool) -> Result<bool, ParameterError> {
        self.parsed(key, "true or false").map(|value| value.unwrap_or(default))
    }

    /// A number that need not be there.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn number(&self, key: &'static str) -> Result<Option<u64>, ParameterError> {
        self.parsed(key, "a number")
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        key: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, ParameterError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let error = |_| ParameterError::Value { key, value: value.to_owned(), wanted };
        value.parse().map(Some).map_err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let parameters = Parameters::parse("path=/dev/a=b\nread_only=true\n\nrate=8000\nempty=\n").unwrap();
        assert_eq!(parameters.text("path"), Ok("/dev/a=b"));
        assert_eq!(
            (parameters.flag("read_only", false), parameters.flag("other", true)),
            (Ok(true), Ok(true))
        );
        assert_eq!((parameters.number("rate"), parameters.number("vlan")), (Ok(Some(8000)), Ok(None)));
        assert_eq!((parameters.get("empty"), parameters.get("pat")), (Some(""), None));
        assert_eq!(parameters.text("bridge"), Err(ParameterError::Missing("bridge")));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(Parameters::parse("path"), Err(ParameterError::Line("path".into())));
        let parameters = Parameters::parse("read_only=1\nrate=fast\n").unwrap();
        let error = parameters.flag("read_only", false).unwrap_err().to_string();
        assert_eq!(error, "parameter read_only: \"1\" is not true or false");
        assert!(parameters.number("rate").is_err());
    }
}
