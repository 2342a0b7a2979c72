//! Unix sockets whose file says who may come: made with their rights, so that nobody slips in before these are set.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tonic::transport::server::{Connected, UdsConnectInfo};
use tracing::warn;

/// Longest path of a socket in bytes: `sun_path` less its final NUL (unix(7)).
pub const MAX_PATH: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Pause after `accept` failed, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// It cannot be made.
    #[error("cannot listen on {0}: {1}")]
    Listen(PathBuf, #[source] io::Error),
    /// Its file cannot be given to the user who is to connect.
    #[error("cannot give {path} to user {uid}: {source}; only root may give files away")]
    Owner {
        /// The socket.
        path: PathBuf,
        /// The user.
        uid: u32,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Somebody else serves there.
    #[error(
        "{0} is in use: another process of Eastway serves there, or drains; a second SIGTERM ends that one at once"
    )]
    InUse(PathBuf),
}

/// A socket that listens.
#[derive(Debug)]
pub struct UserSocket {
    path: PathBuf,
    listener: UnixListener,
    file: FileId,
}

/// To know a file again: device, inode, and when it was made, as inodes are used again at once.
type FileId = (u64, u64, i64, i64);

fn file_id(path: &Path) -> io::Result<FileId> {
    let meta = fs::symlink_metadata(path)?;
    // Nobody writes into the file of a socket: the time stays when its owner or mode are changed.
    Ok((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

impl UserSocket {
    /// Listens on `path`, for one user alone (mode 0600): this process's, or `owner`. What a dead process left there is
    /// replaced; missing folders are made.
    ///
    /// # Errors
    /// [`SocketError`]
    pub fn bind(path: &Path, owner: Option<u32>) -> Result<Self, SocketError> {
        let failed = |error| SocketError::Listen(path.to_owned(), error);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        // A socket file outlives its process; one that answers belongs to a living one.
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(SocketError::InUse(path.to_owned()));
            }
            fs::remove_file(path).map_err(failed)?;
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        // On Linux the file gets the mode of the socket: there is no moment at which it has another.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
        SockAddr::unix(path).and_then(|address| socket.bind(&address)).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        if let Some(uid) = owner {
            std::os::unix::fs::lchown(path, Some(uid), None).map_err(|source| {
                let _unusable = fs::remove_file(path);
                SocketError::Owner { path: path.to_owned(), uid, source }
            })?;
        }
        let file = file_id(path).map_err(failed)?;
        socket.listen(BACKLOG).and_then(|()| socket.set_nonblocking(true)).map_err(failed)?;
        let listener = UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), listener, file })
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> SocketFile {
        SocketFile { path: self.path.clone(), file: self.file }
    }

    /// Its connections, at most `room` at once; others wait.
    pub fn connections(self, room: usize) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
        let room = Arc::new(Semaphore::new(room));
        unfold((self.listener, room), async |(listener, room)| {
            let permit = Arc::clone(&room).acquire_owned().await.ok()?;
            let stream = loop {
                match listener.accept().await {
                    Ok((stream, _)) => break stream,
                    Err(_of_the_machine_or_of_one_connection) => sleep(ACCEPT_PAUSE).await,
                }
            };
            Some((Ok(Connection { stream, _room: permit }), (listener, room)))
        })
    }
}

/// The file of a socket, to be removed when it is served no more.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    file: FileId,
}

impl SocketFile {
    /// Removes it, unless another process has put its own there.
    pub fn remove(self) {
        let is_ours = file_id(&self.path).is_ok_and(|file| file == self.file);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            warn!(%error, socket = %self.path.display(), "cannot remove the socket");
        }
    }
}

/// A connection to a [`UserSocket`].
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    _room: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_one_user_and_only_its_own_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/w.sock");
        let socket = UserSocket::bind(&path, None).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(UserSocket::bind(&path, None), Err(SocketError::InUse(_))));
        let file = socket.file();
        drop(socket);
        let next = UserSocket::bind(&path, None).unwrap();
        file.remove();
        assert!(path.exists(), "that of the next process stays");
        next.file().remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn another_user_cannot_open_it() {
        let folder = tempfile::tempdir().unwrap();
        // Nothing but the socket's own permissions stands in the way.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("w.sock");
        let is_root = rustix::process::geteuid().is_root();
        let owner = is_root.then_some(1001);
        let _socket = UserSocket::bind(&path, owner).unwrap();
        let may_open = |uid: u32| {
            let mut command = std::process::Command::new("/bin/sh");
            command.args(["-c", "test -w \"$1\"", "sh"]).arg(&path);
            std::os::unix::process::CommandExt::uid(&mut command, uid);
            command.status().unwrap().success()
        };
        let me = rustix::process::geteuid().as_raw();
        assert!(may_open(owner.unwrap_or(me)));
        // Only root can be somebody else; for others the mode has to speak.
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(!is_root || !may_open(1002));
    }

    #[tokio::test]
    async fn i8_connections_above_the_room_wait() {
        use futures_util::StreamExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.sock");
        let mut connections = Box::pin(UserSocket::bind(&path, None).unwrap().connections(1));
        let _clients = [UnixStream::connect(&path).await.unwrap(), UnixStream::connect(&path).await.unwrap()];
        let first = connections.next().await;
        let second = tokio::time::timeout(Duration::from_millis(50), connections.next());
        assert!(second.await.is_err());
        drop(first);
        assert!(connections.next().await.unwrap().is_ok());
    }
}
