//! The thread that stores what shards offer, so that a slow disk or a lock that somebody else holds delays no request but
//! those that wait for a new secret, and neither probes nor refreshes.

use std::{io, path::Path, thread, time::SystemTime};

use crossbeam_channel::{Receiver, Sender};
use time::OffsetDateTime;
use tsp_rt::mailbox;
use tsp_shards::{SecretNotStored, SecretOffer};
use tsp_wire::snapshot::TenantSecretDoc;

use super::{
    Secrets, Taken,
    broker::BrokerStore,
    file::{Edited, SecretsFile},
};
use crate::{config::Problem, control::Command};

/// Offers that wait for the keeper. It takes all that wait at one time, so this is as many creations as one write of the
/// file answers; what does not fit is told to come back.
pub(crate) const OFFERS_MAX: usize = 1_024;

/// Secrets that `tsp dev` keeps in memory at most: far more than anybody tries out.
const MEMORY_SECRETS_MAX: usize = 10_000;

/// Where a process keeps tenant secrets.
#[derive(Debug)]
pub(crate) enum Store {
    /// In a file that other proxies may share.
    File(SecretsFile),
    /// In this process alone, and gone with it, as its keys are.
    Memory(Memory),
    /// At a broker that other proxies share.
    Broker(BrokerStore),
}

/// Tenant secrets in memory, and who hears of a new one.
#[derive(Debug)]
pub(crate) struct Memory {
    secrets: Secrets,
    created: Sender<TenantSecretDoc>,
}

impl Memory {
    /// An empty one, and where each secret comes once.
    pub(crate) fn new() -> (Self, Receiver<TenantSecretDoc>) {
        let (created, news) = crossbeam_channel::bounded(MEMORY_SECRETS_MAX);
        let secrets = Secrets::default();
        (Self { secrets, created }, news)
    }

    fn take(
        &mut self,
        offers: &[SecretOffer],
        now: OffsetDateTime,
    ) -> Result<Vec<TenantSecretDoc>, Problem> {
        let mut docs = Vec::with_capacity(offers.len());
        for offer in offers {
            if self.secrets.records().len() >= MEMORY_SECRETS_MAX {
                let why = format!("`tsp dev` keeps no more than {MEMORY_SECRETS_MAX}");
                return Err(Problem::new("tenant secrets", why));
            }
            let (doc, how) = self.secrets.take(offer, now).map_err(no_random)?;
            if how == Taken::New {
                // There is room for every secret there can be.
                drop(self.created.try_send(doc.clone()));
            }
            docs.push(doc);
        }
        Ok(docs)
    }
}

fn no_random(why: io::Error) -> Problem {
    Problem::new("random numbers", why.to_string())
}

/// Stores `offers` unless their places have a current secret, all in one write.
fn take_into_file(
    file: &SecretsFile,
    offers: &[SecretOffer],
    now: OffsetDateTime,
) -> Result<Vec<TenantSecretDoc>, Problem> {
    let waits = |lock: &Path| {
        tracing::debug!(lock = %lock.display(), "another process changes the tenant secrets");
    };
    file.update(waits, |secrets| {
        let mut edited = Edited::No;
        let mut docs = Vec::with_capacity(offers.len());
        for offer in offers {
            let (doc, how) = secrets.take(offer, now).map_err(no_random)?;
            if how == Taken::New {
                edited = Edited::Yes;
            }
            docs.push(doc);
        }
        Ok((docs, edited))
    })
}

/// Starts the thread, on the calling thread's core. It ends with the senders of `offers`.
pub(crate) fn start(
    mut store: Store,
    offers: Receiver<SecretOffer>,
    commander: mailbox::Sender<Command>,
) -> io::Result<()> {
    thread::Builder::new()
        .name("tsp-secrets".to_owned())
        .spawn(move || {
            while let Ok(first) = offers.recv() {
                let more = offers.try_iter().take(OFFERS_MAX - 1);
                let batch: Vec<_> = std::iter::once(first).chain(more).collect();
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the times in the file are the machine's"
                )]
                let now = OffsetDateTime::from(SystemTime::now());
                keep(&mut store, batch, now);
                // If the loop has no room for it, it has something to do, and looks soon.
                drop(commander.send(Command::SecretsStored));
            }
        })?;
    Ok(())
}

/// Stores a batch and answers everyone in it.
fn keep(store: &mut Store, batch: Vec<SecretOffer>, now: OffsetDateTime) {
    // Whoever gave up waiting asks again when a secret is needed.
    let (batch, _) = batch
        .into_iter()
        .partition::<Vec<_>, _>(|offer| !offer.reply.is_closed());
    if batch.is_empty() {
        return;
    }
    let all = |docs: Vec<TenantSecretDoc>| docs.into_iter().map(Ok).collect::<Vec<_>>();
    let stored = match store {
        Store::File(file) => take_into_file(file, &batch, now).map(all),
        Store::Memory(memory) => memory.take(&batch, now).map(all),
        Store::Broker(broker) => broker.take(&batch),
    };
    match stored {
        Ok(docs) => {
            for (offer, doc) in batch.into_iter().zip(docs) {
                let doc = doc.map_err(|problem| {
                    let place = problem.place.as_str();
                    tracing::error!(place, "a tenant secret is not stored: {problem}");
                    SecretNotStored
                });
                drop(offer.reply.send(doc));
            }
        }
        Err(problem) => {
            tracing::error!(
                place = problem.place,
                offers = batch.len(),
                "tenant secrets cannot be stored: {problem}"
            );
            for offer in batch {
                drop(offer.reply.send(Err(SecretNotStored)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tsp_wire::snapshot::TenantSecretDoc;

    use super::*;
    use crate::secrets::tests::{at, offer};

    fn kept(store: &mut Store, places: &[(&str, &str)]) -> Vec<Result<u64, SecretNotStored>> {
        let (offers, answers): (Vec<_>, Vec<_>) = places
            .iter()
            .map(|(tenant, path)| offer(tenant, path, b"blob"))
            .unzip();
        keep(store, offers, at(0));
        let id = |doc: TenantSecretDoc| doc.id;
        answers
            .into_iter()
            .map(|mut answer| answer.try_recv().unwrap().map(id))
            .collect()
    }

    #[test]
    fn a_batch_is_answered_in_its_order_and_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = SecretsFile::new(folder.path().join("secrets"));
        let mut store = Store::File(file.clone());
        let places = [("acme", "p"), ("acme", "q"), ("acme", "p"), ("globex", "p")];
        let first = kept(&mut store, &places);
        assert!(first.iter().all(Result::is_ok));
        assert_eq!(first[0], first[2], "one place, one secret");
        assert_eq!(file.load().unwrap().records().len(), 3);
        assert_eq!(kept(&mut store, &places), first);
    }

    #[test]
    fn memory_tells_of_each_secret_once() {
        let (memory, news) = Memory::new();
        let mut store = Store::Memory(memory);
        let first = kept(&mut store, &[("acme", "p"), ("acme", "p"), ("acme", "q")]);
        assert_eq!(kept(&mut store, &[("acme", "q")]), [first[2]]);
        let told: Vec<_> = news.try_iter().map(|doc| Ok(doc.id)).collect();
        assert_eq!(told, [first[0], first[2]]);
    }

    #[test]
    fn who_does_not_wait_gets_none_and_a_file_that_cannot_be_written_is_told_to_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = SecretsFile::new(folder.path().join("secrets"));
        let mut store = Store::File(file.clone());
        let (gone, answer) = offer("acme", "p", b"blob");
        drop(answer);
        keep(&mut store, vec![gone], at(0));
        assert!(!file.path().exists());

        let nowhere = SecretsFile::new(folder.path().join("not there/secrets"));
        let answers = kept(&mut Store::File(nowhere), &[("acme", "p"), ("acme", "q")]);
        assert_eq!(answers, [Err(SecretNotStored), Err(SecretNotStored)]);
    }
}
