//! Splits the text of a CSV file into rows and cells, by the rules of RFC 4180.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr3};

/// The cells of a file. Every row has the same number of cells.
#[derive(Debug, Clone)]
pub(super) struct Cells {
    text: String,
    /// The number of cells in a row.
    width: usize,
    /// The byte offset in the text at which each row begins.
    starts: Vec<usize>,
    /// The number of bytes from the start of the row to the end of each cell, row by row.
    ends: Vec<u32>,
}

impl Cells {
    /// Finds the cells of `text`. Empty lines are skipped. A cell that begins with a quote
    /// continues at least up to the closing quote. Other quotes are part of the cell. A line ends
    /// with `\n`, `\r\n` or `\r`.
    ///
    /// # Errors
    /// When two rows have different numbers of cells, or a row is too long.
    pub(super) fn new(text: String, separator: u8) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let mut at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let (mut width, mut starts, mut ends) = (0, Vec::new(), Vec::<u32>::new());
        loop {
            while matches!(bytes.get(at), Some(b'\r' | b'\n')) {
                at += 1;
            }
            if at == bytes.len() {
                break;
            }
            let (start, before) = (at, ends.len());
            loop {
                at = cell_end(bytes, at, separator);
                ends.push(u32::try_from(at - start).map_err(|_| {
                    format!("line {} has more than 4 GiB: is a quote missing?", line(bytes, start))
                })?);
                match bytes.get(at) {
                    Some(byte) if *byte == separator => at += 1,
                    _ => break,
                }
            }
            let found = ends.len() - before;
            if starts.is_empty() {
                width = found;
            } else if found != width {
                return Err(format!(
                    "CSV error: record {} (line: {}, byte: {start}): found record with {found} fields, but the \
                     previous record has {width} fields",
                    starts.len(),
                    line(bytes, start)
                ));
            }
            starts.push(start);
        }
        Ok(Self { text, width, starts, ends })
    }

    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.starts.len()
    }

    /// Returns the number of the line at which a row begins.
    pub(super) fn line(&self, row: usize) -> usize {
        line(self.text.as_bytes(), self.starts[row])
    }

    /// Returns the cells of a row.
    pub(super) fn row(&self, row: usize) -> impl Iterator<Item = Cow<'_, str>> {
        (0..self.width).map(move |column| self.cell(row, column))
    }

    /// Returns the text of a cell, without its quotes and the whitespace around it.
    pub(super) fn cell(&self, row: usize, column: usize) -> Cow<'_, str> {
        let (start, at) = (self.starts[row], row * self.width + column);
        let first = match column {
            0 => start,
            _ => start + self.ends[at - 1] as usize + 1,
        };
        let cell = &self.text[first..start + self.ends[at] as usize];
        match cell.strip_prefix('"') {
            None => Cow::Borrowed(trimmed(cell)),
            Some(quoted) => unquoted(quoted),
        }
    }
}

/// Returns the end of the cell that begins at `start`.
fn cell_end(bytes: &[u8], start: usize, separator: u8) -> usize {
    let mut at = start;
    if bytes.get(start) == Some(&b'"') {
        at += 1;
        loop {
            let Some(quote) = memchr(b'"', &bytes[at..]) else { return bytes.len() };
            at += quote + 1;
            // Two consecutive quotes stand for one quote in the text of the cell.
            match bytes.get(at) {
                Some(b'"') => at += 1,
                _ => break,
            }
        }
    }
    memchr3(separator, b'\n', b'\r', &bytes[at..]).map_or(bytes.len(), |length| at + length)
}

/// Returns the text of a quoted cell, without the quotes. `cell` begins behind the opening quote.
fn unquoted(cell: &str) -> Cow<'_, str> {
    match cell.find('"') {
        None => return Cow::Borrowed(cell.trim()),
        Some(quote) if quote + 1 == cell.len() => return Cow::Borrowed(cell[..quote].trim()),
        Some(_) => {}
    }
    let (mut text, mut rest) = (String::with_capacity(cell.len()), cell);
    while let Some((before, behind)) = rest.split_once('"') {
        text.push_str(before);
        match behind.strip_prefix('"') {
            Some(behind) => {
                text.push('"');
                rest = behind;
            }
            None => {
                rest = behind;
                break;
            }
        }
    }
    text.push_str(rest);
    Cow::Owned(text.trim().to_owned())
}

fn trimmed(cell: &str) -> &str {
    // Most cells begin and end with visible ASCII characters. Such a cell has no whitespace around
    // its text.
    match cell.as_bytes() {
        [b'!'..=b'~'] | [b'!'..=b'~', .., b'!'..=b'~'] => cell,
        _ => cell.trim(),
    }
}

/// Returns the number of the line that contains a byte of the text.
pub(super) fn line(text: &[u8], at: usize) -> usize {
    let single = memchr_iter(b'\r', &text[..at]).filter(|at| text.get(at + 1) != Some(&b'\n'));
    1 + memchr_iter(b'\n', &text[..at]).count() + single.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the rows. If a row has more or fewer cells than the rows before it, the error is the
    /// number of the first such row (from 0), as the csv crate counts it.
    fn own(text: &str) -> Result<Vec<Vec<String>>, usize> {
        let cells = Cells::new(text.to_owned(), b',').map_err(|error| {
            let record =
                error.strip_prefix("CSV error: record ").and_then(|rest| rest.split_once(' '));
            record.expect("an unequal row").0.parse::<usize>().expect("a number")
        })?;
        let rows = 0..cells.rows();
        Ok(rows.map(|row| cells.row(row).map(Cow::into_owned).collect()).collect())
    }

    /// Returns the same as [`own`], but reads the text with the csv crate.
    fn of_crate(text: &str) -> Result<Vec<Vec<String>>, usize> {
        let mut reader = csv::ReaderBuilder::new();
        let reader = reader.has_headers(false).trim(csv::Trim::All).from_reader(text.as_bytes());
        let rows = reader.into_records().map(|record| match record {
            Ok(record) => Ok(record.iter().map(str::to_owned).collect()),
            Err(error) => match error.kind() {
                csv::ErrorKind::UnequalLengths { pos: Some(position), .. } => {
                    Err(position.record() as usize)
                }
                other => panic!("{other:?}"),
            },
        });
        rows.collect()
    }

    /// Checks that `Cells` and the csv crate find the same cells: in every text of up to five
    /// characters out of `CHARACTERS`, and in long random texts.
    #[test]
    fn cells_are_those_of_the_csv_crate() {
        const CHARACTERS: [char; 6] = ['a', ',', '"', '\n', '\r', ' '];
        let mut texts = vec![String::new()];
        let mut from = 0;
        for _ in 0..5 {
            let until = texts.len();
            for at in from..until {
                for character in CHARACTERS {
                    texts.push(format!("{}{character}", texts[at]));
                }
            }
            from = until;
        }
        let mut random = fastrand::Rng::with_seed(1);
        let parts =
            ["a", "é", "\u{a0}", ",", "\"", "\"\"", "\",\"", "\n", "\r\n", " ", "longer text"];
        for _ in 0..3000 {
            let count = random.usize(1..60);
            texts.push((0..count).map(|_| parts[random.usize(..parts.len())]).collect());
        }
        texts.push("\u{feff}a,b\n1,2".to_owned());
        for text in texts {
            assert_eq!(own(&text), of_crate(&text), "{text:?}");
        }
    }

    /// Checks the line numbers of rows in a text with all three kinds of line breaks, some of them
    /// within a cell.
    #[test]
    fn lines_are_counted() {
        let text = "a\r\n\r\n1\r\"2\n\r\"\n\n3";
        let cells = Cells::new(text.to_owned(), b',').expect("one column");
        let lines: Vec<usize> = (0..cells.rows()).map(|row| cells.line(row)).collect();
        assert_eq!(lines, [1, 3, 4, 8]);
    }
}
