//! What people read: lines to standard output, with colour where it is a terminal.

use std::io::{IsTerminal, Write};

/// Writes one line to standard output. A reader that has gone away is not an error of ours.
pub fn say(line: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", line.as_ref());
    let _ = out.flush();
}

/// How lines may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether lines may be coloured.
    pub colour: bool,
    /// Whether lines may be redrawn in place.
    pub live: bool,
}

impl Style {
    /// The style of standard output: colour on a terminal, unless `NO_COLOR` is set.
    pub fn detect() -> Self {
        let terminal = std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour, live: terminal }
    }

    /// Good news.
    pub fn green(self, text: impl AsRef<str>) -> String {
        self.paint("32", text)
    }

    /// Bad news.
    pub fn red(self, text: impl AsRef<str>) -> String {
        self.paint("31", text)
    }

    /// Something done on purpose.
    pub fn yellow(self, text: impl AsRef<str>) -> String {
        self.paint("33", text)
    }

    /// What matters.
    pub fn bold(self, text: impl AsRef<str>) -> String {
        self.paint("1", text)
    }

    /// What does not matter much.
    pub fn dim(self, text: impl AsRef<str>) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: impl AsRef<str>) -> String {
        if self.colour { format!("\x1b[{code}m{}\x1b[0m", text.as_ref()) } else { text.as_ref().to_owned() }
    }
}

/// A duration as people say it: `3.2 ms`, `1.40 s`.
pub fn human(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.1 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

/// A count with separators: `12,345`.
pub fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1234567), "1,234,567");
        assert_eq!(human(std::time::Duration::from_micros(3210)), "3.2 ms");
        assert_eq!(human(std::time::Duration::from_millis(1404)), "1.40 s");
    }
}
