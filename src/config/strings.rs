//! Where settings come from: the environment, options laid over it, or a map in tests.

/// Where the strings come from: the environment, or a map in tests.
pub trait Strings {
    /// The value of `name`, if it is set.
    ///
    /// # Errors
    /// [`NotUnicode`] if it is set to bytes that are not UTF-8.
    fn get(&self, name: &str) -> Result<Option<String>, NotUnicode>;

    /// Every name that is set, in any order. Names that are not UTF-8 are left out.
    fn names(&self) -> Vec<String>;

    /// How to call `name` in a problem: where its value came from.
    fn label(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// A value is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUnicode;

/// The process's environment.
#[derive(Clone, Copy, Debug)]
pub struct Environment;

impl Strings for Environment {
    fn get(&self, name: &str) -> Result<Option<String>, NotUnicode> {
        std::env::var_os(name)
            .map(|value| value.into_string().map_err(|_| NotUnicode))
            .transpose()
    }

    fn names(&self) -> Vec<String> {
        std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .collect()
    }
}

/// Command line options laid over other strings.
#[derive(Debug)]
pub struct Overlay<'a, S> {
    /// Variable, option, value.
    pub options: Vec<(&'static str, &'static str, String)>,
    /// Where everything else comes from.
    pub below: &'a S,
}

impl<S: Strings> Strings for Overlay<'_, S> {
    fn get(&self, name: &str) -> Result<Option<String>, NotUnicode> {
        match self.options.iter().find(|(variable, ..)| *variable == name) {
            Some((.., value)) => Ok(Some(value.clone())),
            None => self.below.get(name),
        }
    }

    fn names(&self) -> Vec<String> {
        self.below.names()
    }

    fn label(&self, name: &str) -> String {
        match self.options.iter().find(|(variable, ..)| *variable == name) {
            Some((_, option, _)) => (*option).to_owned(),
            None => self.below.label(name),
        }
    }
}
