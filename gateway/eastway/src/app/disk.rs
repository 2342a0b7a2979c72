//! Files that survive a crash whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tokio::runtime::{Handle, RuntimeFlavor};

/// Replaces `file` as a whole: a reader, or the next start, sees the old or the new content, also
/// after a power failure. A slow disk stops only the task that writes: the others of its thread move on.
///
/// # Errors
/// Those of the file system; the old content is still there, and no half of the new one.
pub fn write_atomically(file: &Path, content: &[u8]) -> io::Result<()> {
    replace_by(file, 0o644, content)
}

/// As [`write_atomically`], for this process's user alone.
///
/// # Errors
/// As there.
pub fn write_secret(file: &Path, content: &[u8]) -> io::Result<()> {
    replace_by(file, 0o600, content)
}

fn replace_by(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| replace(file, mode, content)),
        _ => replace(file, mode, content),
    }
}

fn replace(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    let written = write(&temporary, mode, content).and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        // A full disk gets its room back; that this fails too changes nothing for the caller.
        let _gone = fs::remove_file(&temporary);
        return written;
    }
    // Without this the rename itself can be lost. Some file systems refuse it, and need it not.
    let _synced = file.parent().map(|folder| File::open(folder).and_then(|folder| folder.sync_all()));
    Ok(())
}

fn write(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    // One that a crash left has the rights of then.
    let _gone = fs::remove_file(file);
    let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
    out.write_all(content)?;
    out.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn f20_what_cannot_be_written_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vips.json");
        write_atomically(&file, b"old").unwrap();
        // A folder stands where the new content would go first.
        let in_the_way = folder.path().join("vips.tmp");
        fs::create_dir(&in_the_way).unwrap();
        write_atomically(&file, b"new").unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"old");
        fs::remove_dir(&in_the_way).unwrap();
        write_atomically(&file, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
