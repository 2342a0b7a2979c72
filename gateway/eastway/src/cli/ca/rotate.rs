//! `eastway ca rotate`: a new CA key in three steps.

use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use eastway_identity::Ca;
use eastway_identity::ca::{MAX_LEAF_TTL, rotate};

use super::{Folder, NewCa, SecretArgs, date, secret};
use crate::cli::exit::Failure;
use crate::cli::output::print;

/// Arguments of `eastway ca rotate`.
#[derive(Debug, Args)]
#[command(mut_args(|arg| arg.global(true)), after_help = "\
The three steps:
  eastway ca rotate --config gateway.yaml begin      make the next CA; the old one still issues
      now give the output of `eastway peer export` to all peers: it pins both keys;
      `eastway check` says which of them do not accept the new one yet (EW411)
  eastway ca rotate --config gateway.yaml activate   the next CA issues; old certificates still count
      now wait until the last old certificate has ended, a day at most
  eastway ca rotate --config gateway.yaml finish     forget the old CA
      now give the output of `eastway peer export` to all peers again: it pins the new key alone

Without a step it says where the rotation stands. No link is cut if peers take the pins in between.

In Kubernetes, from any computer with the rights to the Secret: --kubernetes [--context NAME] instead of
--config, before or after the step; the pods see each step within a minute or two.")]
pub(super) struct RotateArgs {
    #[command(flatten)]
    folder: Folder,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(subcommand)]
    step: Option<Step>,
}

/// The steps.
#[derive(Debug, Subcommand)]
enum Step {
    /// Make the next CA and announce it; the old one still issues
    Begin(NewCa),
    /// Let the next CA issue; certificates of the old one still count
    Activate,
    /// Forget the old CA
    Finish {
        /// Do not wait until the old CA's certificates have ended: links that use one are cut
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn run(args: &RotateArgs) -> Result<(), Failure> {
    let now = SystemTime::now();
    if let Some(place) = args.secret.place(&args.folder)? {
        let domain = args.folder.trust_domain.as_deref();
        let step = |dir: &Path, found: &str| one_step(args.step.as_ref(), dir, domain.unwrap_or(found), now);
        return print(&secret::change(&place, args.step.is_some(), step)?);
    }
    let (dir, trust_domain) = args.folder.resolve()?;
    print(&one_step(args.step.as_ref(), &dir, &trust_domain, now)?)
}

/// Does a step, or none, and says where the rotation stands then.
fn one_step(step: Option<&Step>, dir: &Path, trust_domain: &str, now: SystemTime) -> Result<String, Failure> {
    let done = match step {
        None => Ca::load(dir).map_err(|error| Failure::failed(&error))?,
        Some(Step::Begin(_)) if trust_domain.is_empty() => {
            return Err(Failure::usage("--trust-domain DOMAIN is required: no installation here says it"));
        }
        Some(step) => match step {
            Step::Begin(new) => rotate::begin(dir, &new.options(trust_domain)),
            Step::Activate => rotate::activate(dir, now),
            Step::Finish { force } => rotate::finish(dir, now, *force),
        }
        .map_err(|error| Failure::failed(&error))?,
    };
    let stage = rotate::stage(dir).map_err(|error| Failure::failed(&error))?;
    Ok(report(&done, &stage, now))
}

fn report(ca: &Ca, stage: &rotate::Stage, now: SystemTime) -> String {
    let mut text = format!("issuing CA {} ends {}\n", ca.pin(), date(ca.not_after()));
    text.push_str(&match stage {
        rotate::Stage::Idle => "no rotation is under way\nnext: `begin`, when the CA nears its end or its key may be known\n".to_owned(),
        rotate::Stage::Begun { next } => format!(
            "next CA    {next} is announced\nnext: give the output of `eastway peer export` to all peers, then `activate`\n      once `eastway check` warns no more of peers without this key (EW411, EW415)\n"
        ),
        rotate::Stage::Activated { previous, since } => {
            let until = since.plus(MAX_LEAF_TTL).to_system();
            let wait = match until.duration_since(now) {
                Ok(left) if left > Duration::ZERO => format!("after {}, when its last certificate has ended, ", date(until)),
                Ok(_) | Err(_) => String::new(),
            };
            format!("old CA     {previous} counts still\nnext: {wait}`finish`\n")
        }
    });
    text
}
