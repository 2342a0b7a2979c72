//! From the name of a peer to a connection: which of its addresses are tried, and in what order (RFC 8305).

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use crate::config::HostPort;
use crate::transport::DialError;
use crate::world::Resolver;

/// For the lookup of a peer's name.
const RESOLVE: Duration = Duration::from_secs(2);
/// An address of the other family is tried so long after the first, unless that has failed before (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// Which addresses to try, one of each family at most. A name is looked up anew each time: its addresses may have moved
/// (fault F12). Successive dials begin with successive addresses.
pub(super) async fn resolve(resolver: &Resolver, address: &HostPort, attempt: u32) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = address.host.parse() {
        return Ok(vec![SocketAddr::new(ip, address.port)]);
    }
    let found = match tokio::time::timeout(RESOLVE, resolver(address.clone())).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(format!("cannot resolve {}: {error}", address.host)),
        Err(_) => return Err(format!("no answer from DNS for {} in {RESOLVE:?}", address.host)),
    };
    let chosen = choose(&found, attempt);
    if chosen.is_empty() { Err(format!("{} has no address", address.host)) } else { Ok(chosen) }
}

/// The one whose turn it is, and the first after it of the other family.
fn choose(found: &[SocketAddr], attempt: u32) -> Vec<SocketAddr> {
    let index = usize::try_from(attempt).unwrap_or_default().checked_rem(found.len()).unwrap_or_default();
    let mut turn = found.iter().cycle().skip(index).take(found.len());
    let Some(first) = turn.next() else { return Vec::new() };
    let other = turn.find(|other| other.is_ipv4() != first.is_ipv4());
    [first].into_iter().chain(other).copied().collect()
}

/// Dials one after the other, the next when the last has failed or takes too long; the first that answers stays.
pub(super) async fn race<T, F>(remotes: Vec<SocketAddr>, dial: impl Fn(SocketAddr) -> F) -> Result<T, DialError>
where
    F: Future<Output = Result<T, DialError>>,
{
    let mut rest = remotes.into_iter();
    let mut under_way: FuturesUnordered<F> = rest.next().map(&dial).into_iter().collect();
    let mut failed = None;
    loop {
        tokio::select! {
            Some(result) = under_way.next() => match result {
                Ok(won) => return Ok(won),
                Err(error) => {
                    let first = failed.get_or_insert(error).clone();
                    match rest.next() {
                        Some(next) => under_way.push(dial(next)),
                        None if under_way.is_empty() => return Err(first),
                        None => {}
                    }
                }
            },
            () = tokio::time::sleep(STAGGER), if rest.len() > 0 => rest.next().map(&dial).into_iter().for_each(|next| under_way.push(next)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn each_family_has_its_turn() {
        let found = addresses(&["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1", "192.0.2.2:1"]);
        assert_eq!(choose(&found, 0), addresses(&["[2001:db8::1]:1", "192.0.2.1:1"]));
        assert_eq!(choose(&found, 1), addresses(&["[2001:db8::2]:1", "192.0.2.1:1"]));
        assert_eq!(choose(&found, 3), addresses(&["192.0.2.2:1", "[2001:db8::1]:1"]));
        assert_eq!(choose(&found[..1], 7), addresses(&["[2001:db8::1]:1"]));
        assert_eq!(choose(&[], 7), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_family_that_does_not_pass_costs_a_quarter_of_a_second() {
        let remotes = addresses(&["[2001:db8::1]:1", "192.0.2.1:1"]);
        let (begun, slow) = (Instant::now(), remotes[0]);
        let dial = |remote| async move {
            if remote == slow {
                std::future::pending::<()>().await;
            }
            Ok(remote)
        };
        assert_eq!(race(remotes.clone(), dial).await, Ok(remotes[1]));
        assert_eq!(begun.elapsed(), STAGGER);
        // One that is refused costs nothing; the first failure is what is told.
        let refused =
            |remote| async move { Err::<(), _>(DialError::NoConnection { remote, reason: "refused".to_owned() }) };
        let begun = Instant::now();
        let error = race(remotes.clone(), refused).await.unwrap_err();
        assert_eq!(error, DialError::NoConnection { remote: remotes[0], reason: "refused".to_owned() });
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
