//! The binary of the entry: see the library beside it.

use std::process::ExitCode;

use hedgerow_process::exit::report;

fn main() -> ExitCode {
    report(hedgerow_entry::entry())
}
