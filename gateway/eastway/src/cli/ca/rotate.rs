//! `eastway ca rotate`: a new CA key in three steps.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use eastway_identity::Ca;
use eastway_identity::ca::{MAX_LEAF_TTL, rotate};

use super::{Folder, NewCa, date};
use crate::cli::exit::Failure;
use crate::cli::output::print;

/// Arguments of `eastway ca rotate`.
#[derive(Debug, Args)]
#[command(after_help = "\
The three steps:
  eastway ca rotate --config gateway.yaml begin      make the next CA; the old one still issues
      now give the output of `eastway peer export` to all peers: it pins both keys;
      `eastway check` says which of them do not accept the new one yet (EW411)
  eastway ca rotate --config gateway.yaml activate   the next CA issues; old certificates still count
      now wait until the last old certificate has ended, a day at most
  eastway ca rotate --config gateway.yaml finish     forget the old CA
      now give the output of `eastway peer export` to all peers again: it pins the new key alone

Without a step it says where the rotation stands. No link is cut if peers take the pins in between.")]
pub(super) struct RotateArgs {
    #[command(flatten)]
    folder: Folder,
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
    let (dir, trust_domain) = args.folder.resolve()?;
    let now = SystemTime::now();
    let done = match &args.step {
        None => Ca::load(&dir).map_err(|error| Failure::failed(&error))?,
        Some(step) => match step {
            Step::Begin(new) => rotate::begin(&dir, &new.options(&trust_domain)),
            Step::Activate => rotate::activate(&dir, now),
            Step::Finish { force } => rotate::finish(&dir, now, *force),
        }
        .map_err(|error| Failure::failed(&error))?,
    };
    let stage = rotate::stage(&dir).map_err(|error| Failure::failed(&error))?;
    print(&report(&done, &stage, now))
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
