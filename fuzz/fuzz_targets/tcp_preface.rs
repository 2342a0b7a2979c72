#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| eastway_fuzz::links::tcp_preface(bytes));
