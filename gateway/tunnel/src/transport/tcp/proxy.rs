//! By way of an HTTP proxy: `CONNECT`, then TLS end to end as ever.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pipe::{self, ConnectError, Connector, Pipe};
use crate::config::{HostPort, Proxy, ProxyCredentials};
use crate::control::printable;
use crate::transport::BoxFuture;

/// Longest head of an answer, bytes.
const MAX_HEAD: usize = 16 << 10;
/// Longest password, bytes.
const MAX_PASSWORD: usize = 1_024;

/// Connects by way of a proxy.
pub(super) struct Through {
    proxy: Arc<Proxy>,
    at: SocketAddr,
    host: HostPort,
}

/// Why a proxy did not connect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// What it wants to see is not there.
    #[error("cannot be told the password: {}: {source}", .file.display())]
    Password {
        /// Where it should be.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It wants credentials, or other ones.
    #[error("refuses {}: {status}; see `proxy.username` and `proxy.passwordFile` of the Peer", .user.as_deref().unwrap_or("to connect without credentials"))]
    Credentials {
        /// Whose were shown.
        user: Option<String>,
        /// Its status line.
        status: String,
    },
    /// It will not, or cannot, connect.
    #[error("does not connect to {host}: {status}")]
    Refused {
        /// Where to.
        host: HostPort,
        /// Its status line.
        status: String,
    },
    /// What it says is not HTTP.
    #[error("answers with what is no HTTP")]
    NoHttp,
    /// It ends the connection.
    #[error("ends the connection without an answer")]
    Silent,
}

impl Through {
    pub(super) fn new(proxy: Arc<Proxy>, at: SocketAddr, host: HostPort) -> Self {
        Self { proxy, at, host }
    }

    async fn connect(&self) -> Result<Box<dyn Pipe>, ConnectError> {
        let mut stream = pipe::connect(self.at).await?;
        let request = request(&self.host, self.proxy.credentials.as_ref()).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        let status = loop {
            if stream.read_buf(&mut head).await? == 0 {
                return Err(ProxyError::Silent.into());
            }
            if let Some(status) = answer(&head)? {
                break status;
            }
        };
        match status {
            Answer { code: 200..=299, .. } => Ok(Box::new(stream)),
            Answer { code: 407, line } => {
                let user = self.proxy.credentials.as_ref().map(|credentials| credentials.username.clone());
                Err(ProxyError::Credentials { user, status: line }.into())
            }
            Answer { line, .. } => Err(ProxyError::Refused { host: self.host.clone(), status: line }.into()),
        }
    }
}

impl Connector for Through {
    fn remote(&self) -> SocketAddr {
        self.at
    }

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Pipe>, ConnectError>> {
        Box::pin(self.connect())
    }
}

async fn request(host: &HostPort, credentials: Option<&ProxyCredentials>) -> Result<String, ProxyError> {
    let mut request = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n");
    if let Some(ProxyCredentials { username, password_file }) = credentials {
        let read = tokio::fs::read_to_string(password_file).await.and_then(|text| {
            let password = text.trim_end();
            let fits = (1..=MAX_PASSWORD).contains(&password.len());
            if fits { Ok(password.to_owned()) } else { Err(io::Error::other("it is empty, or longer than 1 KiB")) }
        });
        let password = read.map_err(|source| ProxyError::Password { file: password_file.clone(), source })?;
        let pair = BASE64_STANDARD.encode(format!("{username}:{password}"));
        request.push_str(&format!("Proxy-Authorization: Basic {pair}\r\n"));
    }
    request.push_str("\r\n");
    Ok(request)
}

/// What a proxy answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: u16,
    /// Code and reason, to be shown.
    pub(super) line: String,
}

/// Reads the head of an answer. `None`: it is not complete yet. After it the other side speaks TLS, and not first.
pub(super) fn answer(head: &[u8]) -> Result<Option<Answer>, ProxyError> {
    // The same bytes are the same answer, in whatever pieces they come.
    let end = head.windows(4).take(MAX_HEAD - 3).position(|bytes| bytes == b"\r\n\r\n");
    if end.is_none() && head.len() < MAX_HEAD {
        // No HTTP is told as such at once.
        let known = b"HTTP/1.".get(..head.len().min(7)).unwrap_or_default();
        return if head.starts_with(known) { Ok(None) } else { Err(ProxyError::NoHttp) };
    }
    let head = end.and_then(|end| head.get(..end)).ok_or(ProxyError::NoHttp)?;
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix("HTTP/1."));
    let (_minor, line) = line.and_then(|line| line.split_once(' ')).ok_or(ProxyError::NoHttp)?;
    let code = line.get(..3).and_then(|code| code.parse().ok()).ok_or(ProxyError::NoHttp)?;
    Ok(Some(Answer { code, line: printable(line) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood_whatever_the_pieces() {
        let whole = b"HTTP/1.1 200 Connection established\r\nVia: somebody\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(answer(&whole[..cut]).unwrap(), None, "{cut}");
        }
        assert_eq!(answer(whole).unwrap().unwrap().code, 200);
        let refused = answer(b"HTTP/1.0 403 Forbidden by \x07policy\r\n\r\n").unwrap().unwrap();
        assert_eq!(refused, Answer { code: 403, line: "403 Forbidden by ?policy".to_owned() });
        assert_eq!(answer(b"HTTP/1.1 407\r\n\r\n").unwrap().unwrap().code, 407);
    }

    #[test]
    fn what_is_no_http_is_told_soon_and_nothing_is_read_for_ever() {
        for bytes in
            [&b"SSH-2.0-"[..], b"\x15\x03\x01", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 ok\r\n\r\n"]
        {
            assert!(matches!(answer(bytes), Err(ProxyError::NoHttp)), "{bytes:?}");
        }
        let endless = [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"X: y\r\n".repeat(4_000)].concat();
        assert!(matches!(answer(&endless), Err(ProxyError::NoHttp)));
    }

    #[test]
    fn u5_whatever_a_proxy_says_is_understood_or_refused() {
        let mut random = fastrand::Rng::with_seed(5);
        let good = b"HTTP/1.1 200 Connection established\r\nVia: somebody\r\n\r\n";
        for _ in 0..20_000 {
            let mut bytes = good.to_vec();
            for _ in 0..random.usize(1..4) {
                let position = random.usize(..bytes.len());
                bytes[position] = random.u8(..);
            }
            bytes.truncate(random.usize(..=bytes.len()));
            if let Ok(Some(answer)) = answer(&bytes) {
                assert!(answer.line.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{answer:?}");
            }
        }
    }

    #[tokio::test]
    async fn credentials_are_read_for_each_connection() {
        let folder = tempfile::tempdir().unwrap();
        let password_file = folder.path().join("password");
        let host: HostPort = "gw.b.example:15443".parse().unwrap();
        let credentials = ProxyCredentials { username: "alice".to_owned(), password_file: password_file.clone() };
        let missing = request(&host, Some(&credentials)).await.unwrap_err().to_string();
        assert!(missing.contains("password"), "{missing}");
        std::fs::write(&password_file, "open sesame\n").unwrap();
        let first = request(&host, Some(&credentials)).await.unwrap();
        let expected = "CONNECT gw.b.example:15443 HTTP/1.1\r\nHost: gw.b.example:15443\r\nProxy-Authorization: Basic YWxpY2U6b3BlbiBzZXNhbWU=\r\n\r\n";
        assert_eq!(first, expected);
        std::fs::write(&password_file, "other").unwrap();
        assert_ne!(request(&host, Some(&credentials)).await.unwrap(), first);
        assert!(!request(&host, None).await.unwrap().contains("Proxy-Authorization"));
    }
}
