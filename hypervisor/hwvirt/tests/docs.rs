//! The tables of raw exits in `docs/exits.md` are what the decoders do.

#![allow(clippy::expect_used)]

use std::collections::BTreeMap;

use caisson_hwvirt::svm::{RawExit, decode};
use caisson_hwvirt::vmx::{self, ExitFields};
use caisson_x86::svm::{ExitCode, SvmFeatures};
use caisson_x86::vmx::{EventInfo, ExitReason};

const EXITS: &str = include_str!("../../../docs/exits.md");
const HEADING: &str = "## AMD-V: raw exit to neutral exit";

/// The rows' first and third cell: `0x20-0x3f`, or `0x7c/1` for a code with its EXITINFO1, and the exit's name.
fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    let section = EXITS.split_once(HEADING).expect("the heading").1;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    section.lines().filter(|line| line.starts_with("| 0x")).map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        (cells[1], cells[3].trim_matches('`'))
    })
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a hexadecimal number")
}

/// The names by exit code and EXITINFO1.
fn table() -> BTreeMap<(u64, u64), &'static str> {
    let mut table = BTreeMap::new();
    for (codes, name) in rows() {
        let (codes, info_1) = codes.split_once('/').map_or((codes, 0), |(codes, info)| (codes, number(info)));
        let (first, last) = codes.split_once('-').unwrap_or((codes, codes));
        for code in number(first)..=number(last) {
            assert_eq!(table.insert((code, info_1), name), None, "{code:#x} is listed twice");
        }
    }
    table
}

#[test]
fn the_table_of_raw_exits_is_the_decoder() {
    let table = table();
    for code in (0..0x1000).chain([u64::MAX - 1, u64::MAX]) {
        for info_1 in [0, 1] {
            let raw = RawExit { code: ExitCode(code), info_1, info_2: 0 };
            let exit = format!("{:?}", decode(raw, SvmFeatures::empty()));
            let name = exit.split([' ', '(']).next().unwrap_or_default();
            let expected = table.get(&(code, info_1)).or(table.get(&(code, 0))).unwrap_or(&"Unknown");
            assert_eq!(name, *expected, "exit code {code:#x}, EXITINFO1 {info_1:#x}");
        }
    }
}

/// An exit of VT-x with its reason, and its qualification or event.
struct VmxExit {
    reason: u32,
    detail: u64,
}

impl ExitFields for VmxExit {
    fn reason(&self) -> ExitReason {
        ExitReason(self.reason)
    }
    fn qualification(&self) -> u64 {
        self.detail
    }
    fn guest_physical(&self) -> u64 {
        0
    }
    fn event(&self) -> EventInfo {
        EventInfo(1 << 31 | self.detail as u32)
    }
    fn error_code(&self) -> u32 {
        0
    }
    fn string_io(&self) -> Option<u32> {
        None
    }
    fn next_rip(&self) -> u64 {
        0
    }
}

/// The rows of VT-x: reasons, qualification or event, and name.
fn vmx_rows() -> Vec<(std::ops::RangeInclusive<u32>, u64, &'static str)> {
    let section = EXITS.split_once("## VT-x: raw exit to neutral exit").expect("the heading").1;
    let section = section.split_once("\n##").map_or(section, |(section, _)| section);
    let row = |line: &'static str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let (reasons, detail) = cells[1].split_once('/').map_or((cells[1], 0), |(r, d)| (r, number(d)));
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(_) => number(text) as u32,
            None => text.parse().expect("a number"),
        };
        let (first, last) = reasons.split_once('-').unwrap_or((reasons, reasons));
        (number(first)..=number(last), detail, cells[3].trim_matches('`'))
    };
    section.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| reason")).map(row).collect()
}

#[test]
fn the_table_of_raw_exits_of_vt_x_is_the_decoder() {
    let name = |reason, detail| {
        let exit = format!("{:?}", vmx::decode(&VmxExit { reason, detail }));
        exit.split([' ', '(']).next().unwrap_or_default().to_owned()
    };
    let rows = vmx_rows();
    for (reasons, detail, expected) in &rows {
        for reason in reasons.clone() {
            assert_eq!(name(reason, *detail), *expected, "reason {reason}, {detail:#x}");
        }
    }
    for reason in (0..0x200).filter(|reason| !rows.iter().any(|(reasons, ..)| reasons.contains(reason))) {
        assert_eq!(name(reason, 0), "Unknown", "reason {reason}");
    }
}

#[test]
fn every_neutral_exit_has_an_answer() {
    let answers = EXITS.split_once("## Neutral exit to answer").expect("the heading").1;
    let answers = answers.split_once("\n### ").expect("the next heading").0;
    let vmx = vmx_rows();
    let names = table().into_values().chain(vmx.into_iter().map(|(_, _, name)| name)).chain(["Unknown"]);
    for name in names {
        assert!(answers.contains(&format!("`{name}`")), "{name} has no row");
    }
}
