//! Rotation of the issuing key, with overlap from end to end.
//!
//! | step | what the folder holds | issues with | pins exported |
//! |---|---|---|---|
//! | [`begin`] | `next/`: the new CA | old | old, new |
//! | [`activate`] | the new CA in place; `previous/`: the old one, and `activated` with the time; `link-keys.pem` | new | new, old |
//! | [`finish`] | `previous/` is gone | new | new |
//!
//! Between begin and activate the peers take the new pin into their Peer files; between activate and finish the last
//! leaves of the old CA expire (at most [`MAX_LEAF_TTL`]). The roots of both CAs are trusted all
//! along. The keys that gateways share ([`LinkKeys`]) stay those of before: `link-keys.pem` has them from the first
//! activation on. Each step can be run again after an interruption: folders appear and vanish by one rename, and while
//! `next/` and `previous/` are both there the new CA is read from `next/`, where it is complete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::anchors::{self, Other};
use super::error::CaError;
use super::files::{self, ISTIO};
use super::init::{self, InitError, InitOptions};
use super::{Ca, Layout, LinkKeys, MAX_LEAF_TTL};
use crate::pin::SpkiPin;
use crate::timestamp::Timestamp;

const NEXT: &str = "next";
const PREVIOUS: &str = "previous";
/// Folders of CAs beside the issuing one.
pub(super) const OTHERS: [&str; 2] = [NEXT, PREVIOUS];
/// When the new CA took over, seconds since the Unix epoch, in `previous/`.
const ACTIVATED: &str = "activated";

/// Where a CA folder stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No rotation is under way.
    Idle,
    /// The next CA is announced, the old one still issues.
    Begun {
        /// Pin of the next CA.
        next: SpkiPin,
    },
    /// The new CA issues, leaves of the old one may be alive.
    Activated {
        /// Pin of the old CA.
        previous: SpkiPin,
        /// When the new CA took over.
        since: Timestamp,
    },
}

/// Why a step of a rotation was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotateError {
    /// The folder is in another stage.
    #[error("{}: {wanted} is not possible now: {found}", .dir.display())]
    Stage {
        /// The folder.
        dir: PathBuf,
        /// What was asked for.
        wanted: &'static str,
        /// Where it stands, and what comes next.
        found: &'static str,
    },
    /// Old leaves may be alive; finishing would make peers refuse them.
    #[error(
        "leaves of the previous CA may live until {until} (clock says {now}); finish then, or force it to cut them"
    )]
    TooEarly {
        /// When the last of them has expired.
        until: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// Somebody else writes the files of this layout.
    #[error("{}: a Kubernetes TLS secret is rotated by whoever writes it (cert-manager, for instance), not here", .dir.display())]
    Layout {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder, or one in it, cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The new CA cannot be made or written.
    #[error(transparent)]
    Init(#[from] InitError),
}

/// The files of a CA folder that a rotation reads and writes, by their place in it: for who keeps them elsewhere.
#[must_use]
pub fn places() -> Vec<String> {
    let files = [ISTIO.cert, ISTIO.key, ISTIO.chain, ISTIO.root];
    let mut places: Vec<String> = files.map(str::to_owned).into();
    places.extend(OTHERS.iter().flat_map(|folder| files.map(|file| format!("{folder}/{file}"))));
    places.push(format!("{PREVIOUS}/{ACTIVATED}"));
    places.push(anchors::FILE.to_owned());
    places
}

/// Says where the rotation of a folder stands.
///
/// # Errors
/// A CA in `next/` or `previous/` cannot be read.
pub fn stage(dir: &Path) -> Result<Stage, CaError> {
    let pin = |name: &str| {
        let certificate = files::read(&dir.join(name))?.certificate;
        SpkiPin::of_certificate(&certificate).map_err(|error| CaError::Certificate {
            file: files::path(&dir.join(name), ISTIO.cert),
            index: 1,
            reason: error.to_string(),
        })
    };
    match (dir.join(NEXT).is_dir(), dir.join(PREVIOUS).is_dir()) {
        (_, true) => Ok(Stage::Activated { previous: pin(PREVIOUS)?, since: activated(dir) }),
        (true, false) => Ok(Stage::Begun { next: pin(NEXT)? }),
        (false, false) => Ok(Stage::Idle),
    }
}

/// Makes the next CA and announces it: [`Ca::pins`] and [`Ca::bundle_pem`] hold both from now on.
///
/// # Errors
/// [`RotateError`]; nothing has changed then.
pub fn begin(dir: &Path, options: &InitOptions) -> Result<Ca, RotateError> {
    match stage(dir)? {
        Stage::Idle => {}
        Stage::Begun { .. } => return Err(wrong(dir, "to begin", "a rotation is announced; activate it")),
        Stage::Activated { .. } => return Err(wrong(dir, "to begin", "a rotation is not finished; finish it")),
    }
    let old = Ca::load_at(dir, options.now)?;
    if old.layout() == Layout::KubernetesTls {
        return Err(RotateError::Layout { dir: dir.to_owned() });
    }
    let made = init::make(options)?;
    appear(dir, NEXT, |folder| made.write(folder))?;
    Ok(Ca::load_at(dir, options.now)?)
}

/// Puts the next CA in place; it issues from now on.
///
/// # Errors
/// [`RotateError`]; the old CA is still whole then, or the new one already is, and the step can be run again.
pub fn activate(dir: &Path, now: SystemTime) -> Result<Ca, RotateError> {
    if !dir.join(NEXT).is_dir() {
        return Err(match stage(dir)? {
            Stage::Activated { .. } => wrong(dir, "to activate", "it is active already; finish it"),
            Stage::Idle | Stage::Begun { .. } => wrong(dir, "to activate", "no rotation is announced; begin one"),
        });
    }
    let next = dir.join(NEXT);
    // A next CA that does not pass its checks must not take over.
    Ca::load_at(&next, now)?;
    keep_link_keys(dir)?;
    if !dir.join(PREVIOUS).is_dir() {
        appear(dir, PREVIOUS, |folder| {
            copy(dir, folder)?;
            let since = Timestamp::from(now).unix().to_string();
            init::write_file(&folder.join(ACTIVATED), since.as_bytes(), 0o644)
        })?;
    }
    copy(&next, dir)?;
    vanish(dir, NEXT)?;
    Ok(Ca::load_at(dir, now)?)
}

/// Replicas from before and after the rotation must know each other.
fn keep_link_keys(dir: &Path) -> Result<(), RotateError> {
    if LinkKeys::kept(dir)?.is_some() {
        return Ok(());
    }
    // An activation that was interrupted may have begun to replace the old CA.
    let previous = dir.join(PREVIOUS);
    let old = files::read(if previous.is_dir() { &previous } else { dir })?;
    let keys = LinkKeys::derive(old.key.secret_der()).map_err(InitError::Key)?;
    Ok(keys.keep(dir)?)
}

/// Ends the overlap: the old pin is no longer exported. With `force` this is done although leaves of the old CA may
/// be alive, and the keys that gateways share become those of the new key: all of them are to be restarted then.
///
/// # Errors
/// [`RotateError`]; nothing has changed then.
pub fn finish(dir: &Path, now: SystemTime, force: bool) -> Result<Ca, RotateError> {
    if dir.join(NEXT).is_dir() {
        return Err(wrong(dir, "to finish", "the announced rotation is not active yet; activate it"));
    }
    let Stage::Activated { since, .. } = stage(dir)? else {
        return Err(wrong(dir, "to finish", "no rotation is under way"));
    };
    let (until, clock) = (since.plus(MAX_LEAF_TTL), Timestamp::from(now));
    if clock < until && !force {
        return Err(RotateError::TooEarly { until, now: clock });
    }
    if force {
        LinkKeys::forget(dir)?;
    }
    vanish(dir, PREVIOUS)?;
    Ok(Ca::load_at(dir, now)?)
}

/// The folder to issue from; see the module text.
pub(super) fn current(dir: &Path) -> PathBuf {
    let next = dir.join(NEXT);
    if next.is_dir() && dir.join(PREVIOUS).is_dir() { next } else { dir.to_owned() }
}

/// A CA beside the issuing one.
pub(super) struct Announced {
    /// It will issue; else it did.
    pub(super) is_next: bool,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Its key, if it fits.
    pub(super) signer: Option<Other>,
}

/// The CAs other than the issuing one that peers and workloads should hold.
pub(super) fn announced(dir: &Path, source: &Path) -> Result<Vec<Announced>, CaError> {
    let mut all = Vec::new();
    for (name, is_next) in [(NEXT, true), (PREVIOUS, false)] {
        let folder = dir.join(name);
        if folder.is_dir() && folder != source {
            let material = files::read(&folder)?;
            let files::Material { certificate, key, roots, .. } = material;
            // One that is broken is not announced to sidecars, and found out when it is to take over.
            let signer = Other::new(key, &certificate);
            all.push(Announced { is_next, certificate, roots, signer });
        }
    }
    Ok(all)
}

fn activated(dir: &Path) -> Timestamp {
    let text = fs::read_to_string(dir.join(PREVIOUS).join(ACTIVATED)).unwrap_or_default();
    // Without a readable time nothing is known to have expired; the folder's own time is close to it.
    text.trim().parse().map(Timestamp::from_unix).unwrap_or_else(|_| {
        let modified = fs::metadata(dir.join(PREVIOUS)).and_then(|metadata| metadata.modified());
        modified.map_or(Timestamp::from_unix(i64::MAX), Timestamp::from)
    })
}

fn wrong(dir: &Path, wanted: &'static str, found: &'static str) -> RotateError {
    RotateError::Stage { dir: dir.to_owned(), wanted, found }
}

/// Fills a folder under another name and renames it into place.
fn appear(dir: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<(), InitError>) -> Result<(), InitError> {
    let (temporary, place) = (dir.join(format!(".{name}.new")), dir.join(name));
    let failed = |error: io::Error| init::write_error(&place, &error);
    remove(&temporary).map_err(failed)?;
    fs::create_dir(&temporary).map_err(failed)?;
    let appeared = fill(&temporary).and_then(|()| fs::rename(&temporary, &place).map_err(failed));
    if appeared.is_err() {
        // The error of what failed first is the one to tell.
        remove(&temporary).ok();
    }
    appeared
}

/// Renames a folder away, then removes it.
fn vanish(dir: &Path, name: &str) -> Result<(), InitError> {
    let (temporary, place) = (dir.join(format!(".{name}.old")), dir.join(name));
    let failed = |error: io::Error| init::write_error(&place, &error);
    remove(&temporary).map_err(failed)?;
    fs::rename(&place, &temporary).map_err(failed)?;
    remove(&temporary).map_err(failed)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Copies the files of a CA, the key for its owner only. A file that the source lacks is removed at the target, so
/// that no part of another CA stays behind.
fn copy(from: &Path, to: &Path) -> Result<(), InitError> {
    for (name, mode) in [(ISTIO.key, 0o600), (ISTIO.chain, 0o644), (ISTIO.root, 0o644), (ISTIO.cert, 0o644)] {
        let target = to.join(name);
        match fs::read(from.join(name)).map(zeroize::Zeroizing::new) {
            Ok(bytes) => init::write_file(&target, &bytes, mode)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if target.exists() {
                    fs::remove_file(&target).map_err(|error| init::write_error(&target, &error))?;
                }
            }
            Err(error) => return Err(init::write_error(&target, &error)),
        }
    }
    Ok(())
}
