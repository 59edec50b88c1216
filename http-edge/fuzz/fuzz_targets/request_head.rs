#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hedgerow_entry_fuzz::request_head::request_head(bytes));
