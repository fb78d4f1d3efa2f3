//! The configuration file's content: walks the TOML by hand, so that all mistakes are found at once, each with its
//! line, and so that no message quotes a value. (An error of serde's would: "invalid type: string \"the secret\"".)

mod form;
mod kms;

use std::{collections::HashMap, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use tsp_wire::{
    TenantId,
    snapshot::{AssignmentDoc, TenantDoc},
};

use self::{
    form::{Form, Table},
    kms::RawKms,
};
use super::{super::Loaded, read::Files};
use crate::config::{Problem, Strings};

/// The one version of the file's format.
const FORMAT_VERSION: i64 = 1;

/// Reads the file and what it names. Gives its `secrets_file` too.
///
/// # Errors
/// Everything that is wrong, if the file as a whole cannot be used.
pub(super) fn load<S: Strings>(
    files: &mut Files<'_, S>,
) -> Result<(Loaded, Option<String>), Vec<Problem>> {
    let path = files.path();
    let text = files
        .config()
        .map_err(|why| vec![Problem::new(path.display().to_string(), why)])?;
    let mut form = Form::new(path, &text);
    let document = form.parse(&text);
    if !form.problems.is_empty() {
        return Err(form.into_problems());
    }

    let secrets_file = form.secrets_file(&document);
    let (kms, tenants) = form.document(&document);
    let (mut left_out, mut unusable) = (Vec::new(), Vec::new());
    let mut loaded = Vec::with_capacity(kms.len());
    for raw in kms {
        let (at, id) = (raw.at, raw.id);
        match raw.resolve(files) {
            Ok(doc) => loaded.push(doc),
            Err(whys) => {
                unusable.push(id);
                let problem =
                    |why| Problem::new(form.place(at), format!("kms {id}: {why}; it is left out"));
                left_out.extend(whys.into_iter().map(problem));
            }
        }
    }
    if form.problems.is_empty() && loaded.is_empty() && !left_out.is_empty() {
        // Serving nobody is not what the author of the file wants.
        form.problems.push(Problem::new(
            path.display().to_string(),
            "none of its KMS configs can be used",
        ));
    }
    if form.problems.is_empty() {
        let loaded = Loaded {
            kms: loaded,
            unusable,
            tenants,
            left_out,
            // The file is the operator's own.
            allow_local: true,
            age: Duration::ZERO,
        };
        return Ok((loaded, secrets_file));
    }
    form.problems.extend(left_out);
    Err(form.into_problems())
}

/// Reads where the file says that tenant secrets are, and nothing else.
///
/// # Errors
/// What keeps it from being read.
pub(super) fn secrets_file<S: Strings>(
    files: &mut Files<'_, S>,
) -> Result<Option<String>, Vec<Problem>> {
    let path = files.path();
    let text = files
        .config()
        .map_err(|why| vec![Problem::new(path.display().to_string(), why)])?;
    let mut form = Form::new(path, &text);
    let document = form.parse(&text);
    let secrets_file = form.secrets_file(&document);
    if form.problems.is_empty() {
        Ok(secrets_file)
    } else {
        Err(form.into_problems())
    }
}

/// The file itself, as a table.
fn top<'d>(document: &'d Spanned<DeTable<'d>>) -> Table<'d> {
    Table {
        what: "the file".to_owned(),
        at: 0,
        members: document.get_ref(),
    }
}

impl Form<'_> {
    /// Reads the TOML, as far as it is TOML.
    fn parse<'d>(&mut self, text: &'d str) -> Spanned<DeTable<'d>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            self.problem(at, error.message().to_owned());
        }
        document
    }

    fn secrets_file<'d>(&mut self, document: &'d Spanned<DeTable<'d>>) -> Option<String> {
        let named = self.optional(&top(document), "secrets_file", Self::string);
        named.map(str::to_owned)
    }

    fn document<'d>(
        &mut self,
        document: &'d Spanned<DeTable<'d>>,
    ) -> (Vec<RawKms<'d>>, Vec<TenantDoc>) {
        let top = top(document);
        self.only_members(&top, &["version", "secrets_file", "kms", "tenant"]);
        if let Some(version) = self.required(&top, "version", Self::integer)
            && version != FORMAT_VERSION
        {
            let why = format!("version is {version}; this program reads version {FORMAT_VERSION}");
            self.problem(0, why);
        }

        let mut configs = HashMap::new();
        let mut kms = Vec::new();
        for table in self.tables(&top, "kms") {
            let raw = self.kms(&table);
            if let Some(id) = self.kms_id(&table, "id")
                && let Some(first) = configs.insert(id, table.at)
            {
                let first = self.place(first);
                self.problem(
                    table.at,
                    format!("kms {id} is there twice, first at {first}"),
                );
            }
            kms.extend(raw);
        }

        let mut ids = HashMap::new();
        let mut tenants = Vec::new();
        for table in self.tables(&top, "tenant") {
            let Some(tenant) = self.tenant(&table, &configs) else {
                continue;
            };
            if let Some(first) = ids.insert(tenant.id.clone(), table.at) {
                let first = self.place(first);
                self.problem(
                    table.at,
                    format!("{} is there twice, first at {first}", table.what),
                );
            }
            tenants.push(tenant);
        }
        (kms, tenants)
    }

    fn tenant(&mut self, table: &Table<'_>, configs: &HashMap<i64, usize>) -> Option<TenantDoc> {
        self.only_members(table, &["id", "assignments", "logging"]);
        // What is in it is the logdriver's, which reads the same file.
        if let Some((at, value)) = table.member("logging")
            && !matches!(value, DeValue::Table(_))
        {
            self.problem(at, format!("{}: logging must be a table", table.what));
        }
        let id = self.required(table, "id", Self::string);
        if id.is_some_and(|id| !TenantId::is_valid(id)) {
            let max = TenantId::BYTES_MAX;
            let why = format!(
                "{}: id is not 1 to {max} bytes without control characters",
                table.what
            );
            self.problem(table.at, why);
        }
        let mut assignments: Vec<AssignmentDoc> = Vec::new();
        for table in self.tables(table, "assignments") {
            self.only_members(&table, &["kms", "active", "primary"]);
            let kms = self.kms_id(&table, "kms");
            let active = self
                .optional(&table, "active", Self::boolean)
                .unwrap_or(true);
            let primary = self
                .optional(&table, "primary", Self::boolean)
                .unwrap_or(false);
            if primary && !active {
                self.problem(
                    table.at,
                    format!("{}: a primary config must be active", table.what),
                );
            }
            let Some(kms) = kms else {
                self.required(&table, "kms", Self::integer);
                continue;
            };
            if !configs.contains_key(&kms) {
                self.problem(
                    table.at,
                    format!("{}: there is no [[kms]] with id {kms}", table.what),
                );
            }
            if assignments.iter().any(|other| other.kms == kms) {
                self.problem(
                    table.at,
                    format!("{}: kms {kms} is assigned twice", table.what),
                );
            }
            if primary && assignments.iter().any(|other| other.primary) {
                self.problem(
                    table.at,
                    format!("{}: only one config can be primary", table.what),
                );
            }
            assignments.push(AssignmentDoc {
                kms,
                active,
                primary,
            });
        }
        Some(TenantDoc {
            id: id?.to_owned(),
            assignments,
        })
    }
}
