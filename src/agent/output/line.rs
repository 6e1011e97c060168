//! How one line of a worker's output is written to its file, and read back.
//!
//! `2026-11-22T14:02:11.123Z out text`, where the second word is `out` or `err`; in a file that several slots share,
//! `2026-11-22T14:02:11.123Z out pool/slot text`. A `+` behind the second word says that the text goes on in the next such line
//! of the same stream: a line longer than the bound, put together again by joining them. The text is the worker's bytes, unchanged.

#[cfg(test)]
use selfstart_core::time::WallTime;

#[cfg(test)]
use crate::telling::stamp::parse_stamp;

/// Which of a worker's two pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stream {
    /// Its standard output.
    Out,
    /// Its standard error.
    Err,
}

impl Stream {
    /// Both.
    pub(crate) const BOTH: [Self; 2] = [Self::Out, Self::Err];

    /// `out` or `err`.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Err => "err",
        }
    }
}

/// Whether the text goes on in the next line of the same stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goes {
    /// This is its end.
    Ends,
    /// It goes on.
    On,
}

/// Returns how long the written line will be.
#[must_use]
pub(crate) fn written_len(stamp: &str, label: Option<&str>, goes: Goes, text: &[u8]) -> usize {
    let label = label.map_or(0, |label| 1 + label.len());
    stamp.len() + " out".len() + usize::from(goes == Goes::On) + label + 1 + text.len() + 1
}

/// Writes one line at the beginning of `to`, which must have room for [`written_len`] bytes; returns how many it wrote.
pub(crate) fn write(to: &mut [u8], stamp: &str, stream: Stream, label: Option<&str>, goes: Goes, text: &[u8]) -> usize {
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        to[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(stamp.as_bytes());
    put(b" ");
    put(stream.as_str().as_bytes());
    if goes == Goes::On {
        put(b"+");
    }
    if let Some(label) = label {
        put(b" ");
        put(label.as_bytes());
    }
    put(b" ");
    put(text);
    put(b"\n");
    at
}

/// One line of a log file.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogLine<'a> {
    /// When it was read from the worker.
    pub at: WallTime,
    /// Where the worker wrote it.
    pub stream: Stream,
    /// Whether it is a part of a longer line.
    pub goes: Goes,
    /// `pool/slot`, in a shared file.
    pub label: Option<&'a [u8]>,
    /// What the worker wrote.
    pub text: &'a [u8],
}

/// Whether a file has labels in its lines.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Labels {
    /// One slot's own file.
    None,
    /// A file that slots share.
    Some,
}

/// Reads one line, without its newline; `None` if selfstart did not write it.
#[cfg(test)]
#[must_use]
pub(crate) fn parse(line: &[u8], labels: Labels) -> Option<LogLine<'_>> {
    let (at, rest) = split_word(line)?;
    let at = parse_stamp(at)?;
    let (mark, mut rest) = split_word(rest)?;
    let (name, goes) = mark.strip_suffix(b"+").map_or((mark, Goes::Ends), |name| (name, Goes::On));
    let stream = Stream::BOTH.into_iter().find(|stream| stream.as_str().as_bytes() == name)?;
    let mut label = None;
    if labels == Labels::Some {
        let (word, text) = split_word(rest)?;
        label = Some(word);
        rest = text;
    }
    Some(LogLine { at, stream, goes, label, text: rest })
}

#[cfg(test)]
fn split_word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr::memchr(b' ', text)?;
    Some((&text[..space], &text[space + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telling::stamp::stamp;

    fn written(stream: Stream, label: Option<&str>, goes: Goes, text: &[u8]) -> Vec<u8> {
        let stamp = stamp(WallTime::from_unix_millis(1_795_356_131_007));
        let mut to = vec![0; written_len(&stamp, label, goes, text)];
        assert_eq!(write(&mut to, &stamp, stream, label, goes, text), to.len());
        to
    }

    #[test]
    fn lines_read_back_as_they_were_written() {
        let line = written(Stream::Out, None, Goes::Ends, b"a \xff\0 b");
        assert_eq!(line, b"2026-11-22T14:02:11.007Z out a \xff\0 b\n");
        let back = parse(&line[..line.len() - 1], Labels::None).expect("ours");
        assert_eq!((back.at.unix_millis(), back.text), (1_795_356_131_007, &b"a \xff\0 b"[..]));

        let line = written(Stream::Err, Some("checkins/3"), Goes::On, b"");
        assert_eq!(line, b"2026-11-22T14:02:11.007Z err+ checkins/3 \n");
        let back = parse(&line[..line.len() - 1], Labels::Some).expect("ours");
        assert_eq!((back.stream, back.goes, back.label, back.text), (Stream::Err, Goes::On, Some(&b"checkins/3"[..]), &b""[..]));
    }

    #[test]
    fn what_selfstart_did_not_write_is_no_line() {
        for wrong in ["", "x", "2026-11-22T14:02:11.007Z", "2026-11-22T14:02:11.007Z out", "2026-11-22T14:02:11.007Z foo x", "x out y"] {
            assert_eq!(parse(wrong.as_bytes(), Labels::None), None, "{wrong}");
        }
    }
}
