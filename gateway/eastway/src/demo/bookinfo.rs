//! Bookinfo: the application of Istio's documentation, small enough to read, spread over clouds.
//!
//! ```text
//! kiosk ─> productpage ─┬─> details
//!                       └─> reviews v1 (no stars), v2 (black), v3 (red) ─> ratings (v2, v3 only)
//! ```
//!
//! Every service is a process of its own that speaks HTTP/1.1 and finds the others by name through one
//! DNS server, with a new connection for each call and no retries: what the network does is what the
//! caller sees. Every answer says who gave it and carries the answers it is made of ([`Answer`]), so a
//! client learns the whole chain of services, versions and clouds from the response alone. The header
//! [`END_USER`] goes along with every call that is made for a request.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Result, bail};

mod client;
mod page;
mod server;

pub use client::{Client, Header};

/// Port of every service.
pub const PORT: u16 = 9080;
/// Namespace of every service.
pub const NAMESPACE: &str = "bookinfo";
/// What is appended to a service's name to look it up.
pub const DOMAIN: &str = "bookinfo.svc.clusterset.local";
/// Header that says who reads the page; rules look at it.
pub const END_USER: &str = "end-user";
/// Header in which a sidecar says whose certificate the caller showed.
pub const CALLER: &str = "x-forwarded-client-cert";
/// Path that answers how often the service was asked.
pub const COUNTER: &str = "/demo/requests";
/// What comes before the status that the service is to answer everything with; 200: as ever.
pub const MISBEHAVE: &str = "/demo/status/";

/// One service of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// The page: calls details and reviews.
    Productpage,
    /// Facts about the book.
    Details,
    /// What readers write; v2 and v3 call ratings.
    Reviews,
    /// Stars.
    Ratings,
    /// Reads the page from another cloud.
    Kiosk,
}

impl Service {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Productpage => "productpage",
            Self::Details => "details",
            Self::Reviews => "reviews",
            Self::Ratings => "ratings",
            Self::Kiosk => "kiosk",
        }
    }

    /// What a client asks it for.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Productpage => "/productpage",
            Self::Details => "/details/0",
            Self::Reviews => "/reviews/0",
            Self::Ratings => "/ratings/0",
            Self::Kiosk => "/kiosk",
        }
    }

    /// What it calls, in the version given.
    #[must_use]
    pub fn calls(self, version: Version) -> &'static [Self] {
        match (self, version) {
            (Self::Productpage, _) => &[Self::Details, Self::Reviews],
            (Self::Reviews, Version(2 | 3)) => &[Self::Ratings],
            (Self::Kiosk, _) => &[Self::Productpage],
            (Self::Details | Self::Ratings | Self::Reviews, _) => &[],
        }
    }

    /// Its name in DNS.
    #[must_use]
    pub fn fqdn(self) -> String {
        format!("{}.{DOMAIN}", self.name())
    }
}

/// Version of a service: `v1`, `v2`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u8);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(number) = text.strip_prefix('v').and_then(|number| number.parse().ok()) else {
            bail!("{text:?} is not a version like v1");
        };
        Ok(Self(number))
    }
}

impl serde::Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Arguments of `eastway demo-app`.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "eastway demo-app")]
pub struct Args {
    /// Which service to be.
    #[arg(long, value_enum)]
    pub service: Service,
    /// Which version of it.
    #[arg(long, default_value = "v1")]
    pub version: Version,
    /// The cloud it runs in, as its answers say.
    #[arg(long)]
    pub cloud: String,
    /// Where to listen; calls go out from the same address.
    #[arg(long)]
    pub listen: SocketAddr,
    /// The DNS server that knows the other services.
    #[arg(long)]
    pub dns: SocketAddr,
}

/// Runs one service until the process is ended.
///
/// # Errors
/// Its address cannot be listened on.
pub fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(server::serve(args))?;
    Ok(ExitCode::SUCCESS)
}

/// What a service answers.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Answer {
    /// Who answered.
    #[serde(flatten)]
    pub by: Hop,
    /// Whom the sidecar beside it says it was called by: a SPIFFE id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// What this service itself contributes.
    pub content: serde_json::Value,
    /// The calls it made for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<Call>,
}

/// One service in a chain.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Hop {
    /// Which one.
    pub service: Service,
    /// In which version.
    pub version: Version,
    /// In which cloud.
    pub cloud: String,
}

/// One call of a service to another.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Call {
    /// The name that was looked up.
    pub name: String,
    /// What it resolved to.
    pub address: Option<IpAddr>,
    /// From the lookup to the last byte of the answer, milliseconds.
    pub ms: f64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a call ended.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// With an answer.
    Answer(Box<Answer>),
    /// Without one.
    Error(String),
}

impl Call {
    /// The answer, if there is one.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Answer(answer) => Some(answer),
            Outcome::Error(_) => None,
        }
    }

    /// Why there is no answer.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Answer(_) => None,
            Outcome::Error(error) => Some(error),
        }
    }
}

impl Answer {
    /// Everyone who took part, callers before those they called.
    #[must_use]
    pub fn chain(&self) -> Vec<Hop> {
        let mut chain = vec![self.by.clone()];
        chain.extend(self.calls.iter().filter_map(Call::answer).flat_map(Answer::chain));
        chain
    }

    /// Every call between services in it, as (from, to).
    #[must_use]
    pub fn edges(&self) -> Vec<(&Hop, &Hop)> {
        let mut edges = Vec::new();
        for answer in self.calls.iter().filter_map(Call::answer) {
            edges.push((&self.by, &answer.by));
            edges.extend(answer.edges());
        }
        edges
    }

    /// The first error below it, with the name that was called.
    #[must_use]
    pub fn first_error(&self) -> Option<String> {
        self.calls.iter().find_map(|call| match &call.outcome {
            Outcome::Answer(answer) => answer.first_error(),
            Outcome::Error(error) => Some(format!("{}: {error}", call.name)),
        })
    }

    /// Whether a call in it was answered from another cloud than it came from.
    #[must_use]
    pub fn crosses_clouds(&self) -> bool {
        self.edges().iter().any(|(from, to)| from.cloud != to.cloud)
    }

    /// The answer of `service` somewhere in it.
    #[must_use]
    pub fn find(&self, service: Service) -> Option<&Self> {
        if self.by.service == service {
            return Some(self);
        }
        self.calls.iter().filter_map(Call::answer).find_map(|answer| answer.find(service))
    }
}

#[cfg(test)]
mod tests;
