//! `tsp-broker`: arguments and exit codes, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    tsp_broker::cli::main()
}
