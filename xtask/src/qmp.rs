//! A client of QEMU's machine protocol (QMP, `docs/interop/qmp-spec.txt` of QEMU): one command at a time, events skipped.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// A connection with its greeting exchanged.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Takes the greeting from `stream`. No answer may take longer than `patience`.
    ///
    /// # Errors
    /// When QEMU ends or stays silent.
    pub fn greet(stream: UnixStream, patience: Duration) -> Result<Self> {
        stream.set_read_timeout(Some(patience)).cannot(|| "set up the QMP connection".to_owned())?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.read()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and gives what it returns.
    ///
    /// # Errors
    /// QEMU's own words when it refuses, or that it ended.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_mut(), "{request}").cannot(|| format!("send {command} to QEMU"))?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given");
                return Err(Error::Failed(format!("QEMU refused {command}: {reason}")));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).cannot(|| "hear from QEMU".to_owned())?;
        if length == 0 {
            return Err(Error::Failed("QEMU ended".to_owned()));
        }
        serde_json::from_str(&line).cannot(|| "understand QEMU".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_skipped_and_errors_are_told() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .write_all(
                b"{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"STOP\"}\n{\"return\":{\"x\":7}}\n\
                  {\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"}}\n",
            )
            .unwrap();
        let mut qmp = Qmp::greet(ours, Duration::from_secs(5)).unwrap();
        assert_eq!(qmp.execute("query-x", &json!({})).unwrap()["x"], 7);
        let error = qmp.execute("query-y", &json!({})).unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused query-y: no such thing");
        drop(theirs);
        assert!(qmp.execute("query-z", &json!({})).is_err());
    }
}
