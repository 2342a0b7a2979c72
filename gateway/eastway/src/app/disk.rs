//! Files that survive a crash whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Replaces `file` as a whole: a reader, or the next start, sees the old or the new content.
///
/// # Errors
/// Those of the file system; the old content is still there.
pub fn write_atomically(file: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    let mut out = File::create(&temporary)?;
    out.write_all(content)?;
    out.sync_all()?;
    fs::rename(&temporary, file)
}
