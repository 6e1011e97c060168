//! How things look to a person: colour only where it is wanted, widths of a terminal, local time with its offset, ages, tables.
//!
//! Pure but for [`Look::of_stdout`] and [`now`]: what is drawn is tested as text.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use jiff::tz::TimeZone;
use selfstart_core::date::Timestamp;
use selfstart_core::time::WallTime;

/// Whether colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    /// Text alone.
    Plain,
    /// With colour codes.
    Colour,
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Nothing.
    Plain,
    /// A heading.
    Strong,
    /// Of little weight.
    Faint,
    /// As it should be.
    Good,
    /// On its way, or worth a look.
    Warn,
    /// A person must act.
    Bad,
}

impl Paint {
    /// Returns whether colour is wanted on stderr.
    pub(crate) fn of_stderr() -> Self {
        Self::wanted(std::io::stderr().is_terminal())
    }

    /// On a terminal that can, unless `NO_COLOR` (no-color.org) says no.
    fn wanted(terminal: bool) -> Self {
        let told_not = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let cannot = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if terminal && !told_not && !cannot { Self::Colour } else { Self::Plain }
    }

    /// Returns the text in its colour.
    pub(crate) fn on(self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Strong => "1",
            Style::Faint => "2",
            Style::Good => "32",
            Style::Warn => "33",
            Style::Bad => "1;31",
        };
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

/// Where and when something is shown.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// Colours or not.
    pub(crate) paint: Paint,
    /// Columns; `None`: not a terminal, nothing is cut.
    pub(crate) width: Option<usize>,
    /// Lines; `None`: not a terminal, or one that does not know.
    pub(crate) height: Option<usize>,
    /// A person looks on.
    pub(crate) terminal: bool,
    /// The reader's time zone.
    pub(crate) zone: TimeZone,
    /// The present.
    pub(crate) now: WallTime,
}

impl Look {
    /// Looks at stdout and the environment.
    pub(crate) fn of_stdout() -> Self {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        // A terminal that does not know its size says 0.
        let size = terminal.then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten();
        let known = |n: u16| (n > 0).then_some(usize::from(n));
        Self {
            paint: Paint::wanted(terminal),
            width: size.and_then(|size| known(size.ws_col)),
            height: size.and_then(|size| known(size.ws_row)),
            terminal,
            zone: crate::telling::stamp::zone(),
            now: now(),
        }
    }

    /// Returns `14:02:11+01:00`, with the date in front unless it is today.
    pub(crate) fn time(&self, at: Timestamp) -> String {
        let zoned = |at: WallTime| Some(jiff::Timestamp::from_millisecond(at.unix_millis()).ok()?.to_zoned(self.zone.clone()));
        match (zoned(at.0), zoned(self.now)) {
            (Some(at), Some(now)) if at.date() == now.date() => at.strftime("%H:%M:%S%:z").to_string(),
            (Some(at), _) => at.strftime("%Y-%m-%d %H:%M:%S%:z").to_string(),
            (None, _) => at.to_string(),
        }
    }

    /// Returns the same with milliseconds and always with the date left out.
    pub(crate) fn clock(&self, at: Timestamp) -> String {
        match jiff::Timestamp::from_millisecond(at.0.unix_millis()) {
            Ok(instant) => instant.to_zoned(self.zone.clone()).strftime("%H:%M:%S%.3f%:z").to_string(),
            Err(_) => at.to_string(),
        }
    }

    /// Returns how long ago it was, in one or two units.
    pub(crate) fn ago(&self, at: Timestamp) -> String {
        age(self.now.since(at.0))
    }
}

/// The date, for showing.
pub(crate) fn now() -> WallTime {
    crate::sys::clock::wall()
}

/// Returns a duration in its two largest units: `12s`, `4m10s`, `3h12m`, `5d4h`.
pub(crate) fn age(span: Duration) -> String {
    let secs = span.as_secs();
    let (large, small) = match secs {
        0..60 => return format!("{secs}s"),
        60..3_600 => ((secs / 60, 'm'), (secs % 60, 's')),
        3_600..86_400 => ((secs / 3_600, 'h'), (secs / 60 % 60, 'm')),
        _ => ((secs / 86_400, 'd'), (secs / 3_600 % 24, 'h')),
    };
    if small.0 == 0 { format!("{}{}", large.0, large.1) } else { format!("{}{}{}{}", large.0, large.1, small.0, small.1) }
}

/// Returns the text with every control character as `?`: a worker's title or a build's output must not drive the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Returns at most `width` characters, the last of them `…` if there were more.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain((width > 0).then_some('…')).collect()
}

/// Returns the text in lines of at most `width` characters, broken between words where that can be.
pub(crate) fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let width = width.unwrap_or(usize::MAX).max(1);
    let mut lines = vec![String::new()];
    let mut left = width;
    for word in text.split(' ') {
        let mut word: &str = word;
        loop {
            let length = word.chars().count();
            let gap = usize::from(left < width);
            if length + gap <= left {
                let line = lines.last_mut().expect("never empty: it begins with a line and only grows");
                line.push_str(&" ".repeat(gap));
                line.push_str(word);
                left -= length + gap;
                break;
            }
            if left == width {
                // A word as long as a line or longer is broken where the line ends.
                let end = word.char_indices().nth(width).map_or(word.len(), |(at, _)| at);
                lines.last_mut().expect("never empty: it begins with a line and only grows").push_str(&word[..end]);
                word = &word[end..];
            }
            lines.push(String::new());
            left = width;
        }
    }
    lines
}

/// One place in a table.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Text in a style, cleaned.
    pub(crate) fn new(style: Style, text: impl AsRef<str>) -> Self {
        Self { text: clean(text.as_ref()), style }
    }

    /// Nothing.
    pub(crate) fn none() -> Self {
        Self::new(Style::Faint, "-")
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Style::Plain, text)
    }
}

/// How a column behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// What stands above it.
    pub(crate) title: &'static str,
    /// Numbers stand right.
    pub(crate) right: bool,
    /// It is left out first if the width does not suffice: the higher the sooner; 0: never.
    pub(crate) spare: u8,
}

/// A line of a table.
#[derive(Clone, Debug)]
pub(crate) enum Row {
    /// One cell per column.
    Cells(Vec<Cell>),
    /// Across all columns.
    Across(Vec<Cell>),
}

const GAP: usize = 2;

/// The least that the last column is worth showing with.
const LAST_MIN: usize = 24;

/// Draws a table. The last column takes what width is left; columns that can be spared go where it would be too little.
pub(crate) fn table(columns: &[Column], rows: &[Row], look: &Look) -> String {
    let natural = |index: usize| {
        let cells = rows.iter().filter_map(|row| match row {
            Row::Cells(cells) => cells.get(index).map(|cell| cell.text.chars().count()),
            Row::Across(_) => None,
        });
        cells.chain([columns[index].title.chars().count()]).max().unwrap_or(0)
    };
    let mut shown: Vec<(usize, usize)> = (0..columns.len()).map(|index| (index, natural(index))).collect();
    if let Some(width) = look.width {
        while let Some(&(_, last)) = shown.last() {
            let before: usize = shown[..shown.len() - 1].iter().map(|(_, width)| width + GAP).sum();
            if before + last.min(LAST_MIN) <= width {
                if let Some(last) = shown.last_mut() {
                    last.1 = last.1.min(width - before);
                }
                break;
            }
            let spare = shown.iter().enumerate().filter(|(_, (index, _))| columns[*index].spare > 0);
            match spare.max_by_key(|(_, (index, _))| columns[*index].spare).map(|(at, _)| at) {
                Some(at) => drop(shown.remove(at)),
                // Nothing more to spare: the last column gets what there is.
                None => {
                    if let Some(last) = shown.last_mut() {
                        last.1 = last.1.min(width.saturating_sub(before));
                    }
                    break;
                }
            }
        }
    }
    let mut text = String::new();
    let heading = Row::Cells(columns.iter().map(|column| Cell::new(Style::Faint, column.title)).collect());
    for row in [&heading].into_iter().chain(rows) {
        let line = match row {
            Row::Across(cells) => across(cells, look),
            Row::Cells(cells) => {
                let mut line = String::new();
                for (place, (index, width)) in shown.iter().enumerate() {
                    let Some(cell) = cells.get(*index) else { continue };
                    let piece = cut(&cell.text, *width);
                    let pad = " ".repeat(width - piece.chars().count());
                    let gap = if place == 0 { "" } else { "  " };
                    let piece = look.paint.on(cell.style, &piece);
                    // Writing to a String cannot fail.
                    let _ = if columns[*index].right { write!(line, "{gap}{pad}{piece}") } else { write!(line, "{gap}{piece}{pad}") };
                }
                line
            }
        };
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Draws cells one after the other with a space between them, cut at the width.
pub(crate) fn across(cells: &[Cell], look: &Look) -> String {
    let mut left = look.width.unwrap_or(usize::MAX);
    let mut line = String::new();
    for cell in cells {
        if !line.is_empty() {
            if left < 2 {
                break;
            }
            line.push(' ');
            left -= 1;
        }
        let piece = cut(&cell.text, left);
        left -= piece.chars().count();
        line.push_str(&look.paint.on(cell.style, &piece));
    }
    line
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A reader at 2026-11-22 11:20:30 in a zone one hour east of UTC.
    pub(crate) fn reader(width: Option<usize>, paint: Paint) -> Look {
        let zone = jiff::tz::Offset::constant(1).to_time_zone();
        Look { paint, width, height: width, terminal: width.is_some(), zone, now: WallTime::from_unix_millis(1_795_342_830_000) }
    }

    #[test]
    fn times_are_local_with_their_offset_and_dated_unless_today() {
        let look = reader(None, Paint::Plain);
        let shown = |text: &str| look.time(text.parse().expect("a date"));
        assert_eq!(shown("2026-11-22T10:15:30.999Z"), "11:15:30+01:00");
        assert_eq!(shown("2026-11-21T23:00:00Z"), "00:00:00+01:00");
        assert_eq!(shown("2026-11-21T22:59:59Z"), "2026-11-21 23:59:59+01:00");
        assert_eq!(look.clock("2026-11-21T22:59:59.007Z".parse().expect("a date")), "23:59:59.007+01:00");
        assert_eq!(look.time(Timestamp(WallTime::from_unix_millis(i64::MAX))), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn ages_have_at_most_two_units() {
        for (secs, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (250, "4m10s"), (3_600, "1h"), (11_520, "3h12m"), (446_400, "5d4h")] {
            assert_eq!(age(Duration::from_secs(secs)), text);
        }
        assert_eq!(reader(None, Paint::Plain).ago("2027-01-01T00:00:00Z".parse().expect("a date")), "0s", "a clock that went back");
    }

    #[test]
    fn cutting_counts_characters() {
        assert_eq!(cut("größer", 6), "größer");
        assert_eq!(cut("größer", 4), "grö…");
        assert_eq!(cut("x", 0), "");
    }

    #[test]
    fn wrapping_breaks_between_words_and_loses_none() {
        assert_eq!(wrap("one two three", Some(8)), ["one two", "three"]);
        assert_eq!(wrap("one two three", Some(7)), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij kl", Some(4)), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrap("größer", Some(3)), ["grö", "ßer"]);
        assert_eq!(wrap("one two", None), ["one two"]);
        assert_eq!(wrap("", Some(0)), [""]);
        assert_eq!(wrap("ab", Some(0)), ["a", "b"]);
    }

    #[test]
    fn a_narrow_table_spares_columns_before_it_cuts_the_last() {
        let columns = [
            Column { title: "A", right: false, spare: 0 },
            Column { title: "SPARE", right: true, spare: 1 },
            Column { title: "LAST", right: false, spare: 0 },
        ];
        let rows = [Row::Cells(vec!["one".into(), "1".into(), "a sentence of some forty characters, or so".into()])];
        let drawn = |width| table(&columns, &rows, &reader(width, Paint::Plain));
        insta::assert_snapshot!([None, Some(40), Some(30), Some(10), Some(0)].map(drawn).join("--\n"));
    }
}
