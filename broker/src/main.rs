//! `tsp-broker`: arguments and exit codes, nothing else.

use std::{alloc::System, process::ExitCode};

use zeroizing_alloc::ZeroAlloc;

/// Wipes what is freed: copies of credentials and passphrases that parsers and buffers leave, on an admin's machine and in a bridge.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    tsp_broker::cli::main()
}
