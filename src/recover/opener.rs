//! Opens EDEKs by asking the KMSs that wrapped them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::sync::Mutex;
use tsp_kms::Kms;
use tsp_rt::Rt;
use tsp_shards::Destinations;
use tsp_wire::{
    Dek,
    edek::{EncryptedDek, EncryptedDeks},
};

use super::input::Item;
use crate::kms_calls::{CallFailure, KmsCalls};

/// Pauses before another try, where one may help: a KMS that throttles wants a second or two.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// Leased keys that are kept, so that EDEKs under one lease cost one call. More than a proxy makes in a year.
const LEASED_KEYS_MAX: usize = 10_000;

/// A key as the KMS of a config wrapped it.
#[derive(PartialEq, Eq, Hash)]
struct Wrapped {
    config: i32,
    blob: Vec<u8>,
}

/// Opens EDEKs with some KMS configs.
pub(super) struct Opener<'a, R: Rt> {
    rt: R,
    kms: &'a BTreeMap<i32, Kms>,
    /// Calls to each remote KMS, as many as go on at one time. One at a time uses each.
    calls: BTreeMap<i32, Vec<Mutex<KmsCalls<'a, R>>>>,
    leased: RefCell<HashMap<Wrapped, Rc<Dek>>>,
}

impl<'a, R: Rt> Opener<'a, R> {
    pub(super) fn new(
        rt: R,
        kms: &'a BTreeMap<i32, Kms>,
        destinations: &Arc<Destinations>,
        at_one_time: usize,
    ) -> Self {
        let calls = kms
            .iter()
            .filter_map(|(id, kms)| match kms {
                Kms::Local(_) => None,
                Kms::Remote(kms) => {
                    let calls = || Mutex::new(KmsCalls::new(rt.clone(), &**kms, destinations));
                    Some((*id, (0..at_one_time).map(|_| calls()).collect()))
                }
            })
            .collect();
        Self {
            rt,
            kms,
            calls,
            leased: RefCell::default(),
        }
    }

    /// Opens `item`, the input's number `index`; `Ok(None)` if it is an empty line.
    ///
    /// # Errors
    /// What keeps it from being opened, in words for a person.
    pub(super) async fn open(&self, index: usize, item: &Item) -> Result<Option<Dek>, String> {
        let Some(edeks) = &item.edek else {
            return Ok(None);
        };
        let edeks = edeks.as_ref().map_err(ToString::to_string)?;
        let entry = self.known(edeks)?;
        // One client writes the tenant into the EDEK.
        let hint = str::from_utf8(&entry.tenant_id).ok();
        let hint = hint.filter(|tenant| !tenant.is_empty());
        let tenant = item.tenant.as_deref().or(hint);
        if entry.leased_key_id == 0 {
            return self.unwrap(index, entry, tenant).await.map(Some);
        }
        let under = EncryptedDeks::from_bytes(&entry.encrypted_leased_key_data)
            .map_err(|_| "it is leased, but holds no leased key".to_owned())?;
        let under = self.known(&under)?;
        let wrapped = Wrapped {
            config: under.kms_config_id,
            blob: under.encrypted_dek_data.clone(),
        };
        let kept = self.leased.borrow().get(&wrapped).map(Rc::clone);
        let leased_key = match kept {
            Some(key) => key,
            None => {
                let key = Rc::new(self.unwrap(index, under, tenant).await?);
                let mut leased = self.leased.borrow_mut();
                if leased.len() >= LEASED_KEYS_MAX {
                    leased.clear();
                }
                leased.insert(wrapped, Rc::clone(&key));
                key
            }
        };
        tsp_shards::open_with_leased_key(
            &leased_key,
            &entry.leased_key_iv,
            &entry.encrypted_dek_data,
        )
        .map(Some)
        .map_err(str::to_owned)
    }

    /// The first entry whose KMS config is there.
    fn known<'e>(&self, edeks: &'e EncryptedDeks) -> Result<&'e EncryptedDek, String> {
        let mut entries = edeks.encrypted_deks.iter();
        let known = entries.find(|entry| self.kms.contains_key(&entry.kms_config_id));
        known.ok_or_else(|| {
            let first = edeks.encrypted_deks.first();
            let id = first.map_or(0, |entry| entry.kms_config_id);
            format!("KMS config {id} wrapped it, and the configuration has none that can be used")
        })
    }

    async fn unwrap(
        &self,
        index: usize,
        entry: &EncryptedDek,
        tenant: Option<&str>,
    ) -> Result<Dek, String> {
        let (id, blob) = (entry.kms_config_id, &entry.encrypted_dek_data);
        let failed = |why: &dyn std::fmt::Display| format!("KMS config {id}: {why}");
        let kms = match self.kms.get(&id) {
            Some(Kms::Remote(kms)) => kms,
            Some(Kms::Local(kms)) => {
                return kms
                    .unwrap(tenant.unwrap_or_default(), blob)
                    .map_err(|why| match tenant {
                        Some(_) => failed(&why),
                        None => failed(&"a LOCAL key binds the tenant: say which with --tenant"),
                    });
            }
            None => return Err(failed(&"it is not there")),
        };
        let calls = self.calls.get(&id).map(Vec::as_slice).unwrap_or_default();
        let calls = calls.get(index % calls.len().max(1));
        let mut calls = match calls {
            Some(calls) => calls.lock().await,
            None => return Err(failed(&"it is not there")),
        };
        let mut pauses = PAUSES.iter();
        loop {
            let unwrapped = calls
                .call(
                    |token, session, now| kms.unwrap_request(blob, token, session, now),
                    |answer| kms.read_unwrap(answer),
                )
                .await;
            let why: CallFailure = match unwrapped {
                Ok((key, _)) => return Ok(key),
                Err(why) => why,
            };
            match pauses.next() {
                Some(pause) if why.may_pass() => self.rt.sleep(*pause).await,
                Some(_) | None => return Err(failed(&why)),
            }
        }
    }
}
