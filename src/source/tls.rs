//! The certificate of the client API: read from files, and read again when they change.

use std::{path::PathBuf, time::SystemTime};

use tsp_rt::tls::{ClientCertificates, ServerTls, Tickets};
use zeroize::Zeroizing;

use super::{
    Ask, Polled,
    file::{Digest, Reading, Watch, read_noted},
};
use crate::config::{CA_BYTES_MAX, CREDENTIAL_BYTES_MAX, Problem};

/// What the client API's TLS is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// `TSP_TLS_CERTIFICATE`.
    pub certificate: PathBuf,
    /// `TSP_TLS_KEY`.
    pub key: PathBuf,
    /// `TSP_TLS_CLIENT_CA`; with it, clients must show a certificate.
    pub client_ca: Option<PathBuf>,
    /// `TSP_TLS_CLIENT_NAMES`.
    pub client_names: Vec<String>,
}

/// Looks at the files.
#[derive(Debug)]
pub(crate) struct TlsSource {
    files: TlsFiles,
    tickets: Tickets,
    watch: Watch,
    /// What was wrong at the last look and has not been told: who replaces certificate and key replaces one of them first.
    doubted: Option<Vec<Problem>>,
}

impl TlsSource {
    pub(crate) fn new(files: TlsFiles) -> Result<Self, Problem> {
        let no_tickets = |why| Problem::new("TLS session tickets", format!("{why}"));
        Ok(Self {
            files,
            tickets: Tickets::new().map_err(no_tickets)?,
            watch: Watch::default(),
            doubted: None,
        })
    }

    /// Looks at the files, and reads them if they have changed or `ask` says so. What is wrong is told at once if `ask` says
    /// so, and otherwise when it is still wrong at the next look.
    pub(crate) fn poll(&mut self, ask: Ask, now: SystemTime) -> Polled<ServerTls> {
        let (files, tickets) = (&self.files, &self.tickets);
        let polled = self.watch.poll(ask, now, || load(files, tickets));
        let doubted = self.doubted.take();
        match (polled, ask) {
            (Polled::Failed(problems), Ask::IfChanged | Ask::News) => {
                self.doubted = Some(problems);
                Polled::StillFailed
            }
            (Polled::StillFailed, _) => doubted.map_or(Polled::StillFailed, Polled::Failed),
            (polled, _) => polled,
        }
    }
}

fn load(
    files: &TlsFiles,
    tickets: &Tickets,
) -> Reading<impl FnOnce() -> Result<ServerTls, Vec<Problem>>> {
    let mut digest = Digest::default();
    let mut stamps = Vec::new();
    let mut problems = Vec::new();
    let mut text = |name: &str, path: &PathBuf, bytes_max| {
        let text = read_noted(path, bytes_max, &mut digest, &mut stamps);
        text.unwrap_or_else(|why| {
            problems.push(Problem::new(name, format!("{} {why}", path.display())));
            Zeroizing::default()
        })
    };
    let chain = text("TSP_TLS_CERTIFICATE", &files.certificate, CA_BYTES_MAX);
    let key = text("TSP_TLS_KEY", &files.key, CREDENTIAL_BYTES_MAX);
    let clients = files.client_ca.as_ref().map(|path| ClientCertificates {
        roots_pem: text("TSP_TLS_CLIENT_CA", path, CA_BYTES_MAX).to_string(),
        names: files.client_names.clone(),
    });
    let digest = digest.finish();
    Reading {
        stamps,
        digest,
        state: move || {
            if !problems.is_empty() {
                return Err(problems);
            }
            ServerTls::strict(&chain, key.as_bytes(), clients.as_ref(), tickets).map_err(|why| {
                let what = "TSP_TLS_CERTIFICATE, TSP_TLS_KEY";
                let what = match clients {
                    None => what.to_owned(),
                    Some(_) => format!("{what}, TSP_TLS_CLIENT_CA"),
                };
                vec![Problem::new(what, why.to_string())]
            })
        },
    }
}
