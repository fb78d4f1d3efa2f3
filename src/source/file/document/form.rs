//! Reading TOML by hand: tables with names for messages, typed members, and every mistake with its line.

use std::{fmt, path::Path};

use toml::de::{DeTable, DeValue};

use crate::config::{PROBLEMS_MAX, Problem};

/// The text, and what is wrong with its form.
pub(super) struct Form<'a> {
    path: &'a Path,
    /// Where the text's lines end, ascending.
    line_ends: Vec<usize>,
    pub(super) problems: Vec<Problem>,
}

/// A table in the document: what to call it, where it starts, what is in it.
pub(super) struct Table<'d> {
    pub(super) what: String,
    pub(super) at: usize,
    pub(super) members: &'d DeTable<'d>,
}

/// Where a credential is: in the file itself, in a variable, in another file.
#[derive(Clone, Copy)]
pub(super) enum Credential<'a> {
    Inline(&'a str),
    Env(&'a str),
    File(&'a str),
}

impl<'a> Form<'a> {
    pub(super) fn new(path: &'a Path, text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            path,
            line_ends: ends.map(|(at, _)| at).collect(),
            problems: Vec::new(),
        }
    }

    /// File and line of an offset in the text.
    pub(super) fn place(&self, at: usize) -> String {
        let line = self.line_ends.partition_point(|end| *end < at) + 1;
        format!("{}:{line}", self.path.display())
    }

    pub(super) fn problem(&mut self, at: usize, why: impl Into<String>) {
        // Beyond the bound it only matters that there are more.
        if self.problems.len() <= PROBLEMS_MAX {
            let place = self.place(at);
            self.problems.push(Problem::new(place, why));
        }
    }

    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        if self.problems.len() > PROBLEMS_MAX {
            self.problems.truncate(PROBLEMS_MAX);
            self.problems.push(Problem::new(
                self.path.display().to_string(),
                "has more problems",
            ));
        }
        self.problems
    }

    /// The number in `member`, if there is one. Says nothing if there is not.
    pub(super) fn kms_id(&mut self, table: &Table<'_>, member: &str) -> Option<i64> {
        integer(table.member(member)?.1)
    }

    pub(super) fn only_members(&mut self, table: &Table<'_>, known: &[&str]) {
        for key in table.members.keys() {
            if known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let nearest = known
                .iter()
                .min_by_key(|known| strsim::damerau_levenshtein(known, key.get_ref()));
            let hint = nearest.map_or_else(String::new, |name| {
                format!("; the nearest known one is {name}")
            });
            let why = format!(
                "{}: {:?} is not known here{hint}",
                table.what,
                Short(key.get_ref())
            );
            self.problem(key.span().start, why);
        }
    }

    pub(super) fn optional<'d, T>(
        &mut self,
        table: &Table<'d>,
        member: &str,
        read: impl FnOnce(&mut Self, &str, usize, &'d DeValue<'d>) -> Option<T>,
    ) -> Option<T> {
        let (at, value) = table.member(member)?;
        read(self, &format!("{}: {member}", table.what), at, value)
    }

    pub(super) fn required<'d, T>(
        &mut self,
        table: &Table<'d>,
        member: &str,
        read: impl FnOnce(&mut Self, &str, usize, &'d DeValue<'d>) -> Option<T>,
    ) -> Option<T> {
        if table.member(member).is_none() {
            self.problem(table.at, format!("{}: {member} is missing", table.what));
        }
        self.optional(table, member, read)
    }

    pub(super) fn required_table<'d>(
        &mut self,
        table: &Table<'d>,
        member: &str,
        known: &[&str],
    ) -> Option<Table<'d>> {
        let what = format!("{}: {member}", table.what);
        match table.member(member) {
            Some((at, DeValue::Table(members))) => {
                let table = Table { what, at, members };
                self.only_members(&table, known);
                Some(table)
            }
            Some((at, _)) => {
                self.problem(at, format!("{what} must be a table"));
                None
            }
            None => {
                self.problem(table.at, format!("{what} is missing"));
                None
            }
        }
    }

    /// All tables of an array, `[[member]]`. Nothing if it is not there.
    pub(super) fn tables<'d>(&mut self, table: &Table<'d>, member: &str) -> Vec<Table<'d>> {
        let Some((at, value)) = table.member(member) else {
            return Vec::new();
        };
        let DeValue::Array(array) = value else {
            self.problem(
                at,
                format!("{}: {member} must be an array of tables", table.what),
            );
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(array.len());
        for (index, item) in array.iter().enumerate() {
            let at = item.span().start;
            let DeValue::Table(members) = item.get_ref() else {
                self.problem(
                    at,
                    format!("{}: {member} must hold tables only", table.what),
                );
                continue;
            };
            let mut item = Table {
                what: String::new(),
                at,
                members,
            };
            let name = match item.member("id").map(|(_, value)| value) {
                Some(DeValue::String(id)) => format!("{:?}", Short(id)),
                Some(DeValue::Integer(id)) => Short(&id.to_string()).to_string(),
                _ => format!("number {}", index + 1),
            };
            item.what = match member {
                "assignments" => format!("{}: assignment {}", table.what, index + 1),
                _ => format!("{member} {name}"),
            };
            tables.push(item);
        }
        tables
    }

    pub(super) fn string<'d>(
        &mut self,
        what: &str,
        at: usize,
        value: &'d DeValue<'d>,
    ) -> Option<&'d str> {
        let text = value.as_str().filter(|text| !text.is_empty());
        text.or_else(|| self.wrong(what, at, "must be a string, and not empty"))
    }

    pub(super) fn boolean(&mut self, what: &str, at: usize, value: &DeValue<'_>) -> Option<bool> {
        value
            .as_bool()
            .or_else(|| self.wrong(what, at, "must be true or false"))
    }

    pub(super) fn integer(&mut self, what: &str, at: usize, value: &DeValue<'_>) -> Option<i64> {
        integer(value).or_else(|| self.wrong(what, at, "must be a whole number"))
    }

    pub(super) fn credential<'d>(
        &mut self,
        what: &str,
        at: usize,
        value: &'d DeValue<'d>,
    ) -> Option<Credential<'d>> {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            return Some(Credential::Inline(text));
        }
        if let DeValue::Table(members) = value
            && members.len() == 1
        {
            let table = Table {
                what: what.to_owned(),
                at,
                members,
            };
            if let Some((at, name)) = table.member("env") {
                return self.string(what, at, name).map(Credential::Env);
            }
            if let Some((at, path)) = table.member("file") {
                return self.string(what, at, path).map(Credential::File);
            }
        }
        self.wrong(
            what,
            at,
            "must be a string, { env = \"NAME\" } or { file = \"PATH\" }",
        )
    }

    fn wrong<T>(&mut self, what: &str, at: usize, why: &str) -> Option<T> {
        self.problem(at, format!("{what} {why}"));
        None
    }
}

impl<'d> Table<'d> {
    /// Where a member's value starts, and the value.
    pub(super) fn member(&self, name: &str) -> Option<(usize, &'d DeValue<'d>)> {
        self.members
            .iter()
            .find(|(key, _)| key.get_ref() == name)
            .map(|(_, value)| (value.span().start, value.get_ref()))
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let DeValue::Integer(number) = value else {
        return None;
    };
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// The beginning of a name from the file, so that a message stays one short line.
pub(super) struct Short<'a>(pub(super) &'a str);

impl Short<'_> {
    const CHARS_MAX: usize = 64;

    fn cut(&self) -> String {
        let cut: String = self.0.chars().take(Self::CHARS_MAX).collect();
        let dots = if cut.len() < self.0.len() { "…" } else { "" };
        format!("{cut}{dots}")
    }
}

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.cut(), f)
    }
}

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cut())
    }
}
