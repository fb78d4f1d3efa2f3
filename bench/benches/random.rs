//! A core's random generator, against the system call that it spares.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::io;

use tsp_bench::Case;
use tsp_rt::Rt as _;

fn main() -> io::Result<()> {
    tsp_rt::run_here(async |rt| {
        let fill = || {
            let mut bytes = [0_u8; 32];
            rt.random(&mut bytes);
            bytes
        };
        let (first, second) = (fill(), fill());
        assert!(first != second && first != [0; 32]);

        tsp_bench::main(
            "random",
            vec![
                Case::new("32 bytes", fill),
                Case::new("32 bytes from the kernel", || {
                    let mut bytes = [0_u8; 32];
                    getrandom::fill(&mut bytes).unwrap();
                    bytes
                })
                .without_budget(),
            ],
        )
    })?
}
