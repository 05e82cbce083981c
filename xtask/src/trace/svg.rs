//! A trace as a small picture: a bar for each physical CPU with who runs on it, a bar for each vCPU with what it does, and
//! below that its exits. Every bar is a row of columns with what took most of each, so that the picture's size does not
//! depend on the trace's.

use std::{collections::BTreeMap, fmt::Write as _};

use caisson_trace::Trace;
use caisson_types::DomainId;

use super::perfetto::{domain_name, vcpu_name};
use super::timeline::{Span, State, Timeline, Work};

/// Columns of a bar, each a pixel wide.
const COLUMNS: usize = 720;
const LEFT: usize = 124;
const WIDTH: usize = LEFT + COLUMNS + 32;
/// Height of a bar, of the exits below a vCPU's, and of what is left free below each.
const BAR: usize = 16;
const EXITS: usize = 6;
const GAP: usize = 8;
/// The most vCPUs that are drawn.
const MOST: usize = 24;

/// Domains in turn: fills that can be told apart, on white and on black.
const DOMAINS: [&str; 6] = ["#4f8ff7", "#2da44e", "#d4881c", "#a371f7", "#e5534b", "#39a0a8"];

const STYLE: &str = "<style>
    text { font-family: system-ui, \"Segoe UI\", Helvetica, Arial, sans-serif; fill: #1f2328; font-size: 12px; }
    .small { font-size: 11px; fill: #57606a; }
    .end { text-anchor: end; }
    .mid { text-anchor: middle; }
    .rail { fill: #f0f2f4; }
    .idle { fill: #d0d7de; }
    .ready { fill: #e5534b; }
    .blocked { fill: #d0d7de; }
    .exit { fill: #57606a; }
    .axis { stroke: #8c959f; stroke-width: 1; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .small { fill: #9aa4ae; }
      .rail { fill: #1c2128; }
      .idle, .blocked { fill: #3d444d; }
      .exit { fill: #9aa4ae; }
    }
  </style>";

/// What a column shows: an entry of the picture's legend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Paint {
    Domain(DomainId),
    Idle,
    Ready,
    Blocked,
    /// Exits: how much of the column, in quarters.
    Exit(u8),
}

/// What covers most of each column of a window, `None` where nothing does.
fn columns(window: Span, spans: impl Iterator<Item = (Span, Paint)>) -> Vec<BTreeMap<Paint, u64>> {
    let mut columns = vec![BTreeMap::new(); COLUMNS];
    let edge = |column: usize| {
        let offset = u128::from(window.len()) * column as u128 / COLUMNS as u128;
        window.from + u64::try_from(offset).unwrap_or(u64::MAX)
    };
    for (span, paint) in spans {
        let Some(span) = span.cut(window) else { continue };
        let at = u128::from(span.from - window.from) * COLUMNS as u128 / u128::from(window.len().max(1));
        // The division may have rounded into the column before.
        let first = usize::try_from(at).unwrap_or(0).saturating_sub(1);
        for (index, column) in columns.iter_mut().enumerate().skip(first) {
            let here = Span { from: edge(index), to: edge(index + 1) };
            if here.from >= span.to {
                break;
            }
            if let Some(part) = span.cut(here) {
                *column.entry(paint).or_insert(0) += part.len();
            }
        }
    }
    columns
}

struct Picture<'a> {
    trace: &'a Trace,
    window: Span,
    body: String,
    y: usize,
}

impl Picture<'_> {
    /// Text of a name or the like.
    fn text(&mut self, x: usize, y: usize, class: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        let _ = writeln!(self.body, "  <text x=\"{x}\" y=\"{y}\" class=\"{class}\">{text}</text>");
    }

    fn rect(&mut self, x: usize, width: usize, height: usize, paint: Paint) {
        let y = self.y;
        let place = format!("x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"");
        let _ = match paint {
            Paint::Domain(id) => writeln!(self.body, "  <rect {place} fill=\"{}\"/>", colour(self.trace, id)),
            Paint::Idle => writeln!(self.body, "  <rect {place} class=\"idle\"/>"),
            Paint::Ready => writeln!(self.body, "  <rect {place} class=\"ready\"/>"),
            // Thin: it does nothing.
            Paint::Blocked => {
                let y = y + height / 2 - 1;
                writeln!(
                    self.body,
                    "  <rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"2\" class=\"blocked\"/>"
                )
            }
            Paint::Exit(quarters) => {
                writeln!(
                    self.body,
                    "  <rect {place} class=\"exit\" opacity=\"{}\"/>",
                    f32::from(quarters) / 4.0
                )
            }
        };
    }

    /// A bar: columns that show the same are one rectangle.
    fn bar(&mut self, height: usize, shown: &[Option<Paint>]) {
        let y = self.y;
        let _ = writeln!(
            self.body,
            "  <rect x=\"{LEFT}\" y=\"{y}\" width=\"{COLUMNS}\" height=\"{height}\" class=\"rail\"/>"
        );
        let mut at = 0;
        for run in shown.chunk_by(|a, b| a == b) {
            if let Some(Some(paint)) = run.first() {
                self.rect(LEFT + at, run.len(), height, *paint);
            }
            at += run.len();
        }
    }

    fn row(&mut self, label: &str, spans: impl Iterator<Item = (Span, Paint)>) {
        let columns = columns(self.window, spans);
        let most = |column: &BTreeMap<Paint, u64>| {
            column.iter().max_by_key(|(_, part)| **part).map(|(paint, _)| *paint)
        };
        let shown: Vec<Option<Paint>> = columns.iter().map(most).collect();
        let label: String = label.chars().take(18).collect();
        self.text(LEFT - 8, self.y + BAR - 4, "end", &label);
        self.bar(BAR, &shown);
        self.y += BAR;
    }

    /// The exits of a vCPU: the darker, the more of the time.
    fn exits(&mut self, spans: impl Iterator<Item = Span>) {
        let columns = columns(self.window, spans.map(|span| (span, Paint::Exit(4))));
        let width = (self.window.len() / COLUMNS as u64).max(1);
        let quarters = |part: u64| (u128::from(part) * 4).div_ceil(u128::from(width)).min(4) as u8;
        let shown: Vec<Option<Paint>> = columns
            .iter()
            .map(|column| column.values().next().map(|part| Paint::Exit(quarters(*part).max(1))))
            .collect();
        self.y += 1;
        self.bar(EXITS, &shown);
        self.y += EXITS + GAP;
    }

    /// The axis: a line with a mark at each round time.
    fn axis(&mut self) {
        let y = self.y + 4;
        let _ = writeln!(
            self.body,
            "  <path d=\"M{LEFT} {y}H{}\" class=\"axis\" fill=\"none\"/>",
            LEFT + COLUMNS
        );
        let step = round_step(self.window.len());
        let mut next = self.window.from.checked_next_multiple_of(step);
        while let Some(at) = next.filter(|at| *at <= self.window.to) {
            let offset =
                u128::from(at - self.window.from) * COLUMNS as u128 / u128::from(self.window.len().max(1));
            let x = LEFT + usize::try_from(offset).unwrap_or(0);
            let _ = writeln!(self.body, "  <path d=\"M{x} {y}v5\" class=\"axis\"/>");
            self.text(x, y + 17, "small mid", &shown_time(at, step));
            next = at.checked_add(step);
        }
        self.y += 32;
    }

    fn legend(&mut self, domains: &[DomainId]) {
        let mut x = LEFT;
        let mut entries: Vec<(Paint, String)> =
            domains.iter().map(|id| (Paint::Domain(*id), domain_name(self.trace, *id))).collect();
        entries.extend([
            (Paint::Ready, "ready, no CPU".to_owned()),
            (Paint::Blocked, "blocked".to_owned()),
            (Paint::Idle, "idle CPU".to_owned()),
            (Paint::Exit(3), "exits".to_owned()),
        ]);
        for (paint, name) in entries {
            let width = 18 + name.chars().count() * 7 + 14;
            if x + width > WIDTH {
                x = LEFT;
                self.y += 18;
            }
            self.rect(x, 12, 12, paint);
            self.text(x + 18, self.y + 10, "small", &name);
            x += width;
        }
        self.y += 22;
    }
}

fn colour(trace: &Trace, id: DomainId) -> &'static str {
    let place = trace.domains.iter().position(|domain| domain.id == id).unwrap_or(usize::from(id.0));
    DOMAINS[place % DOMAINS.len()]
}

/// A step of 1, 2 or 5 times a power of ten, of which some five to twelve fit.
fn round_step(length: u64) -> u64 {
    let mut power = 1u64;
    loop {
        for step in [power, 2 * power, 5 * power] {
            if length / step <= 10 {
                return step;
            }
        }
        power = match power.checked_mul(10) {
            Some(power) if power <= u64::MAX / 5 => power,
            _ => return u64::MAX,
        };
    }
}

/// A time in the unit that fits the step.
fn shown_time(ns: u64, step: u64) -> String {
    let (unit, name) = match step {
        1_000_000_000.. => (1_000_000_000, "s"),
        1_000_000.. => (1_000_000, "ms"),
        1_000.. => (1_000, "µs"),
        _ => (1, "ns"),
    };
    format!("{} {name}", ns / unit)
}

/// The picture of a part of a trace.
#[must_use]
pub fn draw(trace: &Trace, timeline: &Timeline, window: Span) -> String {
    let mut picture = Picture { trace, window, body: String::new(), y: 12 };
    for (index, track) in timeline.cpus.iter().enumerate() {
        let paint = |work: &Work| match work {
            Work::Vcpu(vcpu) => Paint::Domain(vcpu.domain),
            Work::Idle => Paint::Idle,
        };
        picture.row(&format!("CPU {index}"), track.work.iter().map(|(span, work)| (*span, paint(work))));
        picture.y += GAP;
    }
    for (vcpu, track) in timeline.vcpus.iter().take(MOST) {
        let paint = |state: &State| match state {
            State::Running(_) => Paint::Domain(vcpu.domain),
            State::Ready => Paint::Ready,
            State::Blocked => Paint::Blocked,
        };
        let states = track.states.iter().map(|(span, state)| (*span, paint(state)));
        picture.row(&vcpu_name(trace, *vcpu), states);
        picture.exits(track.exits.iter().map(|exit| exit.span));
    }
    picture.axis();
    let mut domains: Vec<DomainId> = timeline.vcpus.keys().take(MOST).map(|vcpu| vcpu.domain).collect();
    domains.dedup();
    picture.legend(&domains);
    let (body, height) = (picture.body, picture.y);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"title\">\n  <title id=\"title\">What CPUs and vCPUs do over time</title>\n  {STYLE}\n{body}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::timeline::tests::{example, trace};
    use super::*;

    #[test]
    fn a_picture_has_a_bar_for_each_and_stays_small() {
        let mut trace = example();
        trace.domains[1].name = "blue & <co>".to_owned();
        let timeline = Timeline::of(&trace);
        let svg = draw(&trace, &timeline, Span { from: 0, to: timeline.end });
        for text in ["CPU 0", "CPU 1", ">red<", ">blue &amp; &lt;co&gt;<", ">4000 ns<", "class=\"ready\""] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.len() < 10_000);
    }

    #[test]
    fn columns_add_up() {
        let window = Span { from: 1000, to: 1000 + COLUMNS as u64 * 10 + 3 };
        let spans =
            [(Span { from: 0, to: 2000 }, Paint::Idle), (Span { from: 2000, to: 90_000 }, Paint::Ready)];
        let columns = columns(window, spans.into_iter());
        let all: u64 = columns.iter().flat_map(|column| column.values()).sum();
        assert_eq!(all, window.len());
        assert!(columns.iter().all(|column| !column.is_empty()));
    }

    #[test]
    fn an_empty_trace_is_an_empty_picture() {
        let trace = trace(&[]);
        let svg = draw(&trace, &Timeline::of(&trace), Span { from: 0, to: 0 });
        assert!(svg.contains("CPU 1"));
    }

    #[test]
    fn marks_are_round_times() {
        assert_eq!([9, 1_000, 48_000_000, 1_500_000_000].map(round_step), [1, 100, 5_000_000, 200_000_000]);
        assert_eq!(round_step(u64::MAX), 2_000_000_000_000_000_000);
        assert_eq!(shown_time(15_000_000, 5_000_000), "15 ms");
    }
}
