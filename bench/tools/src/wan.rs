//! The simulated WAN: two TUN devices, and what a long, narrow, bad line does to every packet between them.
//!
//! It works on IP packets, so it treats TCP, QUIC and WireGuard alike. Delay, jitter, loss, reordering, rate and the queue
//! in front of the rate are set for each direction. All chance comes from one seeded generator for each direction, so
//! that the same packets meet the same fate. [`queue`] decides, without a clock of its own; here are the devices and the timer.

use std::io::ErrorKind;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio_tun::Tun;

pub mod queue;

use queue::{Conditions, Queue};

/// Packets read from one device before the other has its turn.
const BATCH: usize = 64;
/// A packet is handed over so long before its time: about what it takes a virtual processor to wake up, there and at the
/// receiver. Waiting for the exact time in a loop would cost one of two processors.
const EARLY: Duration = Duration::from_micros(150);
/// What a TUN device can hand over at once.
const LARGEST: usize = 65_536;

/// Arguments of `eastway-bench wan`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Bytes of the largest packet
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// From tun-a to tun-b: delay=25,jitter=2 (milliseconds), loss=0.01, reorder=0.001,hold=5 (a share, and for how many
    /// milliseconds), rate=200 (Mbit/s), queue=2500000 (bytes)
    #[arg(long, default_value = "")]
    forth: Direction,
    /// From tun-b to tun-a
    #[arg(long, default_value = "")]
    back: Direction,
    /// Of the generator
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// [`Conditions`] as they are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Direction(pub Conditions);

impl FromStr for Direction {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut conditions = Conditions::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').with_context(|| format!("{part}: it is KEY=VALUE"))?;
            let value: f64 = value.parse().with_context(|| part.to_owned())?;
            ensure!(value.is_finite() && value >= 0.0, "{part}: not negative");
            let share = || if value <= 1.0 { Ok(value) } else { Err(anyhow::anyhow!("{part}: a share, 0 to 1")) };
            let milliseconds = || Duration::try_from_secs_f64(value / 1e3).context("too long");
            match key {
                "delay" => conditions.delay = milliseconds()?,
                "jitter" => conditions.jitter = milliseconds()?,
                "loss" => conditions.loss = share()?,
                "reorder" => conditions.reorder = share()?,
                "hold" => conditions.hold = milliseconds()?,
                "rate" => conditions.bytes_per_s = Some(value * 1e6 / 8.0).filter(|rate| *rate > 0.0),
                "queue" => conditions.queue_bytes = value,
                _ => bail!("{key}: delay, jitter, loss, reorder, hold, rate, queue"),
            }
        }
        Ok(Self(conditions))
    }
}

/// Joins the devices until it is killed.
///
/// # Errors
/// The devices cannot be made, for want of privileges, or fail.
#[tokio::main(flavor = "current_thread")]
pub async fn run(args: &Args) -> Result<()> {
    let (a, b) = (device("tun-a", args.mtu)?, device("tun-b", args.mtu)?);
    let mut forth = Queue::new(args.forth.0, args.seed);
    let mut back = Queue::new(args.back.0, args.seed.wrapping_add(1));
    let timer = Timer::new()?;
    let started = Instant::now();
    let (mut from_a, mut from_b) = (vec![0; LARGEST], vec![0; LARGEST]);
    loop {
        let taken = take(&a, &mut forth, started, &mut from_a)? + take(&b, &mut back, started, &mut from_b)?;
        give(&b, &mut forth, started);
        give(&a, &mut back, started);
        if taken > 0 {
            continue;
        }
        timer.set([forth.next(), back.next()].into_iter().flatten().min(), started)?;
        tokio::select! {
            read = a.recv(&mut from_a) => forth.put(started.elapsed(), &from_a[..read?]),
            read = b.recv(&mut from_b) => back.put(started.elapsed(), &from_b[..read?]),
            expired = timer.expired() => expired?,
        }
    }
}

fn device(name: &str, mtu: u16) -> Result<Tun> {
    let devices = Tun::builder().name(name).mtu(mtu.into()).up().build();
    devices.with_context(|| format!("make {name}"))?.pop().with_context(|| format!("no {name}"))
}

/// Reads what waits at a device, and gives how many packets that were.
fn take(device: &Tun, queue: &mut Queue, started: Instant, buffer: &mut [u8]) -> Result<usize> {
    for taken in 0..BATCH {
        match device.try_recv(buffer) {
            Ok(length) => queue.put(started.elapsed(), &buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(taken),
            Err(error) => return Err(error).context("read a device"),
        }
    }
    Ok(BATCH)
}

/// Writes what has arrived.
fn give(device: &Tun, queue: &mut Queue, started: Instant) {
    while let Some(packet) = queue.take(started.elapsed() + EARLY) {
        // What the device does not take is lost, on this line as on any other.
        let _sent = device.try_send(&packet);
    }
}

/// Tokio's own timers count milliseconds, which is too coarse for packets.
struct Timer(AsyncFd<rustix::fd::OwnedFd>);

impl Timer {
    fn new() -> Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[allow(deprecated, reason = "its successor is unsafe; what is given here owns its descriptor")]
        Ok(Self(AsyncFd::new(timer)?))
    }

    /// Expires at `at` after `started`, or never.
    fn set(&self, at: Option<Duration>, started: Instant) -> Result<()> {
        // Zero would turn it off.
        let left = at.map(|at| at.saturating_sub(started.elapsed() + EARLY).max(Duration::from_nanos(1)));
        let it_value = match left {
            Some(left) => Timespec { tv_sec: left.as_secs().try_into()?, tv_nsec: left.subsec_nanos().into() },
            None => Timespec { tv_sec: 0, tv_nsec: 0 },
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    async fn expired(&self) -> Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_as_they_are_written() {
        let Direction(conditions) = "delay=25,loss=0.01,rate=200,queue=2500000".parse().unwrap();
        assert_eq!(conditions.delay, Duration::from_millis(25));
        assert_eq!(conditions.loss, 0.01);
        assert_eq!(conditions.bytes_per_s, Some(25e6));
        assert_eq!(conditions.queue_bytes, 2.5e6);
        assert_eq!("".parse::<Direction>().unwrap(), Direction(Conditions::default()));
        for bad in ["delay", "delay=x", "loss=1.5", "loss=-1", "speed=3", "delay=inf"] {
            assert!(bad.parse::<Direction>().is_err(), "{bad}");
        }
    }
}
