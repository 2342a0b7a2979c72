//! What Envoy writes, line by line into our log.

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::telemetry::Escaped;

/// Longest line that is kept; the rest of a longer one is left out.
const MAX_LINE: usize = 4096;
/// Envoy's names of levels.
const LEVELS: [&str; 6] = ["trace", "debug", "info", "warning", "error", "critical"];

/// Logs what comes until the writer closes.
pub(super) async fn log(mut from: impl AsyncRead + Unpin) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 8192];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => lines.take(buffer.get(..length).unwrap_or_default(), say),
        }
    }
    lines.end(say);
}

/// Bytes cut into lines of bounded length.
#[derive(Debug, Default)]
struct Lines {
    line: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], say: impl Fn(&str)) {
        for (index, piece) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if index > 0 {
                self.end(&say);
            }
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend(piece.iter().take(room));
        }
    }

    fn end(&mut self, say: impl Fn(&str)) {
        let line = std::mem::take(&mut self.line);
        if !line.trim_ascii().is_empty() {
            say(&String::from_utf8_lossy(&line));
        }
    }
}

/// One line of Envoy. The target is `envoy`.
fn say(line: &str) {
    let (level, logger, message) = parts(line);
    let (logger, message) = (Escaped(logger), Escaped(message));
    match level {
        "trace" => tracing::trace!(target: "envoy", %logger, "{message}"),
        "debug" => tracing::debug!(target: "envoy", %logger, "{message}"),
        "warning" => tracing::warn!(target: "envoy", %logger, "{message}"),
        "error" | "critical" => tracing::error!(target: "envoy", %logger, "{message}"),
        _ => tracing::info!(target: "envoy", %logger, "{message}"),
    }
}

/// Level, logger and message with blanks between, or whatever a dying process writes.
fn parts(line: &str) -> (&str, &str, &str) {
    let mut parts = line.splitn(3, ' ');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(level), Some(logger), Some(message)) if LEVELS.contains(&level) => (level, logger, message),
        _ => ("info", "output", line),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn i8_lines_are_put_together_and_cut() {
        let said = RefCell::new(Vec::new());
        let say = |line: &str| said.borrow_mut().push(line.to_owned());
        let mut lines = Lines::default();
        lines.take(b"info ma", say);
        lines.take(b"in one\n\n  \ntwo\n", say);
        lines.take(&[b'x'; 3 * MAX_LINE], say);
        lines.take(b"\nlast", say);
        lines.end(say);
        let said = said.into_inner();
        assert_eq!(said.len(), 4);
        assert_eq!((said[0].as_str(), said[1].as_str(), said[3].as_str()), ("info main one", "two", "last"));
        assert_eq!(said[2].len(), MAX_LINE);
    }

    #[test]
    fn levels_are_envoys_and_what_has_none_is_a_message() {
        assert_eq!(parts("warning config gRPC config: a b"), ("warning", "config", "gRPC config: a b"));
        assert_eq!(parts("error initializing configuration 'x'"), ("error", "initializing", "configuration 'x'"));
        assert_eq!(parts("PANIC: out of luck"), ("info", "output", "PANIC: out of luck"));
    }
}
