#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hedgerow_mesh_fuzz::proto::frames(bytes));
