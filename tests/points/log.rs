//! What the gate wrote down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One point.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) number: u64,
    pub(crate) who: String,
    pub(crate) kind: String,
    pub(crate) path: PathBuf,
    /// Where a rename leads, or what a link says.
    pub(crate) to: PathBuf,
    pub(crate) truncates: bool,
    pub(crate) mode: u32,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) bytes: Vec<u8>,
}

/// Reads a log, in the order of the points.
pub(crate) fn read(gate: &Path) -> Vec<Point> {
    let text = fs_err::read_to_string(gate.join("log")).unwrap_or_default();
    let mut points: Vec<Point> = text.lines().map(|line| point(&serde_json::from_str(line).expect("a line of the gate"))).collect();
    points.sort_by_key(|point| point.number);
    points
}

fn point(line: &Value) -> Point {
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| line[name].as_u64().unwrap_or(0);
    let hex = text("bytes");
    let digits: Vec<u8> = hex.bytes().filter_map(|byte| char::from(byte).to_digit(16)).map(|digit| digit as u8).collect();
    Point {
        number: number("n"),
        who: text("who"),
        kind: text("kind"),
        path: text("path").into(),
        to: text("to").into(),
        truncates: line["truncates"] == true,
        mode: number("mode") as u32,
        offset: number("offset") as usize,
        len: number("len") as usize,
        bytes: digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect(),
    }
}

/// How many points there are, by kind and by process, as a line for people.
pub(crate) fn counts(points: &[Point]) -> String {
    let mut by: BTreeMap<(u8, &str), usize> = BTreeMap::new();
    for point in points {
        *by.entry((0, &point.kind)).or_default() += 1;
        *by.entry((1, &point.who)).or_default() += 1;
    }
    let each = |which: u8| by.iter().filter(|((of, _), _)| *of == which).map(|((_, name), n)| format!("{n} {name}")).collect::<Vec<_>>();
    format!("{} points: {}; by process: {}", points.len(), each(0).join(", "), each(1).join(", "))
}
