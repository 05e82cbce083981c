//! From TOML to [`ConfigText`], by hand, so that every mistake is told with its place, its field's path and its value.

mod devices;
mod emulator;

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    ConfigText, DomainText, MachineText, ModuleText, PoolText, Position, SourceError, parse_size, parse_time,
};
use crate::error::Field;
use crate::pools::{DEFAULT_POOL, QUANTUM};
use crate::settings::{
    Console, Contract, LoaderKind, LogLevel, OnExit, OnExitAction, PoolPolicy, Purpose, ReservedTime,
};

/// Reads a text. The rules that the blob has too are not checked here.
pub(super) fn read(text: &str, file: &str, purpose: Purpose) -> Result<ConfigText, SourceError> {
    let mut reader = Reader { text, file, positions: BTreeMap::new() };
    let table = DeTable::parse(text).map_err(|error| reader.syntax(&error))?;
    let root = Table { path: String::new(), table: table.get_ref(), span: 0..0 };
    reader.known_keys(&root, &["machine", "emulator", "pool", "domain"])?;
    let machine = reader.machine(&root)?;
    let emulator = reader.emulator(&root)?;
    let mut pools = reader.pools(&root)?;
    let mut domains = reader.domains(&root)?;
    match purpose {
        Purpose::Machine => reader.default_owner(&mut domains),
        Purpose::Later => pools = machines_pools(&pools, &domains),
    }
    Ok(ConfigText {
        file: file.to_owned(),
        purpose,
        machine,
        emulator,
        pools,
        domains,
        positions: reader.positions,
        origins: BTreeMap::new(),
        only: None,
    })
}

/// Of the pools that a text describes or its domains name, the names: what they have is the machine's.
fn machines_pools(pools: &[PoolText], domains: &[DomainText]) -> Vec<PoolText> {
    let mut names: Vec<&str> = pools.iter().map(|pool| &*pool.name).collect();
    for domain in domains {
        if !names.contains(&&*domain.pool) {
            names.push(&domain.pool);
        }
    }
    names.into_iter().map(PoolText::machines).collect()
}

/// A table of the text and its path.
struct Table<'t> {
    path: String,
    table: &'t DeTable<'t>,
    span: Range<usize>,
}

impl<'t> Table<'t> {
    fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.get(key)
    }

    fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

struct Reader<'t> {
    text: &'t str,
    file: &'t str,
    positions: BTreeMap<Field, Position>,
}

const DOMAIN_KEYS: [&str; 32] = [
    "name",
    "memory",
    "private",
    "vcpus",
    "tsc_khz",
    "loader",
    "kernel",
    "initrd",
    "modules",
    "cmdline",
    "console",
    "devices",
    "entropy",
    "privileges",
    "disk",
    "network",
    "share",
    "port",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "max_restarts",
    "pool",
    "weight",
    "cap",
    "cpus",
    "prefer",
    "warp",
    "warp_limit",
    "period",
    "slice",
    "extra",
];

impl Reader<'_> {
    fn machine(&mut self, root: &Table<'_>) -> Result<MachineText, SourceError> {
        let mut machine = MachineText { console: None, log_level: LogLevel::Info };
        let Some(value) = root.get("machine") else { return Ok(machine) };
        let table = self.table(value, "machine".to_owned())?;
        self.known_keys(&table, &["console", "log"])?;
        if let Some(console) = self.string(&table, "console", Field::Machine("console"))? {
            machine.console = Some(console);
        }
        let log = self.word(&table, "log", Field::Machine("log"), LogLevel::WORDS, LogLevel::from_word)?;
        machine.log_level = log.unwrap_or(LogLevel::Info);
        Ok(machine)
    }

    /// The pools, and the default one where the text has none of that name: last, so that the others keep their numbers.
    fn pools(&mut self, root: &Table<'_>) -> Result<Vec<PoolText>, SourceError> {
        let mut pools = Vec::new();
        if let Some(value) = root.get("pool") {
            let DeValue::Array(values) = value.get_ref() else {
                let reason = "not a list; begin each pool's description with [[pool]], in double brackets";
                return Err(self.error(Some(value.span()), "pool".to_owned(), reason.to_owned()));
            };
            for (index, value) in values.iter().enumerate() {
                pools.push(self.pool(index, value)?);
            }
        }
        if pools.iter().all(|pool| pool.name != DEFAULT_POOL) {
            pools.push(PoolText::default());
        }
        Ok(pools)
    }

    fn pool(&mut self, index: usize, value: &Spanned<DeValue<'_>>) -> Result<PoolText, SourceError> {
        let table = self.table(value, Field::WholePool(index).to_string())?;
        self.known_keys(&table, &["name", "cpus", "policy", "quantum"])?;
        let at = |name| Field::Pool(index, name);
        let name = self.string(&table, "name", at("name"))?;
        let name = self.required(name, &table, "name", "\"batch\"")?;
        let cpus = self.cpus(&table, at("cpus"), "cpus")?;
        if cpus.is_empty() {
            self.remember(at("cpus"), &table.span);
        }
        let policy = self.word(&table, "policy", at("policy"), PoolPolicy::WORDS, PoolPolicy::from_word)?;
        Ok(PoolText {
            name,
            cpus,
            policy: policy.unwrap_or(PoolPolicy::Bvt),
            quantum: self.time(&table, "quantum", at("quantum"))?.unwrap_or(QUANTUM),
        })
    }

    fn contract(&mut self, table: &Table<'_>, domain: usize) -> Result<Contract, SourceError> {
        let at = |name| Field::Domain(domain, name);
        let weight = self.number(table, "weight", at("weight"))?.unwrap_or(Contract::USUAL.weight);
        let cap = self.number(table, "cap", at("cap"))?;
        let warp = self.time(table, "warp", at("warp"))?.unwrap_or(0);
        let warp_limit = self.time(table, "warp_limit", at("warp_limit"))?.unwrap_or(0);
        let period = self.time(table, "period", at("period"))?;
        let slice = self.time(table, "slice", at("slice"))?;
        let extra = self.flag(table, "extra", at("extra"))?;
        let reservation = match (period, slice, extra) {
            (None, None, None) => None,
            (None, None, Some(_)) => {
                let reason = "has no effect without slice and period; give all three, or leave it out";
                let span = table.get("extra").map(Spanned::span);
                return Err(self.error(span, table.path("extra"), reason.to_owned()));
            }
            _ => Some(ReservedTime {
                period: period.unwrap_or(0),
                slice: slice.unwrap_or(0),
                extra: extra.unwrap_or(true),
            }),
        };
        Ok(Contract { weight, cap, warp, warp_limit, reservation })
    }

    fn domains(&mut self, root: &Table<'_>) -> Result<Vec<DomainText>, SourceError> {
        let Some(value) = root.get("domain") else {
            let reason = "there is none; describe each guest under a line [[domain]]";
            return Err(self.error(None, "domain".to_owned(), reason.to_owned()));
        };
        let DeValue::Array(domains) = value.get_ref() else {
            let reason = "not a list; begin each guest's description with [[domain]], in double brackets";
            return Err(self.error(Some(value.span()), "domain".to_owned(), reason.to_owned()));
        };
        domains.iter().enumerate().map(|(index, value)| self.domain(index, value)).collect()
    }

    fn domain(&mut self, index: usize, value: &Spanned<DeValue<'_>>) -> Result<DomainText, SourceError> {
        let table = self.table(value, Field::WholeDomain(index).to_string())?;
        self.known_keys(&table, &DOMAIN_KEYS)?;
        let at = |name| Field::Domain(index, name);
        let name = self.string(&table, "name", at("name"))?;
        let name = self.required(name, &table, "name", "\"linux\"")?;
        let memory = self.size(&table, "memory", at("memory"))?;
        let memory = self.required(memory, &table, "memory", "\"512M\"")?;
        let private = self.size(&table, "private", at("private"))?.unwrap_or(0);
        let vcpus = self.number(&table, "vcpus", at("vcpus"))?.unwrap_or(1);
        let tsc_khz = self.number(&table, "tsc_khz", at("tsc_khz"))?;
        let kernel = self.string(&table, "kernel", at("kernel"))?;
        let kernel = self.required(kernel, &table, "kernel", "\"@linux\"")?;
        let loader = self.word(&table, "loader", at("loader"), LoaderKind::WORDS, LoaderKind::from_word)?;
        let console = self.word(&table, "console", at("console"), Console::WORDS, Console::from_word)?;
        let mut action = |key: &'static str, default| {
            let word = self.word(&table, key, at(key), OnExitAction::WORDS, OnExitAction::from_word)?;
            Ok(word.unwrap_or(default))
        };
        let default = OnExit::default();
        let on_exit = OnExit {
            poweroff: action("on_poweroff", default.poweroff)?,
            reboot: action("on_reboot", default.reboot)?,
            crash: action("on_crash", default.crash)?,
        };
        Ok(DomainText {
            name,
            memory,
            private,
            vcpus,
            tsc_khz,
            loader: loader.unwrap_or(LoaderKind::Auto),
            kernel,
            modules: self.modules(&table, index)?,
            cmdline: self.string(&table, "cmdline", at("cmdline"))?.unwrap_or_default(),
            console: console.unwrap_or(Console::Serial),
            devices: self.functions(&table, at("devices"))?,
            entropy: self.own_entropy(&table, at("entropy"))?,
            privileges: self.privileges(&table, at("privileges"))?,
            virtio_devices: self.virtio_devices(&table, index)?,
            on_exit,
            max_restarts: self.restarts(&table, at("max_restarts"))?,
            pool: self.string(&table, "pool", at("pool"))?.unwrap_or_else(|| DEFAULT_POOL.to_owned()),
            cpus: self.cpus(&table, at("cpus"), "cpus")?,
            prefer: self.cpus(&table, at("prefer"), "prefer")?,
            contract: self.contract(&table, index)?,
        })
    }

    fn modules(&mut self, table: &Table<'_>, domain: usize) -> Result<Vec<ModuleText>, SourceError> {
        let (key, value) = match (table.get("initrd"), table.get("modules")) {
            (Some(_), Some(modules)) => {
                let reason = "initrd is there too; keep initrd for Linux or modules for other kernels";
                return Err(self.error(Some(modules.span()), table.path("modules"), reason.to_owned()));
            }
            (Some(initrd), None) => ("initrd", initrd),
            (None, Some(modules)) => ("modules", modules),
            (None, None) => return Ok(Vec::new()),
        };
        match value.get_ref() {
            DeValue::Array(files) => files
                .iter()
                .enumerate()
                .map(|(index, file)| {
                    let path = format!("{}[{index}]", table.path(key));
                    self.module(file, path, domain, index, key == "modules")
                })
                .collect(),
            DeValue::String(_) if key == "initrd" => {
                Ok(alloc::vec![self.module(value, table.path(key), domain, 0, false)?])
            }
            _ => {
                let what = format!("is not a list of files; write e.g. {key} = [\"first.bin\"]");
                Err(self.wrong(value, table.path(key), &what))
            }
        }
    }

    fn module(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        path: String,
        domain: usize,
        index: usize,
        may_be_table: bool,
    ) -> Result<ModuleText, SourceError> {
        let at = |name| Field::Module(domain, index, name);
        match value.get_ref() {
            DeValue::String(file) => {
                self.remember(at("file"), &value.span());
                Ok(ModuleText { file: file.clone().into_owned(), cmdline: String::new() })
            }
            DeValue::Table(_) if may_be_table => {
                let table = self.table(value, path)?;
                self.known_keys(&table, &["file", "cmdline"])?;
                let file = self.string(&table, "file", at("file"))?;
                let file = self.required(file, &table, "file", "\"first.bin\"")?;
                let cmdline = self.string(&table, "cmdline", at("cmdline"))?.unwrap_or_default();
                Ok(ModuleText { file, cmdline })
            }
            _ => Err(self.wrong(value, path, "is not a file's name; write a path or @name in quotes")),
        }
    }

    fn table<'v>(&self, value: &'v Spanned<DeValue<'v>>, path: String) -> Result<Table<'v>, SourceError> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(Table { path, table, span: value.span() }),
            _ => Err(self.wrong(value, path, "is not a table of settings; write key = value lines")),
        }
    }

    fn known_keys(&self, table: &Table<'_>, known: &[&str]) -> Result<(), SourceError> {
        let mut unknown: Vec<_> =
            table.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())).collect();
        unknown.sort_by_key(|key| key.span().start);
        let Some(key) = unknown.first() else { return Ok(()) };
        let name = key.get_ref();
        let shown = if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            table.path(name)
        } else {
            table.path(&format!("{name:?}"))
        };
        let reason = format!("there is no such setting; use one of {}", known.join(", "));
        Err(self.error(Some(key.span()), shown, reason))
    }

    fn required<T>(
        &self,
        value: Option<T>,
        table: &Table<'_>,
        key: &str,
        example: &str,
    ) -> Result<T, SourceError> {
        value.ok_or_else(|| {
            let reason = format!("missing; write e.g. {key} = {example}");
            self.error(Some(table.span.clone()), table.path(key), reason)
        })
    }

    fn string(&mut self, table: &Table<'_>, key: &str, field: Field) -> Result<Option<String>, SourceError> {
        let Some(value) = table.get(key) else { return Ok(None) };
        self.remember(field, &value.span());
        match value.get_ref() {
            DeValue::String(text) => Ok(Some(text.clone().into_owned())),
            _ => Err(self.wrong(value, table.path(key), "is not text; put it in quotes")),
        }
    }

    fn size(&mut self, table: &Table<'_>, key: &str, field: Field) -> Result<Option<u64>, SourceError> {
        let Some(value) = table.get(key) else { return Ok(None) };
        self.remember(field, &value.span());
        let size = match value.get_ref() {
            DeValue::String(text) => parse_size(text),
            _ => None,
        };
        size.map(Some).ok_or_else(|| self.wrong(value, table.path(key), "is not a size; write e.g. \"512M\""))
    }

    fn time(&mut self, table: &Table<'_>, key: &str, field: Field) -> Result<Option<u32>, SourceError> {
        let Some(value) = table.get(key) else { return Ok(None) };
        self.remember(field, &value.span());
        let time = match value.get_ref() {
            // One of nothing would count as not given.
            DeValue::String(text) => parse_time(text).filter(|&micros| micros != 0),
            _ => None,
        };
        time.map(Some).ok_or_else(|| self.wrong(value, table.path(key), "is not a time; write e.g. \"10ms\""))
    }

    fn flag(&mut self, table: &Table<'_>, key: &str, field: Field) -> Result<Option<bool>, SourceError> {
        let Some(value) = table.get(key) else { return Ok(None) };
        self.remember(field, &value.span());
        match value.get_ref() {
            DeValue::Boolean(flag) => Ok(Some(*flag)),
            _ => Err(self.wrong(value, table.path(key), "is neither; write true or false")),
        }
    }

    /// A list of CPUs as text, empty where there is none.
    fn cpus(&mut self, table: &Table<'_>, field: Field, key: &str) -> Result<String, SourceError> {
        let Some(value) = table.get(key) else { return Ok(String::new()) };
        self.remember(field, &value.span());
        match value.get_ref() {
            DeValue::String(text) if !text.is_empty() => Ok(text.clone().into_owned()),
            _ => Err(self.wrong(value, table.path(key), "is not a list of CPUs; write e.g. \"0-3,6\"")),
        }
    }

    fn number(&mut self, table: &Table<'_>, key: &str, field: Field) -> Result<Option<u32>, SourceError> {
        let Some(value) = table.get(key) else { return Ok(None) };
        self.remember(field, &value.span());
        let number = match value.get_ref() {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        number
            .map(Some)
            .ok_or_else(|| self.wrong(value, table.path(key), "is not a number from 0 up; write e.g. 1"))
    }

    fn restarts(&mut self, table: &Table<'_>, field: Field) -> Result<Option<u32>, SourceError> {
        let key = "max_restarts";
        match self.number(table, key, field)? {
            // The blob's code for "no limit".
            Some(u32::MAX) => {
                let reason = "too many to count; leave the line out for no limit".to_owned();
                Err(self.error(table.get(key).map(Spanned::span), table.path(key), reason))
            }
            limit => Ok(limit),
        }
    }

    fn word<T>(
        &mut self,
        table: &Table<'_>,
        key: &str,
        field: Field,
        words: &[&str],
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, SourceError> {
        let Some(value) = table.get(key) else { return Ok(None) };
        self.remember(field, &value.span());
        let choice = match value.get_ref() {
            DeValue::String(text) => parse(text),
            _ => None,
        };
        choice.map(Some).ok_or_else(|| {
            let what = format!("is no choice; write one of \"{}\"", words.join("\", \""));
            self.wrong(value, table.path(key), &what)
        })
    }

    fn remember(&mut self, field: Field, span: &Range<usize>) {
        let position = self.position(span.start);
        self.positions.insert(field, position);
    }

    fn position(&self, offset: usize) -> Position {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Position {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
        }
    }

    /// An error about a value, which is quoted as the text has it, up to some length and the end of its line.
    fn wrong(&self, value: &Spanned<DeValue<'_>>, field: String, what: &str) -> SourceError {
        const LONGEST: usize = 60;
        let source = self.text.get(value.span()).unwrap_or_default();
        let line = source.lines().next().unwrap_or_default();
        let mut quoted: String = line.chars().take(LONGEST).filter(|c| !c.is_control()).collect();
        if quoted.len() < source.len() {
            quoted.push_str("...");
        }
        self.error(Some(value.span()), field, format!("{quoted} {what}"))
    }

    fn syntax(&self, error: &toml::de::Error) -> SourceError {
        let message = error.message().lines().next().unwrap_or_default();
        self.error(error.span(), String::new(), format!("not TOML: {message}; correct this line"))
    }

    fn error(&self, span: Option<Range<usize>>, field: String, reason: String) -> SourceError {
        let position = span.map(|span| self.position(span.start));
        SourceError { file: self.file.to_owned(), position, field, reason }
    }
}
