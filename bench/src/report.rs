//! What a bench says when it runs as a test: in the form of the other tests, so that whoever counts those counts these.

use std::{
    io::{self, Write as _},
    process,
};

use crate::budget::{self, Cost};

/// Exit status of a Rust test that failed.
const FAILED: i32 = 101;

/// The results of one program.
#[derive(Debug)]
pub struct Report {
    group: &'static str,
    passed: usize,
    findings: Vec<String>,
}

impl Report {
    /// Begins, for a program of this name.
    #[must_use]
    pub fn new(group: &'static str) -> Self {
        Self {
            group,
            passed: 0,
            findings: Vec::new(),
        }
    }

    /// Something worked.
    ///
    /// # Errors
    /// If standard output is gone.
    pub fn passed(&mut self, name: &str) -> io::Result<()> {
        self.passed += 1;
        writeln!(io::stdout(), "test {}/{name} ... ok", self.group)
    }

    /// Compares with the budget, one test for all figures, and prints them.
    ///
    /// # Errors
    /// If standard output or the budget is gone.
    pub fn compare(&mut self, cost: Cost, figures: &[(&str, f64)]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for (name, figure) in figures {
            writeln!(
                out,
                "{figure:14.2} {} of {}/{name}",
                cost.name(),
                self.group
            )?;
        }
        drop(out);
        let findings = budget::check(cost, self.group, figures)?;
        if findings.is_empty() {
            return self.passed(cost.name());
        }
        self.findings.extend(findings);
        Ok(())
    }

    /// Ends the program, in failure if a figure has left its budget.
    ///
    /// # Errors
    /// If standard output is gone.
    pub fn end(self) -> io::Result<()> {
        let failed = self.findings.len();
        let mut out = io::stdout().lock();
        for finding in &self.findings {
            writeln!(out, "\n{finding}")?;
        }
        let result = if failed == 0 { "ok" } else { "FAILED" };
        writeln!(
            out,
            "\ntest result: {result}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out",
            self.passed
        )?;
        if failed > 0 {
            process::exit(FAILED);
        }
        Ok(())
    }
}
