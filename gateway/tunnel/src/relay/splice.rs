//! Carries bytes between the two halves of a pipe.

use tokio::time::sleep;

use super::table::Ticket;
use crate::code::ResetCode;
use crate::stream::{RecvHalf, SendHalf, TunnelStream};

/// Until both directions have ended, or the pair may be relayed for no more.
pub(super) async fn splice(near: TunnelStream, far: TunnelStream, ticket: &Ticket) {
    let ((mut to_near, mut from_near), (mut to_far, mut from_far)) = (near.split(), far.split());
    let both = async {
        tokio::join!(
            one_way(&mut from_near, &mut to_far, ticket, false),
            one_way(&mut from_far, &mut to_near, ticket, true)
        )
    };
    if ticket.revoked().run_until_cancelled(both).await.is_none() {
        for (send, recv) in [(to_near, from_near), (to_far, from_far)] {
            cut(send, recv);
        }
    }
}

fn cut(mut send: SendHalf, mut recv: RecvHalf) {
    send.reset(ResetCode::PermissionDenied);
    recv.stop(ResetCode::PermissionDenied);
}

async fn one_way(from: &mut RecvHalf, to: &mut SendHalf, ticket: &Ticket, back: bool) {
    loop {
        let chunk = match from.read().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return to.finish(),
            Err(error) => return to.reset(error.code()),
        };
        let Some(pause) = ticket.spend(back, chunk.len()) else {
            to.reset(ResetCode::Overloaded);
            return from.stop(ResetCode::Overloaded);
        };
        if !pause.is_zero() {
            sleep(pause).await;
        }
        if let Err(error) = to.write(chunk).await {
            return from.stop(error.code());
        }
    }
}
