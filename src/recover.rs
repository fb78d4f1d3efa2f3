//! `tsp recover`: opens EDEKs and tenant secrets with nothing but the tenants' KMSs, when there is no proxy to ask.
//!
//! It prints keys. So standard output has what was asked for and nothing else, and everything for a person goes to
//! standard error. Assignments do not matter here: whoever has the credentials of a KMS config may open what it wrapped.

mod input;
mod opener;
mod output;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};
use tsp_kms::Kms;
use zeroize::Zeroizing;

use self::{input::Input, opener::Opener, output::Output};
use crate::{
    RunError,
    config::{self, Environment, Problem},
    source,
};

/// Largest input, in bytes: about a million EDEKs. More is split, and given to as many processes as one likes.
const INPUT_BYTES_MAX: u64 = 512 << 20;

/// How many are opened at one time. Results come in the input's order all the same.
const AT_ONE_TIME: usize = 8;

/// What is said before the first key.
const WARNING: &str = "recover prints keys, in the clear, on standard output: mind where that goes, and who reads along";

/// Options of `tsp recover`.
#[derive(Debug, Default)]
pub struct RecoverOptions {
    /// The configuration file; else the one that `TSP_CONFIG_FILE` names, or a broker.
    pub config: Option<PathBuf>,
    /// What to open; standard input otherwise.
    pub input: Option<PathBuf>,
    /// The tenant that EDEKs without a tenant belong to.
    pub tenant: Option<String>,
    /// Derivation paths: print the keys derived for them instead of the secrets.
    pub derive: Vec<String>,
}

/// Opens what the input holds and writes it to `out`. `tell` hears what a person should know, line by line.
///
/// # Errors
/// [`RunError::Configuration`] if nothing could be tried; [`RunError::Unrecovered`] if something could not be opened.
pub fn recover(
    options: &RecoverOptions,
    out: &mut impl Write,
    tell: &mut impl FnMut(&str),
) -> Result<(), RunError> {
    let kms = configs(options, tell).map_err(RunError::Configuration)?;
    let tenants_write = source::is_broker(options.config.as_deref());
    let destinations =
        config::destinations(&Environment, tenants_write).map_err(RunError::Configuration)?;
    let destinations = Arc::new(destinations);
    let input = read_input(options).map_err(|problem| RunError::Configuration(vec![problem]))?;
    tell(WARNING);
    let of = input.items.len();
    let mut failed = 0;
    let written = tsp_rt::run_here(|rt| {
        let opener = Opener::new(rt, &kms, &destinations, AT_ONE_TIME);
        let failed = &mut failed;
        async move {
            let mut output = Output::new(&input, &options.derive, out);
            output.begin()?;
            let mut opened = stream::iter(input.items.iter().enumerate())
                .map(|(index, item)| opener.open(index, item))
                .buffered(AT_ONE_TIME);
            let mut items = input.items.iter();
            while let (Some(result), Some(item)) = (opened.next().await, items.next()) {
                if let Err(why) = &result {
                    *failed += 1;
                    tell(&format!("{}: {why}", item.place));
                }
                output.push(item, result.ok().flatten().as_ref())?;
            }
            output.end()
        }
    });
    written
        .and_then(|written| written)
        .map_err(|why| RunError::Internal(format!("standard output takes no more: {why}")))?;
    if failed > 0 {
        return Err(RunError::Unrecovered { failed, of });
    }
    Ok(())
}

/// The KMS configs that can be used. What is wrong with the others is told, and may not matter.
fn configs(
    options: &RecoverOptions,
    tell: &mut impl FnMut(&str),
) -> Result<BTreeMap<i32, Kms>, Vec<Problem>> {
    let (loaded, not_of_now) = source::look_once(options.config.as_deref())?;
    if let Some(problem) = not_of_now {
        tell(&problem.to_string());
    }
    for problem in &loaded.left_out {
        tell(&problem.to_string());
    }
    let mut usable = BTreeMap::new();
    for config in loaded.kms {
        match tsp_shards::validate_kms(&config) {
            Ok(kms) => {
                // What is no number of a KMS config stands in no EDEK.
                if let Ok(id) = i32::try_from(config.id) {
                    usable.insert(id, kms);
                }
            }
            Err(why) => tell(&Problem::new(format!("kms {}", config.id), why).to_string()),
        }
    }
    Ok(usable)
}

fn read_input(options: &RecoverOptions) -> Result<Input, Problem> {
    let place = match &options.input {
        Some(path) => path.display().to_string(),
        None => "standard input".to_owned(),
    };
    let problem = |why: String| Problem::new(place.clone(), why);
    let read = match &options.input {
        Some(path) => read_bounded(open(path).map_err(|why| problem(why.to_string()))?),
        None => read_bounded(io::stdin().lock()),
    };
    let text = read.map_err(problem)?;
    let input = input::parse(&text, options.tenant.as_deref()).map_err(problem)?;
    if !options.derive.is_empty() {
        let nobodys = input.items.iter().find(|item| item.tenant.is_none());
        if let Some(item) = nobodys {
            let why = "keys are derived for a tenant: say which with --tenant";
            return Err(problem(format!("{}: {why}", item.place)));
        }
    }
    Ok(input)
}

fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// All of it. Wiped, although it should hold nothing but what is wrapped.
fn read_bounded(input: impl Read) -> Result<Zeroizing<String>, String> {
    let mut bytes = Vec::new();
    input
        .take(INPUT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|why| format!("cannot be read: {why}"))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(format!("has more than {INPUT_BYTES_MAX} bytes; split it"));
    }
    String::from_utf8(bytes)
        .map(Zeroizing::new)
        .map_err(|_| "is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests;
