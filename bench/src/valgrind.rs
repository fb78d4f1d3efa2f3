//! This program once more, under one of valgrind's tools, to count what seconds cannot tell.
//!
//! What valgrind runs on is a CPU of its own: on every x86-64 with AVX2 it has AES and carry-less multiplication, AVX and
//! AVX2, and neither AVX-512 nor the SHA instructions. So code that chooses by CPU chooses the same everywhere.

use std::{
    env, fs,
    hint::black_box,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// Ends a phase of a program under [`instructions`]. Its name is known to valgrind.
#[inline(never)]
pub fn phase() {
    black_box(());
}

/// Does what counts. Its name is known to valgrind, so it stays on the stack meanwhile: no inlining, no tail call.
#[inline(never)]
pub fn measured(work: &mut dyn FnMut()) {
    work();
    black_box(());
}

/// One run of a tool, and the folder that it writes to.
#[derive(Debug)]
pub struct Valgrind {
    tool: &'static str,
    folder: TempDir,
}

impl Valgrind {
    /// A run of `tool` to be.
    ///
    /// # Errors
    /// If no temporary folder can be made.
    pub fn new(tool: &'static str) -> io::Result<Self> {
        let folder = TempDir::new()?;
        Ok(Self { tool, folder })
    }

    /// A file in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs this program with `arguments` under the tool with its `options`, to a good end.
    ///
    /// # Errors
    /// If valgrind is not there, or the program fails under it.
    pub fn run(&self, options: &[&str], arguments: &[&str]) -> io::Result<()> {
        let log = self.path("log");
        // Ends with us, also if we are killed.
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "valgrind"])
            .arg(format!("--tool={}", self.tool))
            .arg(format!("--log-file={}", log.display()))
            .args(options)
            .arg(env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string(&log).unwrap_or_default();
        let why = format!("valgrind, which `./x setup` installs, ended with {status}: {said}");
        Err(io::Error::other(why))
    }
}

/// Instructions between the first and the second call of [`phase`], the third and the fourth, and so on, of this
/// program run with `arguments`. Those count that are executed inside the functions of these names; inside two of them
/// they do not, inside three they do.
///
/// # Errors
/// As [`Valgrind::run`], and if what valgrind writes makes no sense.
pub fn instructions(arguments: &[&str], inside: &[&str]) -> io::Result<Vec<u64>> {
    let run = Valgrind::new("callgrind")?;
    let file = run.path("profile");
    let mut options = vec![
        format!("--callgrind-out-file={}", file.display()),
        format!("--dump-before={}::phase*", module_path!()),
        "--collect-atstart=no".to_owned(),
    ];
    options.extend(
        inside
            .iter()
            .map(|name| format!("--toggle-collect={name}*")),
    );
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    run.run(&options, arguments)?;
    let mut counts = Vec::new();
    // Each call writes a numbered file with what was counted since the one before.
    for number in (2..).step_by(2) {
        let part = run.path(&format!("profile.{number}"));
        if !part.exists() {
            break;
        }
        counts.push(total(&part)?);
    }
    Ok(counts)
}

/// The sum in a profile: its line `totals: 1234`.
fn total(profile: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(profile)?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals:"));
    line.and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| io::Error::other("a profile of callgrind's has no total"))
}
