//! What an emulated machine has.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use toml::Spanned;
use toml::de::DeValue;

use super::{Reader, Table};
use crate::error::Field;
use crate::rules;
use crate::source::{EmulatorText, Forward, SourceError};

impl Reader<'_> {
    pub(super) fn emulator(&mut self, root: &Table<'_>) -> Result<EmulatorText, SourceError> {
        let Some(value) = root.get("emulator") else { return Ok(EmulatorText::default()) };
        let table = self.table(value, "emulator".to_owned())?;
        self.known_keys(&table, &["disks", "network", "forward"])?;
        let mut emulator = EmulatorText {
            network: self.flag(&table, "network", Field::Emulator("network"))?.unwrap_or(false),
            ..EmulatorText::default()
        };
        for (path, value) in self.list(&table, "disks", "write e.g. [\"disk.img\"]")? {
            let name = text_of(value).filter(|name| rules::check_reference(name).is_ok());
            let what = "is not a file's name; write a path or @name in quotes";
            emulator.disks.push(name.ok_or_else(|| self.wrong(value, path, what))?);
        }
        for (path, value) in self.list(&table, "forward", "write e.g. [\"8080:10.0.2.20:80\"]")? {
            let forward = text_of(value).and_then(|text| parse_forward(&text));
            let what = "is not a port and where it leads; write e.g. \"8080:10.0.2.20:80\"";
            emulator.forward.push(forward.ok_or_else(|| self.wrong(value, path, what))?);
        }
        Ok(emulator)
    }

    /// The values of a list, each with its path.
    fn list<'t>(
        &self,
        table: &Table<'t>,
        key: &str,
        remedy: &str,
    ) -> Result<Vec<(String, &'t Spanned<DeValue<'t>>)>, SourceError> {
        let path = table.path(key);
        match table.get(key).map(|value| (value, value.get_ref())) {
            None => Ok(Vec::new()),
            Some((_, DeValue::Array(values))) => {
                Ok(values.iter().enumerate().map(|(n, value)| (format!("{path}[{n}]"), value)).collect())
            }
            Some((value, _)) => Err(self.wrong(value, path, &format!("is not a list; {remedy}"))),
        }
    }
}

fn text_of(value: &Spanned<DeValue<'_>>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.clone().into_owned()),
        _ => None,
    }
}

fn parse_forward(text: &str) -> Option<Forward> {
    let (port, to) = text.split_once(':')?;
    let port = port.parse().ok().filter(|&port| port != 0)?;
    Some(Forward { port, to: to.parse().ok()? })
}
