//! This program once more, under one of valgrind's tools.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// One run of a tool, and the folder that it writes to.
pub(crate) struct Valgrind {
    tool: &'static str,
    folder: TempDir,
}

impl Valgrind {
    pub(crate) fn new(tool: &'static str) -> Self {
        Self {
            tool,
            folder: TempDir::new().expect("a temporary folder can be made"),
        }
    }

    /// A file in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs this program with `arguments` under the tool with its `options`, to a good end.
    pub(crate) fn run(&self, options: &[&str], arguments: &[&str]) {
        let log = self.path("log");
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "valgrind"])
            .arg(format!("--tool={}", self.tool))
            .arg(format!("--log-file={}", log.display()))
            .args(options)
            .arg(env::current_exe().expect("this program has a path"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .expect("`./x setup` installs valgrind and setpriv");
        assert!(
            status.success(),
            "valgrind: {status}: {}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
    }
}
