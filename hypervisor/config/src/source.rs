//! The TOML text that a person writes.
//!
//! ```toml
//! [machine]                 # optional
//! console = "all"           # whose console is shown after boot: a domain's name, "all", or "caisson" for the log
//! log = "info"              # off, error, warn, info, debug or trace
//!
//! [[domain]]                # one for each domain, started in this order
//! name = "linux"            # 1 to 31 of a-z 0-9 -
//! memory = "512M"           # K, M, G or T, of 1024; a multiple of 4K, at least 1M
//! vcpus = 1                 # default 1
//! loader = "auto"           # auto, linux, pvh or multiboot1; default auto
//! kernel = "@linux"         # a path from this file's folder, or @name for what xtask provides
//! initrd = "@initrd"        # one file, or a list of files that are joined; or, instead of initrd,
//! # modules = [{ file = "a.bin", cmdline = "a 1" }, "b.bin"]
//! cmdline = "console=ttyS0" # default empty
//! console = "serial"        # serial or none; default serial
//! on_poweroff = "destroy"   # destroy or restart; this is the default
//! on_reboot = "restart"
//! on_crash = "destroy"
//! max_restarts = 3          # default: no limit
//! ```
//!
//! Unless the text says otherwise, the machine shows the console of the only domain that has one, or else all.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{BlobError, Field, Reason};
use crate::rules::{self, DomainValues, MachineLimits};
use crate::settings::{Console, LoaderKind, LogLevel, OnExit, OnExitAction, SelectedConsole};

/// A configuration as the text gives it, checked as far as that is possible without its files.
///
/// The fields may be changed, for instance by options of a command line; [`ConfigText::check`] and
/// [`build`](crate::build()) check them again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigText {
    /// The file's name, for messages.
    pub file: String,
    /// Settings of the whole machine.
    pub machine: MachineText,
    /// The domains, in the order of their start.
    pub domains: Vec<DomainText>,
    positions: BTreeMap<Field, Position>,
}

/// The text's `[machine]` table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineText {
    /// `console`: a domain's name, `all` or `caisson`; `None` when not given.
    pub console: Option<String>,
    /// `log`.
    pub log_level: LogLevel,
}

/// One `[[domain]]` of the text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainText {
    /// `name`.
    pub name: String,
    /// `memory`, in bytes.
    pub memory: u64,
    /// `vcpus`.
    pub vcpus: u32,
    /// `loader`.
    pub loader: LoaderKind,
    /// `kernel`: a path or `@name`.
    pub kernel: String,
    /// `initrd` (without command lines) or `modules`.
    pub modules: Vec<ModuleText>,
    /// `cmdline`.
    pub cmdline: String,
    /// `console`.
    pub console: Console,
    /// `on_poweroff`, `on_reboot` and `on_crash`.
    pub on_exit: OnExit,
    /// `max_restarts`; `None` for no limit.
    pub max_restarts: Option<u32>,
}

/// One of a domain's `modules`, or one file of its `initrd`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleText {
    /// A path or `@name`.
    pub file: String,
    /// The module's command line.
    pub cmdline: String,
}

/// A place in the text, both counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

/// Why a text was refused. Displays as one line, `file:line:column: field: reason; what to do`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceError {
    /// The file's name.
    pub file: String,
    /// Where in the file, where that is known.
    pub position: Option<Position>,
    /// The field's path, such as `domain[1].memory`; empty where the text is not TOML.
    pub field: String,
    /// What is wrong and what to change.
    pub reason: String,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.reason)
    }
}

impl core::error::Error for SourceError {}

/// Reads and checks a configuration text. `file_name` is used in messages only.
///
/// # Errors
/// The first mistake in the text.
pub fn parse_toml(text: &str, file_name: &str) -> Result<ConfigText, SourceError> {
    let mut reader = Reader { text, file: file_name, positions: BTreeMap::new() };
    let table = DeTable::parse(text).map_err(|error| reader.syntax(&error))?;
    let root = Table { path: String::new(), table: table.get_ref(), span: 0..0 };
    reader.known_keys(&root, &["machine", "domain"])?;
    let machine = reader.machine(&root)?;
    let domains = reader.domains(&root)?;
    let config = ConfigText { file: file_name.to_owned(), machine, domains, positions: reader.positions };
    config.check()?;
    Ok(config)
}

impl ConfigText {
    /// Checks everything that can be checked without the files.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn check(&self) -> Result<(), SourceError> {
        self.try_check().map_err(|error| self.error(&error))?;
        self.selected_console().map(|_| ())
    }

    /// Checks that a machine can carry all domains at once.
    ///
    /// # Errors
    /// The first domain that is too much.
    pub fn check_machine(&self, limits: &MachineLimits) -> Result<(), SourceError> {
        limits
            .check(self.domains.iter().map(|domain| (domain.memory, domain.vcpus)))
            .map_err(|error| self.error(&error))
    }

    fn try_check(&self) -> Result<(), BlobError<'_>> {
        rules::check_count(self.domains.len(), 1, rules::MAX_DOMAINS)
            .map_err(|reason| BlobError::new(Field::Domains, reason))?;
        let mut modules = 0;
        for (index, domain) in self.domains.iter().enumerate() {
            let values = DomainValues {
                name: &domain.name,
                memory: domain.memory,
                vcpus: domain.vcpus,
                cmdline: &domain.cmdline,
            };
            rules::check_domain(index, &values)?;
            rules::check_reference(&domain.kernel)
                .map_err(|reason| BlobError::new(Field::Domain(index, "kernel"), reason))?;
            modules += domain.modules.len();
            rules::check_count(modules, 0, rules::MAX_MODULES)
                .map_err(|reason| BlobError::new(Field::Domain(index, "modules"), reason))?;
            for (number, module) in domain.modules.iter().enumerate() {
                rules::check_reference(&module.file)
                    .map_err(|reason| BlobError::new(Field::Module(index, number, "file"), reason))?;
                rules::check_text(&module.cmdline, rules::MAX_CMDLINE)
                    .map_err(|reason| BlobError::new(Field::Module(index, number, "cmdline"), reason))?;
            }
        }
        rules::check_unique(&self.domains.iter().map(|domain| domain.name.as_str()))
    }

    /// Whose console the machine shows after boot.
    pub(crate) fn selected_console(&self) -> Result<SelectedConsole, SourceError> {
        let field = Field::Machine("console");
        let serial = |domain: &DomainText| domain.console == Console::Serial;
        let Some(word) = self.machine.console.as_deref() else {
            let mut with_console = self.domains.iter().enumerate().filter(|(_, domain)| serial(domain));
            return Ok(match (with_console.next(), with_console.next()) {
                (Some((index, _)), None) => SelectedConsole::Domain(index),
                _ => SelectedConsole::All,
            });
        };
        match word {
            SelectedConsole::ALL_WORD => return Ok(SelectedConsole::All),
            SelectedConsole::LOG_WORD => return Ok(SelectedConsole::Log),
            _ => {}
        }
        match self.domains.iter().position(|domain| domain.name == word) {
            Some(index) if self.domains.get(index).is_some_and(serial) => Ok(SelectedConsole::Domain(index)),
            Some(index) => Err(self.error(&BlobError::new(field, Reason::NoConsole(index)))),
            None => Err(self.error_at(
                field,
                format!("{word:?} is no domain's name; write one, or \"all\", or \"caisson\" for the log"),
            )),
        }
    }

    /// Gives an error of the common rules its place in the text.
    pub(crate) fn error(&self, error: &BlobError<'_>) -> SourceError {
        self.error_at(error.field, error.reason.to_string())
    }

    pub(crate) fn error_at(&self, field: Field, reason: String) -> SourceError {
        SourceError {
            file: self.file.clone(),
            position: self.positions.get(&field).copied(),
            field: field.to_string(),
            reason,
        }
    }
}

/// The number of bytes that a size such as `512M` stands for: digits and one of `K`, `M`, `G`, `T` (powers of 1024,
/// either case, `iB` may follow).
///
/// ```
/// # use caisson_config::source::parse_size;
/// assert_eq!(parse_size("512M"), Some(512 << 20));
/// assert_eq!(parse_size("2GiB"), Some(2 << 30));
/// assert_eq!(parse_size("512"), None);
/// ```
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.strip_suffix("iB").unwrap_or(text);
    let unit = text.chars().last()?;
    let shift = match unit.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
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

const DOMAIN_KEYS: [&str; 13] = [
    "name",
    "memory",
    "vcpus",
    "loader",
    "kernel",
    "initrd",
    "modules",
    "cmdline",
    "console",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "max_restarts",
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
        let vcpus = self.number(&table, "vcpus", at("vcpus"))?.unwrap_or(1);
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
            vcpus,
            loader: loader.unwrap_or(LoaderKind::Auto),
            kernel,
            modules: self.modules(&table, index)?,
            cmdline: self.string(&table, "cmdline", at("cmdline"))?.unwrap_or_default(),
            console: console.unwrap_or(Console::Serial),
            on_exit,
            max_restarts: self.restarts(&table, at("max_restarts"))?,
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
