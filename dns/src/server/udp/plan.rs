//! Which replies go together: the kernel cuts one message into datagrams of one length (UDP GSO),
//! of which only the last may be shorter. Any two replies to one client fit, whatever their lengths.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::BATCH;

/// Most datagrams of one message (`UDP_MAX_SEGMENTS` of the oldest kernels that cut).
const MAX_DATAGRAMS: usize = 64;
/// Most bytes of one message: what the length of an IP packet leaves behind the largest headers.
const MAX_BYTES: usize = 65_000;

/// One of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Local {
    pub(super) address: IpAddr,
    /// The index of its interface; 0 is any.
    pub(super) interface: u32,
}

/// Where a reply goes, and from which of our addresses if the socket has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) to: SocketAddr,
    pub(super) from: Option<Local>,
}

/// What the messages of one system call have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) from: Option<Local>,
    /// The length at which the kernel cuts; none for a reply that goes alone.
    pub(super) cut: Option<u16>,
}

/// Replies that go as one message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) to: SocketAddr,
    /// Which of [`Plan::order`].
    pub(super) replies: Range<usize>,
}

/// A reply as far as the plan is concerned. It is sorted by this: client by client, the longest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    route: Route,
    length: Reverse<usize>,
    index: usize,
}

/// The messages of one batch. Its memory is used again.
#[derive(Debug)]
pub(super) struct Plan {
    items: Vec<Item>,
    order: Vec<usize>,
    messages: Vec<Message>,
}

impl Plan {
    pub(super) fn new() -> Self {
        Self { items: Vec::with_capacity(BATCH), order: Vec::with_capacity(BATCH), messages: Vec::with_capacity(BATCH) }
    }

    /// Plans for replies, of which the route and the length are given. Without `group` each goes alone.
    pub(super) fn make(&mut self, replies: impl Iterator<Item = (Route, usize)>, group: bool) {
        self.items.clear();
        self.items.extend(replies.enumerate().map(|(index, (route, length))| Item {
            route,
            length: Reverse(length),
            index,
        }));
        self.items.sort_unstable();
        self.order.clear();
        self.messages.clear();
        for client in self.items.chunk_by(|a, b| a.route == b.route) {
            let mut rest = client;
            while let Some(first) = rest.first() {
                let length = first.length.0;
                let most = if group { (MAX_BYTES / length.max(1)).clamp(1, MAX_DATAGRAMS) } else { 1 };
                let alike = rest.iter().take(most).take_while(|item| item.length == first.length).count();
                let (alike, others) = rest.split_at(alike);
                // The shortest is the last: that way the most lengths are used up.
                let (last, others) = match others.split_last() {
                    Some((last, others)) if alike.len() < most => (Some(last), others),
                    _ => (None, others),
                };
                let start = self.order.len();
                self.order.extend(alike.iter().chain(last).map(|item| item.index));
                let replies = start..self.order.len();
                let cut = if replies.len() > 1 { u16::try_from(length).ok() } else { None };
                let kind = Kind { from: first.route.from, cut };
                self.messages.push(Message { kind, to: first.route.to, replies });
                rest = others;
            }
        }
        self.messages.sort_unstable_by_key(|message| message.kind);
    }

    /// The indices of the replies, those of one message one after another.
    pub(super) fn order(&self) -> &[usize] {
        &self.order
    }

    /// The messages, those of one kind one after another.
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(client: u16) -> Route {
        let from = Local { address: [127, 0, 0, 1].into(), interface: 0 };
        Route { to: SocketAddr::from(([10, 0, 0, 1], 1000 + client / 2)), from: (client % 2 == 1).then_some(from) }
    }

    /// The lengths of each message.
    fn planned(replies: &[(u16, usize)], group: bool) -> Vec<Vec<usize>> {
        let mut plan = Plan::new();
        // Nothing of an earlier batch is left.
        plan.make([(route(9), 1), (route(9), 2)].into_iter(), true);
        plan.make(replies.iter().map(|(client, length)| (route(*client), *length)), group);
        let mut sent = plan.order().to_vec();
        sent.sort_unstable();
        assert_eq!(sent, (0..replies.len()).collect::<Vec<_>>(), "each reply once");
        let ranges: usize = plan.messages().iter().map(|message| message.replies.len()).sum();
        assert_eq!(ranges, replies.len());
        assert!(plan.messages().is_sorted_by_key(|message| message.kind));
        let lengths = |message: &Message| {
            let indices = &plan.order()[message.replies.clone()];
            let lengths: Vec<_> = indices.iter().map(|index| replies[*index].1).collect();
            let alike = Route { to: message.to, from: message.kind.from };
            assert!(indices.iter().all(|index| route(replies[*index].0) == alike), "one client");
            match message.kind.cut {
                None => assert_eq!(lengths.len(), 1),
                Some(cut) => {
                    let (last, full) = lengths.split_last().unwrap();
                    assert!(!full.is_empty() && full.iter().all(|length| *length == usize::from(cut)));
                    assert!(*last <= usize::from(cut));
                }
            }
            assert!(lengths.len() <= MAX_DATAGRAMS && lengths.iter().sum::<usize>() <= MAX_BYTES);
            lengths
        };
        plan.messages().iter().map(lengths).collect()
    }

    #[test]
    fn replies_to_one_client_go_together_as_far_as_the_kernel_can_cut_them() {
        assert_eq!(planned(&[], true), Vec::<Vec<usize>>::new());
        assert_eq!(planned(&[(0, 50)], true), [[50]]);
        assert_eq!(planned(&[(0, 50), (0, 60)], true), [[60, 50]]);
        assert_eq!(planned(&[(0, 60), (0, 50), (0, 60)], true), [[60, 60, 50]]);
        let pairs = [(0, 70), (0, 80), (0, 90), (0, 70), (0, 80), (0, 90)];
        assert_eq!(planned(&pairs, true), [[80, 80, 70], [90, 90, 70]]);
        assert_eq!(planned(&pairs, false).len(), 6);
        // Clients, and addresses of ours, are kept apart.
        assert_eq!(planned(&[(0, 50), (1, 50), (2, 50)], true).len(), 3);
    }

    #[test]
    fn a_message_is_no_longer_than_the_kernel_takes() {
        assert_eq!(planned(&[(0, 1200); 60], true), [vec![1200; 54], vec![1200; 6]]);
        assert_eq!(planned(&[(0, 12); 70], true), [vec![12; 64], vec![12; 6]]);
    }

    proptest! {
        #[test]
        fn each_reply_goes_once_and_to_its_client(
            replies in prop::collection::vec((0_u16..6, 12_usize..40), 0..100),
            group in any::<bool>(),
        ) {
            planned(&replies, group);
        }
    }
}
