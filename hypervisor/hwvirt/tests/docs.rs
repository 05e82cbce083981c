//! The table of raw exits in `docs/exits.md` is what the decoder does.

#![allow(clippy::expect_used)]

use std::collections::BTreeMap;

use caisson_hwvirt::svm::{RawExit, decode};
use caisson_x86::svm::{ExitCode, SvmFeatures};

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

#[test]
fn every_neutral_exit_has_an_answer() {
    let answers = EXITS.split_once("## Neutral exit to answer").expect("the heading").1;
    let answers = answers.split_once("\n### ").expect("the next heading").0;
    for name in table().values().chain([&"Unknown"]) {
        assert!(answers.contains(&format!("`{name}`")), "{name} has no row");
    }
}
