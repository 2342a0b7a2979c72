//! A conversation by UDP that goes on and on, from one port: how much of it is lost, and for how long nobody answers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::lab::place::Place;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the last answers are waited for.
const LAST: Duration = Duration::from_secs(1);

/// Answers each packet that comes to `address` with itself, until the place ends or the task is aborted.
///
/// # Errors
/// The address is taken.
pub async fn echo(place: &Place, address: SocketAddr) -> Result<JoinHandle<()>> {
    let socket = place.run(async move { Ok(UdpSocket::bind(address).await?) }).await.context("bind an echo")?;
    Ok(place.spawn(async move {
        let mut packet = vec![0; 65_536];
        loop {
            // That somebody is gone is no reason to end.
            let Ok((length, from)) = socket.recv_from(&mut packet).await else { continue };
            socket.send_to(packet.get(..length).unwrap_or_default(), from).await.ok();
        }
    }))
}

/// A conversation that goes on until it is stopped: a question every 10 ms, whether or not earlier ones were answered.
#[derive(Debug)]
pub struct Talk {
    stop: watch::Sender<bool>,
    heard: watch::Receiver<Talked>,
    task: JoinHandle<Result<()>>,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Talked {
    /// Questions.
    pub asked: u32,
    /// Those that were answered.
    pub answered: u32,
    /// Longest time in which no answer came.
    pub longest_silence: Duration,
}

impl Talk {
    /// Begins one from a port of its own at `source`.
    #[must_use]
    pub fn start(place: &Place, source: IpAddr, target: SocketAddr) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (tell, heard) = watch::channel(Talked::default());
        let task = place.spawn(async move { talk(source, target, stopped, tell).await });
        Self { stop, heard, task }
    }

    /// How it went so far.
    #[must_use]
    pub fn so_far(&self) -> Talked {
        *self.heard.borrow()
    }

    /// Ends it, with the answers that are still on their way.
    ///
    /// # Errors
    /// The port could not be had.
    pub async fn stop(self) -> Result<Talked> {
        self.stop.send(true).ok();
        self.task.await.context("the conversation was aborted")??;
        let talked = *self.heard.borrow();
        Ok(talked)
    }
}

async fn talk(
    source: IpAddr,
    target: SocketAddr,
    mut stopped: watch::Receiver<bool>,
    tell: watch::Sender<Talked>,
) -> Result<()> {
    let socket = UdpSocket::bind((source, 0)).await.context("bind")?;
    socket.connect(target).await.context("connect")?;
    let mut pauses = tokio::time::interval(PAUSE);
    let mut last = Instant::now();
    let mut buffer = [0; 64];
    let mut hear = |tell: &watch::Sender<Talked>| {
        let silence = std::mem::replace(&mut last, Instant::now()).elapsed();
        tell.send_modify(|talked| {
            talked.answered += 1;
            talked.longest_silence = talked.longest_silence.max(silence);
        });
    };
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            received = socket.recv(&mut buffer) => if received.is_ok() { hear(&tell) },
            _ = pauses.tick() => {
                let number = tell.borrow().asked.to_be_bytes();
                // That nobody is there is an answer, too.
                socket.send(&number).await.ok();
                tell.send_modify(|talked| talked.asked += 1);
            }
        }
    }
    while tell.borrow().answered < tell.borrow().asked
        && let Ok(Ok(_)) = tokio::time::timeout(LAST, socket.recv(&mut buffer)).await
    {
        hear(&tell);
    }
    Ok(())
}
