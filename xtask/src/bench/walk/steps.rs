//! A walk as a tree of functions, with the instructions of each.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use super::record::Walk;
use crate::elf::Loaded;

/// A function, as line tables name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    name: String,
    place: Place,
}

/// Where a function is written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In this file below the source tree.
    Ours(String),
    /// In a library.
    Library,
    /// In assembly, of which line tables tell nothing.
    Assembly,
}

impl Frame {
    /// Whether it is a step of its own; a library's function, or a closure, is its caller's.
    fn is_step(&self) -> bool {
        self.place != Place::Library && !self.name.starts_with('{')
    }
}

/// Reads what `addr2line -a -i -f -C` prints: for each address the functions there, the innermost first. `root` is the source
/// tree's.
pub(super) fn parse_frames(text: &str, root: &Path) -> BTreeMap<u64, Vec<Frame>> {
    let mut found: BTreeMap<u64, Vec<Frame>> = BTreeMap::new();
    // Addresses whose one function is told by its symbol: the file is then another's, that of the code in line.
    let mut by_symbol = Vec::new();
    let mut lines = text.lines();
    let mut address = 0;
    while let Some(line) = lines.next() {
        if let Some(number) = line.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok())
        {
            address = number;
            continue;
        }
        let file = lines.next().unwrap_or_default();
        let file = file.rsplit_once(':').map_or(file, |(file, _)| file);
        let place = match Path::new(file).strip_prefix(root) {
            Ok(file) => Place::Ours(file.to_string_lossy().into_owned()),
            Err(_) if file == "??" => Place::Assembly,
            Err(_) => Place::Library,
        };
        let frames = found.entry(address).or_default();
        if frames.is_empty() && without_generics(line).contains("::") {
            by_symbol.push(address);
        }
        frames.push(Frame { name: plain(line), place });
    }
    let homes: BTreeMap<String, Place> = found
        .iter()
        .filter(|(address, _)| !by_symbol.contains(address))
        .filter_map(|(_, frames)| frames.last().map(|frame| (frame.name.clone(), frame.place.clone())))
        .collect();
    for address in by_symbol {
        match found.get_mut(&address).map(Vec::as_mut_slice) {
            Some([frame]) => {
                if let Some(home) = homes.get(&frame.name) {
                    frame.place = home.clone();
                }
            }
            // What is in line there counts for its caller.
            Some([_, ..]) => _ = found.get_mut(&address).map(|frames| frames.remove(0)),
            _ => {}
        }
    }
    found
}

/// A name without what stands between angle brackets.
fn without_generics(name: &str) -> String {
    let mut depth = 0usize;
    let outside = |&letter: &char| {
        depth += usize::from(letter == '<');
        let outside = depth == 0;
        depth = depth.saturating_sub(usize::from(letter == '>'));
        outside
    };
    name.chars().filter(outside).collect()
}

/// A function's own name: without the path to it and what it is generic over.
fn plain(name: &str) -> String {
    let short = without_generics(name);
    short.rsplit("::").find(|part| !part.is_empty()).unwrap_or(name).to_owned()
}

/// A function on the way, at one time: what is called again later, or from elsewhere, is another.
#[derive(Debug)]
struct Node {
    frame: Frame,
    /// Instructions of its own.
    own: usize,
    /// The number of the last one of its own, or of what it called.
    last: usize,
    called: Vec<Node>,
}

/// A walk.
#[derive(Debug)]
pub(super) struct Tree {
    instructions: usize,
    roots: Vec<Node>,
}

/// The compiler mixes the instructions of functions that follow each other. Who appears again within so many is the same one.
const MIXED: usize = 40;

impl Tree {
    /// Of a walk in `image`, whose functions are `frames`.
    pub(super) fn of(walk: &Walk, image: &Loaded, frames: &BTreeMap<u64, Vec<Frame>>) -> Self {
        let mut tree = Self { instructions: walk.len(), roots: Vec::new() };
        // The functions that have called the one at work, each with where it is.
        let mut stack: Vec<(&Frame, u64)> = Vec::new();
        let mut returning = false;
        for (number, &address) in walk.iter().enumerate() {
            let Some(function) = frames.get(&address).and_then(|frames| frames.last()) else { continue };
            match stack.iter().rposition(|(known, _)| *known == function) {
                Some(at) if returning || at + 1 == stack.len() => stack.truncate(at),
                _ if returning => stack.clear(),
                _ => {}
            }
            stack.push((function, address));
            returning = returns(image.at(address).unwrap_or_default());
            let outer_first = |&(_, address): &(&Frame, u64)| frames[&address].iter().rev();
            let path: Vec<&Frame> =
                stack.iter().flat_map(outer_first).filter(|frame| frame.is_step()).collect();
            count(&mut tree.roots, &path, number);
        }
        tree
    }

    /// The tree as lines: instructions, function, file. A function that is too short to be worth a line counts for its caller.
    pub(super) fn show(mut self, title: &str) -> String {
        let least = (self.instructions / 100).max(4);
        self.roots.iter_mut().for_each(|node| node.fold(least));
        let mut lines = format!("{title}: {} instructions\n", self.instructions);
        self.roots.iter().for_each(|node| node.lines(0, &mut lines));
        lines
    }
}

/// Whether an instruction that begins with `bytes` returns: RET, IRETQ.
fn returns(bytes: &[u8]) -> bool {
    matches!(bytes, [0xc3 | 0xc2, ..] | [0xf3, 0xc3, ..] | [0x48, 0xcf, ..])
}

/// Counts an instruction for the function at the end of `path`.
fn count(nodes: &mut Vec<Node>, path: &[&Frame], number: usize) {
    let [first, rest @ ..] = path else { return };
    let known = nodes.iter().rposition(|node| node.frame == **first && number - node.last <= MIXED);
    let at = known.unwrap_or_else(|| {
        nodes.push(Node { frame: (*first).clone(), own: 0, last: number, called: Vec::new() });
        nodes.len() - 1
    });
    let Some(node) = nodes.get_mut(at) else { return };
    node.last = number;
    if rest.is_empty() {
        node.own += 1;
    } else {
        count(&mut node.called, rest, number);
    }
}

impl Node {
    fn all(&self) -> usize {
        self.own + self.called.iter().map(Self::all).sum::<usize>()
    }

    /// Takes over the instructions of those it called that have fewer than `least`.
    fn fold(&mut self, least: usize) {
        let called = std::mem::take(&mut self.called);
        for mut node in called {
            node.fold(least);
            if node.own < least && node.called.len() == 1 {
                // It only leads to another.
                let own = node.own;
                node = node.called.remove(0);
                node.own += own;
            }
            match self.called.last_mut() {
                _ if node.all() < least => self.own += node.all(),
                // Nothing is left between the two.
                Some(before) if before.frame == node.frame => {
                    before.own += node.own;
                    before.called.append(&mut node.called);
                }
                _ => self.called.push(node),
            }
        }
    }

    fn lines(&self, depth: usize, lines: &mut String) {
        let Frame { name, place } = &self.frame;
        let file = match place {
            Place::Ours(file) => file.replace("/src/", "/"),
            Place::Assembly | Place::Library => "assembly".to_owned(),
        };
        let name = format!("{:indent$}{name}", "", indent = 2 * depth);
        let file = file.strip_prefix("hypervisor/").unwrap_or(&file);
        let _ = writeln!(lines, "{:>6}  {name:<44} {file}", self.own);
        self.called.iter().for_each(|node| node.lines(depth + 1, lines));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "\
0x0000000000001000
enter
/tree/hypervisor/svm/src/run.rs:10
run_vcpu<caisson_svm::enable::Svm, X>
/tree/hypervisor/core/src/run.rs:20 (discriminator 3)
0x0000000000001004
caisson::scheduler::run_vcpu
/tree/hypervisor/x86/src/vmcb.rs:5
0x0000000000001008
caisson::scheduler::run_vcpu
/tree/hypervisor/x86/src/vmcb.rs:5
enter
/tree/hypervisor/svm/src/run.rs:11
run_vcpu<caisson_svm::enable::Svm, X>
/tree/hypervisor/core/src/run.rs:20
0x0000000000002000
read<u64>
/rustc/1/library/core/src/ptr/mod.rs:3
caisson_emulate::length::<impl A::B<C>>::plain
/tree/hypervisor/emulate/src/length.rs:7
0x0000000000003000
trap_common
??:0
";

    fn frames() -> BTreeMap<u64, Vec<Frame>> {
        parse_frames(TOLD, Path::new("/tree"))
    }

    #[test]
    fn functions_have_their_own_names_and_files() {
        let frames = frames();
        let names =
            |address: u64| frames[&address].iter().map(|frame| frame.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names(0x1000), ["enter", "run_vcpu"]);
        assert_eq!(names(0x1008), ["enter", "run_vcpu"]);
        assert_eq!(names(0x2000), ["read", "plain"]);
        // Told by its symbol, it is where the same function is that line tables tell.
        assert_eq!(frames[&0x1004][0].place, Place::Ours("hypervisor/core/src/run.rs".to_owned()));
        assert_eq!(frames[&0x2000][0].place, Place::Library);
        assert_eq!(frames[&0x3000][0].place, Place::Assembly);
        assert_eq!(plain("<A as B>::run"), "run");
        assert_eq!(plain("{closure#0}<X>"), "{closure#0}");
    }

    /// An image in which the instruction at 0x2008 returns, and no other.
    fn image() -> Loaded {
        let mut image = vec![0u8; 0x2100];
        let header: [u64; 8] =
            [0x0001_0102_464c_457f, 0, 0, 0, 64, 0, 0x0038_0040_0000_0000, 0x0000_0000_0000_0001];
        let segment: [u64; 7] = [1 | 5 << 32, 0x78, 0x1000, 0x1000, 0x2000, 0x2000, 0x1000];
        for (place, word) in image.chunks_exact_mut(8).zip(header.into_iter().chain(segment)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        image[0x78 + 0x1008] = 0xc3;
        Loaded::new(image)
    }

    #[test]
    fn calls_make_a_tree_and_what_comes_again_later_is_told_again() {
        let mut frames = frames();
        frames.insert(0x2008, frames[&0x2000].clone());
        let mut walk = vec![0x1000; 10];
        walk.extend([0x1004; 5]);
        // A call, a return, and the beginning once more.
        walk.extend([0x2000; 50]);
        walk.push(0x2008);
        walk.extend([0x1004; 4]);
        walk.extend([0x1000; 6]);
        walk.extend([0x3000; 8]);
        let text = Tree::of(&walk, &image(), &frames).show("it");
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let expected = [
            "it: 84 instructions",
            "9 run_vcpu core/run.rs",
            "10 enter svm/run.rs",
            "51 plain emulate/length.rs",
            "6 enter svm/run.rs",
            "8 trap_common assembly",
        ];
        assert_eq!(rows, expected.map(|row| row.split(' ').collect::<Vec<_>>()));
        let depth =
            |line: usize| text.lines().nth(line).unwrap()[8..].chars().take_while(|c| *c == ' ').count();
        assert_eq!((1..6).map(depth).collect::<Vec<_>>(), [0, 2, 2, 2, 4]);
    }

    #[test]
    fn short_functions_count_for_their_callers() {
        let frames = frames();
        let walk = [vec![0x1004; 20], vec![0x1000; 3]].concat();
        let text = Tree::of(&walk, &image(), &frames).show("it");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.lines().nth(1).is_some_and(|line| line.trim_start().starts_with("23  run_vcpu")),
            "{text}"
        );
    }
}
