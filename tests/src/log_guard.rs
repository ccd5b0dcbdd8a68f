//! The check that a daemon's log holds no warning and no error but those that a test expects.

/// What one test expects in one daemon's log.
#[derive(Clone, Debug, Default)]
pub struct LogGuard {
    allowed: Vec<String>,
}

impl LogGuard {
    /// Lines that contain `text` are expected.
    pub fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    /// The lines of level WARN or ERROR that nobody expects, and every panic.
    pub fn unexpected<'a>(&self, log: &'a str) -> Vec<&'a str> {
        let alarming = log.lines().filter(|line| is_alarm(line));
        alarming.filter(|line| !self.allowed.iter().any(|text| line.contains(text.as_str()))).collect()
    }
}

/// Text lines are `<time> <level> ..`, JSON lines have a member `level`. A panic has neither.
fn is_alarm(line: &str) -> bool {
    let level = line.split_whitespace().nth(1).unwrap_or_default();
    let json = line.starts_with('{') && (line.contains("\"level\":\"WARN\"") || line.contains("\"level\":\"ERROR\""));
    level == "WARN" || level == "ERROR" || json || (line.starts_with("thread '") && line.contains("panicked at"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-01-02T03:04:05.678901Z  INFO tombolo_agent: WARN is a word here
2026-01-02T03:04:05.678901Z  WARN tombolo_agent::dial: no answer address=127.0.0.1:1
2026-01-02T03:04:05.678901Z ERROR tombolo_agent::site: mirror failed topic=orders
{\"timestamp\":\"2026-01-02T03:04:05Z\",\"level\":\"WARN\",\"message\":\"slow\"}
thread 'main' (7) panicked at agent/src/main.rs:1:1:
";

    #[test]
    fn finds_warnings_errors_and_panics_in_both_formats() {
        assert_eq!(LogGuard::default().unexpected(LOG).len(), 4);
    }

    #[test]
    fn leaves_out_what_a_test_expects_and_nothing_else() {
        let mut guard = LogGuard::default();
        guard.allow("no answer");
        guard.allow("\"slow\"");
        let left = guard.unexpected(LOG);
        assert_eq!(left.len(), 2);
        assert!(left[0].contains("mirror failed"));
        assert!(left[1].contains("panicked"));
    }
}
