#![no_main]
#![allow(dead_code, unused_imports, reason = "each target is one of these")]

#[path = "../../tests/it/properties/bodies/mod.rs"]
mod bodies;
#[path = "../../tests/it/properties/foreign.rs"]
mod foreign;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::encoder(bytes, foreign::sse_events));
