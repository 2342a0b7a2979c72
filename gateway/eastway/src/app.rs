//! The gateway process: build, bind, run, drain.
