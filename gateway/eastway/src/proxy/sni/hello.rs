//! The name in a TLS ClientHello (RFC 8446 §4.1.2, RFC 6066 §3). It may come in many pieces, and lie in several records: that
//! of today's Envoy is larger than a packet.

/// Largest ClientHello, with the headers of its records. Ten times what clients send.
pub const MAX_BYTES: usize = 16 << 10;
/// Of records that hold a handshake, and of a ClientHello in it.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// The extension, and its one type of name.
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// Longest host name.
const MAX_NAME: usize = 255;

/// Why there is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// It does not begin as TLS does.
    #[error("it does not speak TLS")]
    NotTls,
    /// More than [`MAX_BYTES`].
    #[error("its ClientHello is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// Something in it contradicts itself.
    #[error("its ClientHello cannot be read")]
    Malformed,
    /// It names no server.
    #[error("it names no server")]
    NoName,
}

/// Reads the name out of what a client says, while it still says it. Each byte is looked at once, however many pieces it
/// comes in.
#[derive(Debug, Default)]
pub struct Hello {
    /// Bytes of whole records.
    read: usize,
    /// What these records held.
    handshake: Vec<u8>,
}

impl Hello {
    /// The name in `received`, all that the client has said so far, which begins with what was given before; `None`: that is
    /// not all yet.
    ///
    /// # Errors
    /// [`HelloError`], as soon as it is known.
    pub fn server_name(&mut self, received: &[u8]) -> Result<Option<String>, HelloError> {
        loop {
            if let Some(hello) = whole(&self.handshake)? {
                return name(hello).map(Some);
            }
            let rest = received.get(self.read..).unwrap_or_default();
            if rest.first().is_some_and(|kind| *kind != HANDSHAKE) {
                return Err(HelloError::NotTls);
            }
            let Some(([_, major, _, high, low], rest)) = rest.split_first_chunk::<5>() else { break };
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if *major != 3 || length == 0 || length > 1 << 14 {
                return Err(HelloError::NotTls);
            }
            let Some(payload) = rest.get(..length) else {
                self.check_start(rest)?;
                break;
            };
            self.handshake.extend_from_slice(payload);
            self.read += 5 + length;
        }
        if received.len() >= MAX_BYTES { Err(HelloError::TooLong) } else { Ok(None) }
    }

    /// Looks whether the part of a record that is there already can belong to a ClientHello.
    fn check_start(&self, payload: &[u8]) -> Result<(), HelloError> {
        let start: Vec<u8> = self.handshake.iter().chain(payload).take(4).copied().collect();
        whole(&start).map(drop)
    }
}

/// The name in what a client has said so far; `None`: that is not all yet.
///
/// # Errors
/// [`HelloError`], as soon as it is known.
pub fn server_name(received: &[u8]) -> Result<Option<String>, HelloError> {
    Hello::default().server_name(received)
}

/// The body of the ClientHello, if it is there as a whole.
fn whole(handshake: &[u8]) -> Result<Option<&[u8]>, HelloError> {
    if handshake.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(HelloError::NotTls);
    }
    let Some(([_, length @ ..], body)) = handshake.split_first_chunk::<4>() else { return Ok(None) };
    let length = number(length);
    if length > MAX_BYTES {
        return Err(HelloError::TooLong);
    }
    Ok(body.get(..length))
}

fn name(hello: &[u8]) -> Result<String, HelloError> {
    let mut rest = hello.get(34..).ok_or(HelloError::Malformed)?;
    let _session = take(&mut rest, 1)?;
    let _ciphers = take(&mut rest, 2)?;
    let _compressions = take(&mut rest, 1)?;
    if rest.is_empty() {
        return Err(HelloError::NoName);
    }
    let mut extensions = take(&mut rest, 2)?;
    while !extensions.is_empty() {
        let (kind, after) = extensions.split_first_chunk::<2>().ok_or(HelloError::Malformed)?;
        extensions = after;
        let mut names = take(&mut extensions, 2)?;
        if u16::from_be_bytes(*kind) == SERVER_NAME {
            return first(take(&mut names, 2)?);
        }
    }
    Err(HelloError::NoName)
}

/// The first host name of a list of names.
fn first(mut names: &[u8]) -> Result<String, HelloError> {
    while let Some((kind, rest)) = names.split_first() {
        names = rest;
        let name = take(&mut names, 2)?;
        if *kind == HOST_NAME {
            let is_name = !name.is_empty() && name.len() <= MAX_NAME && name.iter().all(u8::is_ascii_graphic);
            return match str::from_utf8(name) {
                Ok(name) if is_name => Ok(name.to_ascii_lowercase()),
                Ok(_) | Err(_) => Err(HelloError::Malformed),
            };
        }
    }
    Err(HelloError::NoName)
}

/// What follows a length of so many bytes.
fn take<'a>(bytes: &mut &'a [u8], size: usize) -> Result<&'a [u8], HelloError> {
    let (length, rest) = bytes.split_at_checked(size).ok_or(HelloError::Malformed)?;
    let (taken, rest) = rest.split_at_checked(number(length)).ok_or(HelloError::Malformed)?;
    *bytes = rest;
    Ok(taken)
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ClientHello with these extensions, in records of at most so many bytes.
    fn hello(extensions: &[u8], record: usize) -> Vec<u8> {
        let two = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend(two(extensions.len()));
        body.extend(extensions);
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let handshake = [&[CLIENT_HELLO, length[1], length[2], length[3]][..], &body].concat();
        handshake.chunks(record).flat_map(|part| [&[HANDSHAKE, 3, 1][..], &two(part.len()), part].concat()).collect()
    }

    fn named(name: &[u8]) -> Vec<u8> {
        let two = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        let list = [&[HOST_NAME][..], &two(name.len()), name].concat();
        let key_share = [&[0, 51][..], &two(1_216), &[9; 1_216]].concat();
        [&key_share[..], &[0, 0], &two(list.len() + 2), &two(list.len()), &list].concat()
    }

    #[test]
    fn the_name_is_found_when_all_of_it_is_there_and_not_before() {
        let name = "outbound_.9080_._.Reviews.bookinfo.svc.cluster.local";
        for record in [1, 100, 1_000, 16_000] {
            let bytes = hello(&named(name.as_bytes()), record);
            for end in 0..bytes.len() {
                assert_eq!(server_name(&bytes[..end]), Ok(None), "{end} bytes in records of {record}");
            }
            assert_eq!(server_name(&bytes), Ok(Some(name.to_ascii_lowercase())));
        }
    }

    #[test]
    fn what_comes_in_pieces_reads_as_what_comes_at_once() {
        let bytes = hello(&named(b"outbound_.80_._.a.b.svc.cluster.local"), 7);
        let mut reading = Hello::default();
        for end in 0..bytes.len() {
            assert_eq!(reading.server_name(&bytes[..end]), Ok(None), "{end} bytes");
            assert!(reading.read <= end && reading.handshake.len() <= end, "what was read is not read again");
        }
        assert_eq!(reading.server_name(&bytes), server_name(&bytes));
    }

    #[test]
    fn what_is_no_hello_is_known_at_once() {
        assert_eq!(server_name(b"GET / HTTP/1.1"), Err(HelloError::NotTls));
        assert_eq!(server_name(&[HANDSHAKE, 2, 0, 0, 4]), Err(HelloError::NotTls), "SSL 2");
        assert_eq!(server_name(&[HANDSHAKE, 3, 1, 0, 0]), Err(HelloError::NotTls), "an empty record");
        assert_eq!(server_name(&[HANDSHAKE, 3, 1, 0, 4, 2]), Err(HelloError::NotTls), "a ServerHello");
        assert_eq!(server_name(&[HANDSHAKE, 3, 1, 0, 4, 1, 1, 0, 0]), Err(HelloError::TooLong));
        assert_eq!(server_name(&hello(&[], 100)), Err(HelloError::NoName));
        assert_eq!(server_name(&hello(&[0, 0, 0, 9], 100)), Err(HelloError::Malformed));
        for bad in [&b""[..], b"a b", b"a\0b", "ü".as_bytes(), &[b'a'; 256]] {
            assert_eq!(server_name(&hello(&named(bad), 16_000)), Err(HelloError::Malformed), "{bad:?}");
        }
        // Records of one byte never come to an end.
        let endless = [HANDSHAKE, 3, 1, 0, 1, 1].into_iter().chain([HANDSHAKE, 3, 1, 0, 1, 0].into_iter().cycle());
        let endless: Vec<u8> = endless.take(MAX_BYTES).collect();
        assert!(server_name(&endless).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..1_400) {
            let _any: Result<_, HelloError> = server_name(&bytes);
            let mut hello = hello(&named(b"a.example"), 300);
            hello.truncate(cut);
            hello.extend(&bytes);
            let at_once = server_name(&hello);
            let mut reading = Hello::default();
            let mut in_pieces = (0..=hello.len()).map(|end| reading.server_name(&hello[..end]));
            let first = in_pieces.find(|read| *read != Ok(None)).unwrap_or(Ok(None));
            prop_assert_eq!(first, at_once);
        }
    }
}
